package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/admin"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/auth/authtest"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// Outside loopback a listener wants TLS and credentials, or to be told by name that it needs none.
func TestInsecureListeners(t *testing.T) {
	dir := t.TempDir()
	cert, key, keys := filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "keys")
	secured := []string{"--tls-cert", cert, "--tls-key", key, "--api-keys-file", keys}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"all interfaces":     {[]string{"--listen", ":0"}, "--listen :0 is outside loopback: anybody who reaches it may use it"},
		"0.0.0.0":            {[]string{"--listen", "0.0.0.0:0"}, "outside loopback"},
		"IPv6":               {[]string{"--listen", "[::]:0"}, "outside loopback"},
		"a name":             {[]string{"--listen", "mm.example:0"}, "outside loopback"},
		"HTTP":               {[]string{"--http-listen", ":0"}, "--http-listen :0 is outside loopback"},
		"admin":              {[]string{"--admin-address", ":0"}, "--admin-address :0 is outside loopback"},
		"keys without TLS":   {[]string{"--listen", ":0", "--api-keys-file", keys}, "without TLS whoever is on the way reads"},
		"TLS without keys":   {[]string{"--listen", ":0", "--tls-cert", cert, "--tls-key", key}, "anybody who reaches it may use it"},
		"an admin key alone": {[]string{"--admin-address", ":0", "--admin-key-file", keys}, "without TLS"},
		"IPv6 loopback":      {[]string{"--listen", "[::1]:0", "--api-keys-file", "/none"}, "/none: no such file"},
		"localhost":          {[]string{"--listen", "localhost:0", "--api-keys-file", "/none"}, "/none: no such file"},
		"secured":            {append(secured, "--listen", ":0"), "TLS: open " + cert},
		"told": {[]string{"--listen", ":0", "--allow-insecure-listen", "--api-keys-file", "/none"},
			"/none: no such file"},
		"a key alone":     {[]string{"--tls-key", key}, "want both or neither"},
		"client CA alone": {[]string{"--tls-client-ca", key}, "--tls-client-ca: want --tls-cert"},
		"audience alone":  {[]string{"--oidc-audience", "a"}, "--oidc-issuer is missing"},
		"no audience":     {[]string{"--oidc-issuer", "https://issuer.example"}, "--oidc-audience is missing"},
		"a plaintext issuer": {[]string{"--oidc-issuer", "http://issuer.example", "--oidc-audience", "a"},
			"want an https URL"},
		"a role that is none": {[]string{"--oidc-issuer", "https://i.example", "--oidc-audience", "a", "--oidc-role-claim",
			"r", "--oidc-role", "x=boss"}, "want VALUE=ROLE"},
		"roles without a claim": {[]string{"--oidc-issuer", "https://i.example", "--oidc-audience", "a", "--oidc-role",
			"x=user"}, "want --oidc-role-claim"},
	} {
		args := append([]string{"serve", "--pace=1ms,1ms", "--admin-address=", "--listen=127.0.0.1:0"}, c.args...)
		// 2: what is given does not go together; 1: what it names is not there, or would be open to anybody
		if code, _, errs := mmserve(t, args...); code != 1 && code != 2 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: status %d: %s; want %q", name, code, errs, c.want)
		}
	}
}

// secureServe is a server with TLS, a key file and an admin key, and what a client needs.
type secureServe struct {
	addr, web, admin string
	cert, ca         string // files
	key, adminKey    string
	log              *logtest.Buffer
}

