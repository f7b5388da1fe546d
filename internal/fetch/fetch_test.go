package fetch_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/fetch"
)

// Of the loopback addresses one stands for the public internet, another for a private network.
var (
	public  = netip.MustParseAddr("127.0.0.1")
	private = netip.MustParseAddr("127.0.0.2")
)

const most = 1 << 20

// site is a web server, named cdn.example.com by names.
type site struct {
	*httptest.Server
	fetcher *fetch.Fetcher
	asked   atomic.Int32
}

// newSite serves a handler at 127.0.0.1 over TLS, or plain, with names that answer as told.
func newSite(t *testing.T, plain bool, names fetch.Names, o fetch.Options, h http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		w.Header().Set("Content-Type", "image/png")
		h(w, r)
	}))
	scheme := ""
	if plain {
		scheme = "http://"
		s.Start()
	} else {
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	u, _ := url.Parse(s.URL)
	for _, name := range []string{"example.com", "*.example.com", "example.org", "127.0.0.1", "127.0.0.2"} {
		host, err := fetch.ParseHost(scheme + name + ":" + u.Port())
		if err != nil {
			t.Fatal(err)
		}
		o.Hosts = append(o.Hosts, host)
	}
	if names == nil {
		names = always(public)
	}
	roots := x509.NewCertPool()
	if !plain {
		roots.AddCert(s.Certificate())
	}
	s.fetcher = fetch.NewTest(o, names, roots, netip.PrefixFrom(public, 32))
	return s
}

func always(list ...netip.Addr) fetch.Names {
	return func(context.Context, string) ([]netip.Addr, error) { return list, nil }
}

// at is a URL of the site under another host.
func (s *site) at(host, path string) string {
	u, _ := url.Parse(s.URL)
	return u.Scheme + "://" + host + ":" + u.Port() + path
}

func (s *site) get(ctx context.Context, url string) (string, error) {
	var b bytes.Buffer
	err := s.fetcher.Fetch(ctx, "caller", url, most, &b)
	return b.String(), err
}

// secret stands in paths, queries and bodies, and must not be in errors.
const secret = "s3cret"

// wantRefused holds that an error is the URL's fault, says so, and quotes nothing of it.
func wantRefused(t *testing.T, what string, err error, why string) {
	t.Helper()
	if !errors.Is(err, fetch.ErrURL) || !strings.Contains(err.Error(), why) {
		t.Errorf("%s: %v, want one that says %q", what, err, why)
	}
	if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "127.0.0.")) {
		t.Errorf("%s: the error quotes: %v", what, err)
	}
}

