// Package fetch gets files from the hosts that an operator lists, and from nowhere else: never from an address of this
// machine or of a private network, whatever a name resolves to and wherever a host redirects.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"code.dny.dev/ssrf"
)

// ErrURL marks a URL that cannot be fetched. The wrapped text is safe to show to its caller: it quotes nothing of the
// URL or of the answer.
var ErrURL = errors.New("the URL cannot be fetched")

// ErrBusy says that too many fetches are under way, of all callers or of this one.
var ErrBusy = errors.New("too many fetches at once")

// Options say what is fetched from where. A zero field takes its default.
type Options struct {
	// Hosts are those that files are fetched from; all others are refused.
	Hosts []Host
	// Timeout bounds a fetch from the name's resolution to the last byte. Default: 10 s.
	Timeout time.Duration
	// AtOnce is the most fetches at once; a caller may have a quarter of them. Default: 64.
	AtOnce int
}

const (
	maxURL       = 8 << 10  // bytes; signed URLs are long
	maxRedirects = 3        // each is checked as the first URL is
	maxAddresses = 4        // of a name, that are tried
	maxHeader    = 64 << 10 // bytes of an answer's header
	dialTime     = 3 * time.Second
	headerTime   = 5 * time.Second // from the request to the answer's header; TLS has the same
)

// azureWire is the address of Azure's metadata and agents, which is none of a special range.
var azureWire = netip.MustParsePrefix("168.63.129.16/32")

// resolver is a *net.Resolver.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Fetcher gets files. Its methods may be called concurrently.
//
// Addresses are judged by code.dny.dev/ssrf, which follows IANA's registries of special ranges: once when a name has
// been resolved, and again as the socket connects. No other address is dialled than one that was judged.
type Fetcher struct {
	options  Options
	resolver resolver
	guard    *ssrf.Guardian
	client   *http.Client

	mu      sync.Mutex
	open    int
	callers map[string]int
}

// New returns a fetcher.
func New(o Options) *Fetcher {
	return newFetcher(o, net.DefaultResolver, nil, ssrf.WithDeniedV4Prefixes(azureWire))
}

func newFetcher(o Options, r resolver, roots *x509.CertPool, guarded ...ssrf.Option) *Fetcher {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.AtOnce == 0 {
		o.AtOnce = 64
	}
	f := &Fetcher{options: o, resolver: r, callers: map[string]int{}}
	f.guard = ssrf.New(append([]ssrf.Option{ssrf.WithAnyPort()}, guarded...)...) // ports are the URL's, which is checked
	f.client = &http.Client{
		CheckRedirect: f.redirect,
		Transport: &http.Transport{ // no proxy, no cookies, no compression, no HTTP/2, a connection for each request
			DialContext:            f.dial,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
			TLSHandshakeTimeout:    headerTime,
			ResponseHeaderTimeout:  headerTime,
			MaxResponseHeaderBytes: maxHeader,
		},
	}
	return f
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrURL, fmt.Sprintf(format, args...))
}

// Fetch writes the file at a URL, at most so many bytes, on behalf of a caller. Errors are those of to, the context's
// cause, ErrBusy, or wrap ErrURL.
func (f *Fetcher) Fetch(ctx context.Context, caller, rawURL string, most int64, to io.Writer) error {
	u, err := f.parse(rawURL)
	if err != nil {
		return err
	}
	if err := f.enter(caller); err != nil {
		return err
	}
	defer f.leave(caller)
	within, cancel := context.WithTimeout(ctx, f.options.Timeout)
	defer cancel()
	err = f.get(within, u, most, to)
	switch {
	case err == nil, errors.As(err, new(writeError)):
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case within.Err() != nil:
		return refused("its host did not send the file within %v", f.options.Timeout)
	}
	if w := (writeError{}); errors.As(err, &w) {
		return w.error
	}
	return err
}

// enter takes a place for a fetch.
func (f *Fetcher) enter(caller string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open >= f.options.AtOnce || f.callers[caller] >= max(1, f.options.AtOnce/4) {
		return ErrBusy
	}
	f.open++
	f.callers[caller]++
	return nil
}