func startSecure(t *testing.T, args ...string) *secureServe {
	t.Helper()
	dir := t.TempDir()
	path := func(name string, content []byte) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	ca := authtest.NewCA(t)
	certPEM, keyPEM := ca.Issue(t, authtest.Leaf{CommonName: "mmserve"})
	code, out, errs := mmserve(t, "keys", "new", "--id", "k1", "--tenant", "acme")
	if code != 0 {
		t.Fatal(errs)
	}
	s := &secureServe{
		addr: sockettest.FreeAddress(t), web: sockettest.FreeAddress(t), admin: sockettest.FreeAddress(t),
		log:  new(logtest.Buffer),
		cert: path("cert", certPEM), ca: path("ca", ca.PEM), adminKey: path("admin", []byte("admin-0123456789abcdef\n")),
	}
	s.key = path("api-key", []byte(regexp.MustCompile(`(?m)^mms_.*$`).FindString(out)+"\n"))
	keys := path("keys", []byte(regexp.MustCompile(`(?m)^\{.*$`).FindString(out)))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, append([]string{"serve", "--listen", s.addr, "--http-listen", s.web, "--admin-address", s.admin,
			"--tls-cert", s.cert, "--tls-key", path("key", keyPEM), "--api-keys-file", keys, "--admin-key-file", s.adminKey,
			"--pace=1ms,1ms"}, args...), io.Discard, s.log)
	}()
	t.Cleanup(func() {
		stop()
		if code := <-done; code != 0 {
			t.Errorf("serve ended with status %d:\n%s", code, s.log)
		}
	})
	eventually(t, "the server is up", func() bool {
		code, _, _ := mmserve(t, "health", "--server", s.addr, "--tls-pin", s.cert)
		return code == 0
	})
	return s
}

// The commands reach a server with TLS and keys as their flags say, and tell what is missing. No log has a key.
func TestCommandsUseTLSAndKeys(t *testing.T) {
	s := startSecure(t)
	caption := []string{"caption", "--max-tokens", "4", "--wait", "1s", "--server", s.addr}
	image := filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png")
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"health by CA":      {[]string{"health", "--server", s.addr, "--tls-ca", s.ca}, 0, ""},
		"health, plaintext": {[]string{"health", "--server", s.addr, "--timeout", "2s"}, 1, "does the server speak TLS?"},
		"health, other pin": {[]string{"health", "--server", s.addr, "--tls-pin", s.ca, "--timeout", "2s"}, 1,
			"another certificate"},
		"caption":            {append(caption, "--tls-ca", s.ca, "--api-key-file", s.key, image), 0, "sample0.png: "},
		"caption, no key":    {append(caption, "--tls-ca", s.ca, image), 1, ""},
		"caption, wrong key": {append(caption, "--tls-ca", s.ca, "--api-key-file", s.adminKey, image), 1, ""},
		"caption, no CA":     {append(caption, "--tls", "--api-key-file", s.key, image), 1, ""},
		"bench": {[]string{"bench", "--server", s.addr, "--tls-ca", s.ca, "--api-key-file", s.key, "--requests", "3",
			"--rate", "50",
			"--warm-up", "0s", "--output", "2", "--quiet"}, 0, "3"},
		"bench of HTTP": {[]string{"bench", "--openai", "https://" + s.web, "--tls-ca", s.ca, "--api-key-file", s.key,
			"--requests", "3", "--rate", "50", "--warm-up", "0s", "--output", "2", "--quiet"}, 0, "0 failed"},
		"bench of HTTP, no CA": {[]string{"bench", "--openai", "https://" + s.web, "--api-key-file", s.key,
			"--requests", "1", "--rate", "50", "--warm-up", "0s", "--output", "2", "--quiet"}, 1, ""},
		"a key far away": {[]string{"health", "--server", "mm.example:1", "--api-key-file", s.key}, 1,
			"in plaintext: want --tls"},
		"a key that is none": {[]string{"health", "--server", s.addr, "--tls-ca", s.ca, "--api-key-file", s.cert}, 1,
			"want one key or token"},
	} {
		if code, out, errs := mmserve(t, c.args...); code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%s: status %d, %s%s; want %d, %q", name, code, out, errs, c.code, c.want)
		}
	}
	key, err := os.ReadFile(s.key)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(apiKeyVariable, string(key))
	if code, out, errs := mmserve(t, append(caption, "--tls-ca", s.ca, image)...); code != 0 {
		t.Errorf("with the variable: %s%s", out, errs)
	}
	if strings.Contains(s.log.String(), strings.TrimSpace(string(key))) ||
		!strings.Contains(s.log.String(), "credential=k1") {
		t.Errorf("the log has the key, or not whose it was:\n%s", s.log)
	}
}