func TestFetch(t *testing.T) {
	s := newSite(t, false, nil, fetch.Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.ServerName != "example.com" {
			t.Errorf("server name %q", r.TLS.ServerName)
		}
		for _, name := range []string{"Cookie", "Authorization", "Referer", "Via", "X-Forwarded-For"} {
			if v := r.Header.Get(name); v != "" {
				t.Errorf("it is sent %s: %s", name, v)
			}
		}
		if got := r.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("it accepts %q", got)
		}
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		fmt.Fprint(w, r.URL.Path)
	})
	t.Setenv("HTTPS_PROXY", "http://127.0.0.2:1")
	for range 2 {
		got, err := s.get(t.Context(), s.at("example.com", "/a.png")+"?q="+secret+"#fragment")
		if err != nil || got != "/a.png" {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// Nothing but the hosts of the list is asked, however a URL is written.
func TestURLs(t *testing.T) {
	s := newSite(t, false, nil, fetch.Options{}, func(http.ResponseWriter, *http.Request) {})
	u, _ := url.Parse(s.URL)
	port := ":" + u.Port()
	for raw, why := range map[string]string{
		"":                                                             "scheme",
		"example.com/" + secret:                                        "scheme",
		"//example.com/" + secret:                                      "scheme",
		"file:///etc/" + secret:                                        "scheme",
		"gopher://example.com/" + secret:                               "scheme",
		"ftp://example.com/" + secret:                                  "scheme",
		"data:image/png;base64," + secret:                              "scheme",
		"javascript:" + secret:                                         "scheme",
		"unix:///run/" + secret:                                        "scheme",
		"jar:https://example.com!/" + secret:                           "scheme",
		"https:example.com/" + secret:                                  "host",
		"https:///" + secret:                                           "host",
		"https://:443/" + secret:                                       "host",
		"http://example.com" + port + "/":                              "--media-allow-urls",
		"https://example.com/" + secret:                                "--media-allow-urls", // another port
		"https://example.com:22/":                                      "--media-allow-urls",
		"https://example.com:/":                                        "port",
		"https://example.com:0/":                                       "port",
		"https://example.com:65536/":                                   "port",
		"https://example.com:x/" + secret:                              "malformed",
		"https://evil.com" + port:                                      "--media-allow-urls",
		"https://notexample.com" + port:                                "--media-allow-urls",
		"https://example.com.evil.com" + port:                          "--media-allow-urls",
		"https://example.com@evil.com" + port:                          "user",
		"https://u:" + secret + "@example.com":                         "user",
		"https://@example.com" + port:                                  "user",
		"https://evil.com#@example.com" + port:                         "--media-allow-urls",
		"https://evil.com?@example.com" + port:                         "--media-allow-urls",
		`https://evil.com\@example.com` + port:                         "malformed",
		"https://example.com." + port:                                  "name",
		"https://.example.com" + port:                                  "name",
		"https://a..example.com" + port:                                "name",
		"https://exam ple.com" + port:                                  "malformed",
		"https://ex\u00e4mple.com" + port:                              "name",
		"https://example\u3002com" + port:                              "name", // a full stop in wide characters
		"https://*.example.com" + port:                                 "name",
		"https://example.com\r\nHost: evil.com":                        "malformed",
		"https://2130706433" + port:                                    "IPv4",
		"https://0x7f000001" + port:                                    "IPv4",
		"https://0x7f.0.0.1" + port:                                    "IPv4",
		"https://0177.0.0.1" + port:                                    "IPv4",
		"https://017700000001" + port:                                  "IPv4",
		"https://127.1" + port:                                         "IPv4",
		"https://127.0.0.01" + port:                                    "IPv4",
		"https://127.0.0.1." + port:                                    "name",
		"https://10.0.0.1" + port:                                      "--media-allow-urls",
		"https://[::1]" + port:                                         "--media-allow-urls",
		"https://[::ffff:127.0.0.1]" + port:                            "IPv6",
		"https://[::ffff:7f00:1]" + port:                               "IPv6",
		"https://[fe80::1%25eth0]" + port:                              "IPv6",
		"https://[0:0:0:0:0:0:0:1]" + port:                             "IPv6",
		"https://[127.0.0.1]" + port:                                   "",
		"https://example.com" + port + "/" + strings.Repeat("a", 9000): "bytes",
	} {
		_, err := s.get(t.Context(), raw)
		wantRefused(t, fmt.Sprintf("%.60q", raw), err, why)
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("%d were asked for", n)
	}
}

// A name that stands for an address of no public network is not asked, nor is such an address itself.
func TestAddresses(t *testing.T) {
	names := func(_ context.Context, host string) ([]netip.Addr, error) {
		switch strings.TrimSuffix(host, ".example.com") {
		case "private":
			return []netip.Addr{private}, nil
		case "mapped":
			return []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.2")}, nil
		case "metadata":
			return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
		case "both":
			return []netip.Addr{private, public}, nil
		case "none":
			return nil, &net.DNSError{Err: secret, Name: host, IsNotFound: true}
		}
		return nil, nil
	}
	s := newSite(t, true, names, fetch.Options{}, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "it") })
	for host, why := range map[string]string{
		"private.example.com": "public", "mapped.example.com": "public", "metadata.example.com": "public",
		"empty.example.com": "public", "127.0.0.2": "public", "none.example.com": "resolved",
	} {
		_, err := s.get(t.Context(), s.at(host, "/"+secret))
		wantRefused(t, host, err, why)
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("%d were asked for", n)
	}
	if got, err := s.get(t.Context(), s.at("both.example.com", "/")); err != nil || got != "it" {
		t.Errorf("where one of two addresses is public: %q, %v", got, err)
	}
}