func (f *Fetcher) leave(caller string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	if f.callers[caller]--; f.callers[caller] == 0 {
		delete(f.callers, caller)
	}
}

// writeError is one of the writer that a file goes to.
type writeError struct{ error }

func (f *Fetcher) get(ctx context.Context, u *url.URL, most int64, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return refused("it is malformed")
	}
	req.Header = http.Header{"Accept": {"image/*"}, "Accept-Encoding": {"identity"}, "User-Agent": {"mmserve"}}
	resp, err := f.client.Do(req)
	if err != nil {
		return connectError(err)
	}
	defer resp.Body.Close()
	if err := acceptable(resp, most); err != nil {
		return err
	}
	return transfer(resp.Body, most, to)
}

// connectError says what went wrong before the answer, without what the error quotes.
func connectError(err error) error {
	var (
		ours    refusal
		name    *net.DNSError
		trust   *tls.CertificateVerificationError
		handles tls.RecordHeaderError
		waited  net.Error
	)
	switch {
	case errors.As(err, &ours):
		return ours.error
	case errors.As(err, &name):
		return refused("the name of its host cannot be resolved")
	case errors.As(err, &trust), errors.As(err, &handles):
		return refused("its host has no certificate that is trusted for the name")
	case errors.Is(err, ssrf.ErrProhibitedIP):
		return errNotPublic()
	case errors.As(err, &waited) && waited.Timeout():
		return refused("its host does not answer in time")
	}
	return refused("its host does not answer as a web server should")
}

// refusal carries a refusal through net/http.
type refusal struct{ error }

// acceptable judges an answer's header.
func acceptable(resp *http.Response, most int64) error {
	if resp.StatusCode != http.StatusOK {
		return refused("its host answered with status %d", resp.StatusCode)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return refused("its host sent the file compressed, which was not asked for")
	}
	if resp.ContentLength > most {
		return refused("the file has %d bytes, at most %d are taken", resp.ContentLength, most)
	}
	kind := resp.Header.Get("Content-Type")
	if kind == "" {
		return nil // what the bytes are is found out by looking
	}
	kind, _, err := mime.ParseMediaType(kind)
	switch {
	case err == nil && strings.HasPrefix(kind, "image/"):
	case err == nil && (kind == "application/octet-stream" || kind == "binary/octet-stream"):
	default:
		return refused("its host says that the file is no image")
	}
	return nil
}

// transfer copies at most so many bytes. It ends with the body's context.
func transfer(body io.Reader, most int64, to io.Writer) error {
	buf := make([]byte, 32<<10)
	defer clear(buf)
	for n := int64(0); ; {
		k, err := body.Read(buf)
		if n += int64(k); n > most {
			return refused("the file has more than %d bytes", most)
		}
		if _, failed := to.Write(buf[:k]); failed != nil {
			return writeError{failed}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return refused("its host broke off while it sent the file")
		}
	}
}

// redirect checks where a host sends us as if it were asked for.
func (f *Fetcher) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return refusal{refused("its host redirects more than %d times", maxRedirects)}
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return refusal{refused("its host redirects from https to another scheme")}
	}
	if err := f.check(req.URL); err != nil {
		return refusal{err}
	}
	req.Header.Del("Referer") // it would tell the next host the URL
	return nil
}

func errNotPublic() error { return refused("its host has no address on the public internet") }

// dial resolves a name once and connects to an address of it that is judged to be public.
func (f *Fetcher) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := parsePort(text)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 1)
	if addrs[0], err = netip.ParseAddr(host); err != nil {
		if addrs, err = f.resolver.LookupNetIP(ctx, "ip", host); err != nil {
			return nil, err
		}
	}
	d := net.Dialer{Timeout: dialTime, Control: f.guard.Safe}
	err, tried := error(refusal{errNotPublic()}), 0
	for _, a := range addrs {
		a = a.Unmap()
		if f.guard.SafeAddr(a) != nil {
			continue
		}
		if tried++; tried > maxAddresses {
			break
		}
		var conn net.Conn
		if conn, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, port).String()); err == nil {
			return conn, nil
		}
	}
	return nil, err
}