// HTTP is behind the same TLS and keys; the admin listener on loopback is in plaintext, and wants its own key.
func TestHTTPAndAdminWantKeys(t *testing.T) {
	s := startSecure(t)
	key, err := os.ReadFile(s.key)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := readPool(s.ca)
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	const admin = "admin-0123456789abcdef"
	for name, c := range map[string]struct {
		url, header, value string
		status             int
	}{
		"models": {"https://" + s.web + "/v1/models", "Authorization",
			"Bearer " + strings.TrimSpace(string(key)), 200},
		"models, x-api-key": {"https://" + s.web + "/v1/models", "X-Api-Key", strings.TrimSpace(string(key)), 200},
		"models, none":      {"https://" + s.web + "/v1/models", "X", "", 401},
		"models, wrong":     {"https://" + s.web + "/v1/models", "Authorization", "Bearer " + admin, 401},
		"unknown path":      {"https://" + s.web + "/v1/other", "X", "", 401},
		"health":            {"https://" + s.web + "/health", "X", "", 200},
		"plaintext":         {"http://" + s.web + "/health", "X", "", 400},
		"admin, none":       {"http://" + s.admin + "/metrics", "X", "", 401},
		"admin, a user's key": {"http://" + s.admin + "/metrics", "Authorization", "Bearer " + strings.TrimSpace(string(key)),
			403},
		"admin":           {"http://" + s.admin + "/metrics", "Authorization", "Bearer " + admin, 200},
		"admin, probe":    {"http://" + s.admin + "/readyz", "X", "", 200},
		"admin, models":   {"http://" + s.admin + "/models", "X", "", 401},
		"admin, profiles": {"http://" + s.admin + "/debug/pprof/cmdline", "Authorization", "Bearer " + admin, 200},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(c.header, c.value)
		resp, err := web.Do(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, body, c.status)
		}
		if c.status == 401 && resp.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no WWW-Authenticate", name)
		}
	}
}

func TestKeysNew(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a user": {[]string{"--id", "a", "--tenant", "acme", "--expires", "1h", "--model", "m"}, 0,
			`"models":["m"]`},
		"an admin":         {[]string{"--id", "a", "--role", "admin"}, 0, `"role":"admin"`},
		"no tenant":        {[]string{"--id", "a"}, 1, "tenant"},
		"a wrong role":     {[]string{"--id", "a", "--role", "boss"}, 2, "want admin, user or read-only"},
		"a negative time":  {[]string{"--id", "a", "--tenant", "t", "--expires=-1h"}, 1, "--expires"},
		"a tenant of text": {[]string{"--id", "a", "--tenant", "a b"}, 1, "tenant"},
	} {
		if code, out, errs := mmserve(t, append([]string{"keys", "new"}, c.args...)...); code != c.code ||
			!strings.Contains(out+errs, c.want) {
			t.Errorf("%s: status %d, %s%s; want %d, %q", name, code, out, errs, c.code, c.want)
		}
	}
}