// Every range that is none of the public internet, and each way to write an IPv4 address within IPv6.
func TestRanges(t *testing.T) {
	for _, a := range []string{
		"0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.1.1",
		"169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1",
		"192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
		"255.255.255.255", "168.63.129.16",
		"::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "64:ff9b:1::a00:1",
		"100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::", "fc00::1", "fd00:ec2::254", "fe80::1",
		"fe80::1%eth0", "fec0::1", "ff02::1", "2606:4700::1111%eth0",
	} {
		if fetch.Public(netip.MustParseAddr(a)) {
			t.Errorf("%s may be dialled", a)
		}
	}
	for _, a := range []string{"1.1.1.1", "93.184.216.34", "168.63.129.17", "::ffff:1.1.1.1", "2606:4700::1111"} {
		if !fetch.Public(netip.MustParseAddr(a)) {
			t.Errorf("%s may not be dialled", a)
		}
	}
}

// A resolver that changes its answer cannot get another address dialled than the one that was judged.
func TestRebinding(t *testing.T) {
	inside := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, secret)
	}))
	var lookups atomic.Int32
	names := func(context.Context, string) ([]netip.Addr, error) {
		if lookups.Add(1)%2 == 1 {
			return []netip.Addr{public}, nil
		}
		return []netip.Addr{private}, nil
	}
	s := newSite(t, true, names, fetch.Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/again" {
			http.Redirect(w, r, "/", http.StatusFound) // to the same name
			return
		}
		fmt.Fprint(w, "outside")
	})
	u, _ := url.Parse(s.URL)
	lis, err := net.Listen("tcp", net.JoinHostPort(private.String(), u.Port()))
	if err != nil {
		t.Fatal(err)
	}
	inside.Listener.Close()
	inside.Listener = lis
	inside.Start()
	defer inside.Close()
	if got, err := s.get(t.Context(), s.at("example.com", "/")); err != nil || got != "outside" || lookups.Load() != 1 {
		t.Errorf("first %q, %v, after %d lookups; want the address that was judged", got, err, lookups.Load())
	}
	_, err = s.get(t.Context(), s.at("example.com", "/"))
	wantRefused(t, "the second answer", err, "public")
	_, err = s.get(t.Context(), s.at("example.com", "/again"))
	wantRefused(t, "the second answer, after a redirect to the same name", err, "public")
}

// Each redirect is judged as the first URL is.
func TestRedirects(t *testing.T) {
	names := func(_ context.Context, host string) ([]netip.Addr, error) {
		if host == "inside.example.com" {
			return []netip.Addr{private}, nil
		}
		return []netip.Addr{public}, nil
	}
	s := newSite(t, false, names, fetch.Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/file" {
			if r.Referer() != "" {
				t.Errorf("the next host is told %s", r.Referer())
			}
			fmt.Fprint(w, "it")
			return
		}
		var hops int
		if n, _ := fmt.Sscanf(r.URL.Path, "/hops/%d", &hops); n == 1 {
			next := fmt.Sprintf("/hops/%d", hops-1)
			if hops == 1 {
				next = "/file"
			}
			http.Redirect(w, r, next, http.StatusFound)
			return
		}
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusTemporaryRedirect)
	})
	if got, err := s.get(t.Context(), s.at("example.com", "/hops/3?"+secret)); err != nil || got != "it" {
		t.Errorf("three redirects: %q, %v", got, err)
	}
	_, err := s.get(t.Context(), s.at("example.com", "/?to="+s.at("example.org", "/file")))
	wantRefused(t, "to a name that the certificate lacks", err, "certificate")
	for to, why := range map[string]string{
		s.at("example.com", "/hops/3"):                                     "more than 3",
		s.at("inside.example.com", "/file"):                                "public",
		s.at("127.0.0.2", "/file"):                                         "public",
		s.at("evil.com", "/file"):                                          "--media-allow-urls",
		"https://169.254.169.254/latest":                                   "--media-allow-urls",
		strings.Replace(s.at("example.com", "/file"), "https", "http", 1):  "another scheme",
		"http://127.0.0.1/":                                                "another scheme",
		"file:///etc/passwd":                                               "another scheme",
		"gopher://127.0.0.1/":                                              "another scheme",
		strings.Replace(s.at("example.com", "/file"), "://", "://u:p@", 1): "user",
		s.at("2130706433", "/file"):                                        "IPv4",
	} {
		_, err := s.get(t.Context(), s.at("example.com", "/?"+secret+"&to="+url.QueryEscape(to)))
		wantRefused(t, to, err, why)
	}
}

// What a host says of a file, and what it then sends, is bounded and judged.
func TestAnswers(t *testing.T) {
	s := newSite(t, true, nil, fetch.Options{Timeout: 5 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch r.URL.Path {
		case "/large": // says ten gigabytes
			h.Set("Content-Length", "10737418240")
			_, _ = w.Write(make([]byte, 1<<20))
		case "/endless":
			chunk := make([]byte, 1<<20)
			for {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		case "/short":
			h.Set("Content-Length", "100")
			fmt.Fprint(w, "1")
		case "/gzip":
			h.Set("Content-Encoding", "gzip")
		case "/html":
			h.Set("Content-Type", "text/html")
		case "/odd":
			h.Set("Content-Type", secret)
		case "/missing":
			http.Error(w, secret, http.StatusNotFound)
		case "/nowhere":
			w.WriteHeader(http.StatusFound)
		case "/header":
			h.Set("X-Long", strings.Repeat("a", 1<<20))
		case "/raw":
			conn, _, _ := http.NewResponseController(w).Hijack()
			fmt.Fprint(conn, "SSH-2.0-"+secret+"\r\n")
			conn.Close()
		case "/none":
			h["Content-Type"] = nil
			fmt.Fprint(w, "it")
		case "/octets":
			h.Set("Content-Type", "application/octet-stream")
			fmt.Fprint(w, "it")
		}
	})
	for path, why := range map[string]string{
		"/large": "10737418240 bytes", "/endless": "more than 1048576", "/short": "broke off", "/gzip": "compressed",
		"/html": "no image", "/odd": "no image", "/missing": "status 404", "/nowhere": "",
		"/header": "web server", "/raw": "web server",
	} {
		got, err := s.get(t.Context(), s.at("example.com", path+"?"+secret))
		wantRefused(t, path, err, why)
		if len(got) > most {
			t.Errorf("%s: %d bytes were written", path, len(got))
		}
	}
	for _, path := range []string{"/none", "/octets"} {
		if got, err := s.get(t.Context(), s.at("example.com", path)); err != nil || got != "it" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}

// Whoever is slow, in whatever part of an answer, costs the time limit and no more; who leaves, waits no longer.
func TestSlow(t *testing.T) {
	release := make(chan struct{})
	names := func(ctx context.Context, host string) ([]netip.Addr, error) {
		if host == "slow.example.com" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return []netip.Addr{public}, nil
	}
	s := newSite(t, true, names, fetch.Options{Timeout: 300 * time.Millisecond},
		func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/body" {
				for range 1000 {
					if _, err := w.Write([]byte("x")); err != nil {
						return
					}
					_ = http.NewResponseController(w).Flush()
					select {
					case <-release:
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			}
			<-release
		})
	defer close(release)
	body, header, name := s.at("example.com", "/body"), s.at("example.com", "/header"), s.at("slow.example.com", "/")
	for _, at := range []string{body, header, name} {
		began := time.Now()
		_, err := s.get(t.Context(), at+"?"+secret)
		wantRefused(t, at, err, "within 300ms")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s took %v", at, took)
		}
		ctx, leave := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		time.AfterFunc(30*time.Millisecond, func() { leave(gone) })
		if _, err := s.get(ctx, at); !errors.Is(err, gone) {
			t.Errorf("%s, when its caller has left: %v", at, err)
		}
	}
}

// One caller cannot take all places, and what stops the writer stops the fetch.
func TestBusy(t *testing.T) {
	came, release := make(chan struct{}, 5), make(chan struct{})
	s := newSite(t, true, nil, fetch.Options{AtOnce: 4}, func(http.ResponseWriter, *http.Request) {
		came <- struct{}{}
		<-release
	})
	var wg sync.WaitGroup
	fetchFor := func(caller string) error {
		return s.fetcher.Fetch(t.Context(), caller, s.at("example.com", "/"), most, io.Discard)
	}
	for i := range 4 {
		wg.Go(func() { _ = fetchFor(fmt.Sprint(i)) })
	}
	for range 4 {
		<-came
	}
	if err := fetchFor("another"); !errors.Is(err, fetch.ErrBusy) {
		t.Errorf("a fifth: %v", err)
	}
	close(release)
	wg.Wait()
	if err := fetchFor("another"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	two := newSite(t, true, nil, fetch.Options{AtOnce: 8}, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "it")
	})
	full := os.ErrClosed
	err := two.fetcher.Fetch(t.Context(), "", two.at("example.com", "/"), most, failing{full})
	if !errors.Is(err, full) {
		t.Errorf("a writer that fails: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestParseHost(t *testing.T) {
	for _, good := range []string{
		"example.com", "*.example.com", "EXAMPLE.com:8443", "http://example.com", "https://example.com", "93.184.216.34",
		"[2606:4700::1111]:8443", "http://cdn_1.example.com:8080",
	} {
		if _, err := fetch.ParseHost(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "*", "*.", "*.com", "a.*.com", "*example.com", "example.com/", "example.com/path", "u@example.com", "ftp://a.com",
		"example.com.", "example.com:0", "example.com:x", "https://", "127.1", "0x7f000001", "*.93.184.216.34", "a b.com",
		"[::ffff:1.1.1.1]", "example.com?x", "example.com#x",
	} {
		if h, err := fetch.ParseHost(bad); err == nil {
			t.Errorf("%q is %+v", bad, h)
		}
	}
}

// FuzzURL holds that whatever URL is taken, its host is one of the list, as another parser would read it too.
func FuzzURL(f *testing.F) {
	for _, seed := range []string{
		"https://example.com/a?b#c", "https://a.example.com", "https://example.com@evil.com", "https://0x7f.1/",
		"https://[::1]/", `https://example.com\@evil.com`, "https://example.com:443/", "HTTPS://EXAMPLE.com",
		"https://example.com%2eevil.com", "https:example.com",
	} {
		f.Add(seed)
	}
	one, _ := fetch.ParseHost("example.com")
	below, _ := fetch.ParseHost("*.example.com")
	asked := errors.New("asked")
	var host string
	names := func(_ context.Context, name string) ([]netip.Addr, error) {
		host = name
		return nil, asked
	}
	fetcher := fetch.NewTest(fetch.Options{Hosts: []fetch.Host{one, below}}, names, nil, netip.PrefixFrom(public, 32))
	f.Fuzz(func(t *testing.T, raw string) {
		host = ""
		err := fetcher.Fetch(t.Context(), "", raw, most, io.Discard)
		if err == nil {
			t.Fatal("it was fetched")
		}
		name := strings.ToLower(host)
		if host != "" && name != "example.com" && !strings.HasSuffix(name, ".example.com") {
			t.Errorf("%q has %q asked", raw, host)
		}
	})
}