func TestDoctorOfSecurity(t *testing.T) {
	dir, ca := t.TempDir(), authtest.NewCA(t)
	path := func(name string, content []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	cert, key := ca.Issue(t, authtest.Leaf{CommonName: "mmserve", Expired: true})
	issuer := authtest.NewIssuer(t, ca)
	issuer.Publish(authtest.NewKey(t, "k", "ES256"))
	code, out, _ := mmserve(t, "doctor", "--tls-cert", path("c", cert), "--tls-key", path("k", key),
		"--api-keys-file", path("keys", []byte("# none\n")),
		"--oidc-issuer", issuer.URL, "--oidc-audience", "a", "--oidc-ca", path("ca", ca.PEM))
	for _, want := range []string{"TLS         FAILED: the certificate has expired", "API keys    0, of which", "has 1 keys"} {
		if code != 1 || !strings.Contains(out, want) {
			t.Errorf("status %d, no %q in\n%s", code, want, out)
		}
	}
}

// Outside loopback the admin listener speaks TLS, which it does not want certificates of clients for, and shows no
// profiles unless told to. On loopback it stays as it was.
func TestAdminOutsideLoopback(t *testing.T) {
	dir, ca := t.TempDir(), authtest.NewCA(t)
	f := securityFlags{
		TLSCert: filepath.Join(dir, "cert"), TLSKey: filepath.Join(dir, "key"), TLSClientCA: filepath.Join(dir, "ca"),
	}
	cert, key := ca.Issue(t, authtest.Leaf{CommonName: "mmserve"})
	for path, content := range map[string][]byte{f.TLSCert: cert, f.TLSKey: key, f.TLSClientCA: ca.PEM} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := f.open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	shown := admin.Options{Metrics: http.NotFoundHandler(), Level: new(slog.LevelVar), Ready: func() error { return nil }}
	if o := s.protect("127.0.0.1:9464", shown); o.TLS != nil || o.Access != nil || o.NoProfiles {
		t.Errorf("on loopback: %+v", o)
	}
	s.flags.Pprof = true
	if o := s.protect(":9464", shown); o.NoProfiles {
		t.Error("--pprof shows no profiles")
	}
	s.flags.Pprof = false
	web, free, err := admin.New(s.protect(":9464", shown))
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- admin.Serve(web, lis) }()
	defer func() { web.Close(); <-done; free() }()
	for name, c := range map[string]struct {
		path   string
		client bool
		status int
	}{
		"a probe": {"/readyz", false, 200}, "nobody's profile": {"/debug/pprof/", false, 401},
		"a user's certificate": {"/loglevel", true, 403},
	} {
		config := &tls.Config{RootCAs: ca.Pool()}
		if c.client {
			config.Certificates = []tls.Certificate{ca.Pair(t, authtest.Leaf{CommonName: "acme"})}
		}
		asks := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+lis.Addr().String()+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := asks.Do(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, c.status)
		}
	}
}

// SIGHUP reads everything again: what is broken stays as it was and is told of, and keeps nothing else from being read.
func TestSecurityReload(t *testing.T) {
	dir, ca := t.TempDir(), authtest.NewCA(t)
	f := securityFlags{
		TLSCert: filepath.Join(dir, "cert"), TLSKey: filepath.Join(dir, "key"), APIKeys: filepath.Join(dir, "keys"),
		AdminKeyFile: filepath.Join(dir, "admin"),
	}
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := ca.Issue(t, authtest.Leaf{CommonName: "mmserve"})
	e := auth.Entry{ID: "a", Tenant: "acme", Role: auth.User}
	secret := auth.NewKey(&e)
	line, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	write(f.TLSCert, string(cert))
	write(f.TLSKey, string(key))
	write(f.APIKeys, string(line))
	write(f.AdminKeyFile, "admin-0123456789abcdef")
	s, err := f.open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	knows := func() bool {
		_, err := s.auth.Authenticate(t.Context(), auth.Credentials{Secrets: []string{secret}})
		return err == nil
	}
	if err := s.Reload(); err != nil || !knows() {
		t.Errorf("nothing has changed: %v, the key counts: %t", err, knows())
	}
	write(f.TLSCert, "broken")
	write(f.AdminKeyFile, "short")
	write(f.APIKeys, "# none\n")
	err = s.Reload()
	if err == nil || !strings.Contains(err.Error(), f.TLSCert) || !strings.Contains(err.Error(), f.AdminKeyFile) {
		t.Errorf("two broken files: %v", err)
	}
	if knows() || s.tls.Leaf().Subject.CommonName != "mmserve" {
		t.Error("the key counts still, or the certificate is gone")
	}
}

// The queue that a caption run holds asks nobody for a credential, and is held to loopback unless told otherwise.
func TestQueueOutsideLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"0.0.0.0:1": true, ":1": true, "10.0.0.1:1": true, "127.0.0.1:1": false, "[::1]:1": false,
	} {
		for _, told := range []bool{false, true} {
			f := sourceFlags{Queue: "listen:" + address, insecureFlags: insecureFlags{AllowInsecureListen: told}}
			err := f.checkQueue()
			if refused := err != nil && strings.Contains(err.Error(), "outside loopback"); refused != (want && !told) {
				t.Errorf("%s, told %t: %v", address, told, err)
			}
		}
	}
}
