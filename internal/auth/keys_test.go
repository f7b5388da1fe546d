package auth_test

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/auth"
)

// line is an entry as a file has it, and its key.
func line(t testing.TB, e auth.Entry) (key, text string) {
	t.Helper()
	key = auth.NewKey(&e)
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(b) + "\n"
}

// keysFile writes lines to a file and opens it.
func keysFile(t testing.TB, lines string) (path string, a *auth.Authenticator) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := auth.OpenKeys(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return path, &auth.Authenticator{Keys: keys}
}

func who(t testing.TB, a *auth.Authenticator, secrets ...string) (*auth.Identity, error) {
	t.Helper()
	return a.Authenticate(t.Context(), auth.Credentials{Secrets: secrets})
}

// The key is 256 random bits in base64url, its hash sha256sum's.
func TestNewKey(t *testing.T) {
	var e auth.Entry
	key := auth.NewKey(&e)
	if len(key) != len("mms_")+43 || !strings.HasPrefix(key, "mms_") || key == auth.NewKey(new(auth.Entry)) {
		t.Errorf("the key is %q", key)
	}
	if sum := sha256.Sum256([]byte(key)); e.Key != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Errorf("the line has %s, want the hash of the key", e.Key)
	}
}

func TestKeys(t *testing.T) {
	past, future := time.Now().Add(-time.Second), time.Now().Add(time.Hour)
	narrow := auth.Entry{ID: "u", Tenant: "acme", Role: auth.User, Models: []string{"smol"}, Expires: &future}
	user, userLine := line(t, narrow)
	admin, adminLine := line(t, auth.Entry{ID: "a", Role: auth.Admin})
	expired, expiredLine := line(t, auth.Entry{ID: "x", Tenant: "acme", Role: auth.User, Expires: &past})
	stranger, _ := line(t, auth.Entry{ID: "s"})
	_, a := keysFile(t, "# keys\n\n"+userLine+adminLine+expiredLine)

	id, err := who(t, a, user)
	if err != nil || id.ID != "u" || id.Tenant != "acme" || id.Role != auth.User ||
		!id.MayUse("smol") || id.MayUse("other") {
		t.Errorf("a user is %+v, %v", id, err)
	}
	if id, err = who(t, a, admin, admin); err != nil || id.Role != auth.Admin || !id.MayUse("any") {
		t.Errorf("an admin that sends its key twice is %+v, %v", id, err)
	}
	for name, secrets := range map[string][]string{
		"expired": {expired}, "unknown": {stranger}, "another kind": {""},
		"cut": {user[:len(user)-1]}, "longer": {user + "A"},
		"two": {user, admin}, "a token": {"eyJhbGciOiJub25lIn0.e30."}, "huge": {"mms_" + strings.Repeat("x", 1<<20)},
		"the hash": {strings.TrimSuffix(strings.SplitN(userLine, `"`, 8)[7], `"`)},
	} {
		if id, err := who(t, a, secrets...); !errors.Is(err, auth.ErrRefused) {
			t.Errorf("%s: %+v, %v; want it refused", name, id, err)
		}
	}
	if _, err := who(t, a); !errors.Is(err, auth.ErrMissing) {
		t.Errorf("no credential: %v", err)
	}
}

// A key that is taken out counts no more, a broken file changes nothing, and says so once.
func TestKeysReload(t *testing.T) {
	one, oneLine := line(t, auth.Entry{ID: "1", Tenant: "a", Role: auth.User})
	two, twoLine := line(t, auth.Entry{ID: "2", Tenant: "b", Role: auth.User})
	path, a := keysFile(t, oneLine)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, file    string
		broken        bool
		first, second bool
	}{
		{"two", oneLine + twoLine, false, true, true},
		{"cut off", oneLine + twoLine[:20], true, true, true},
		{"emptied", "", true, true, true},
		{"one taken out", twoLine, false, false, true},
		{"none", "# none\n", false, false, false},
	} {
		write(c.file)
		if err := a.Keys.Reload(); (err != nil) != c.broken {
			t.Errorf("%s: %v", c.name, err)
		}
		for key, want := range map[string]bool{one: c.first, two: c.second} {
			if _, err := who(t, a, key); (err == nil) != want {
				t.Errorf("%s: %v, want it accepted: %t", c.name, err, want)
			}
		}
	}
}

// Errors name the line and what is wanted, and quote nothing: somebody may have put a key where its hash belongs.
func TestKeysMalformed(t *testing.T) {
	const secret = "mms_canary"
	_, good := line(t, auth.Entry{ID: "g", Tenant: "a", Role: auth.User})
	hash := strings.Repeat("ab", 32)
	for name, c := range map[string]struct{ file, want string }{
		"empty":        {"", "empty"},
		"no JSON":      {good + secret, "line 2: want a JSON object"},
		"a key":        {`{"id":"a","tenant":"t","role":"user","key":"` + secret + `"}`, `line 1: key: want "sha256:"`},
		"no hash":      {`{"id":"a","tenant":"t","role":"user"}`, "either key or certificate"},
		"both":         {`{"id":"a","tenant":"t","role":"user","key":"sha256:` + hash + `","certificate":"CN=x"}`, "either key or certificate"},
		"short hash":   {`{"id":"a","tenant":"t","role":"user","key":"sha256:abcd"}`, "64 hexadecimal digits"},
		"role":         {`{"id":"a","tenant":"t","role":"` + secret + `","key":"sha256:` + hash + `"}`, "role (admin"},
		"no role":      {`{"id":"a","tenant":"t","key":"sha256:` + hash + `"}`, "role: want"},
		"no tenant":    {`{"id":"a","role":"user","key":"sha256:` + hash + `"}`, "tenant: the role user"},
		"tenant":       {`{"id":"a","tenant":"` + secret + ` b","role":"user","key":"sha256:` + hash + `"}`, "tenant: want 1 to 128"},
		"id":           {`{"id":"","tenant":"t","role":"user","key":"sha256:` + hash + `"}`, "id: want"},
		"unknown":      {`{"id":"a","tenant":"t","role":"user","` + secret + `":1}`, "want a JSON object"},
		"two on one":   {strings.TrimSpace(good) + " " + secret, "line 1: want one JSON object"},
		"same id":      {good + `{"id":"g","tenant":"t","role":"user","key":"sha256:` + hash + `"}`, "line 2: id:"},
		"same key":     {good + strings.Replace(good, `"g"`, `"h"`, 1), "line 2: key:"},
		"expiry":       {`{"id":"a","tenant":"t","role":"user","key":"sha256:` + hash + `","expires":"` + secret + `"}`, "RFC 3339"},
		"no models":    {`{"id":"a","tenant":"t","role":"user","key":"sha256:` + hash + `","models":[]}`, "models:"},
		"a huge line":  {`{"id":"` + strings.Repeat("x", 1<<20) + `"}`, "line 1"},
		"a deep value": {strings.Repeat("[", 1<<20), "line 1"},
	} {
		_, err := auth.ParseKeys([]byte(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secret) ||
			len(err.Error()) > 300 {
			t.Errorf("%s: %v; want %q, without quoting", name, err, c.want)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	_, good := line(f, auth.Entry{ID: "g", Tenant: "a", Role: auth.User})
	f.Add([]byte(good))
	f.Add([]byte("# none\n"))
	f.Add([]byte(`{"id":"a","certificate":"CN=x","role":"admin"}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		k, err := auth.ParseKeys(file)
		if err != nil {
			return
		}
		again, err := auth.ParseKeys(append(file, '\n'))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := k.Len(time.Now())
		if m, _ := again.Len(time.Now()); n != m {
			t.Errorf("%d keys, and %d with one more line end", n, m)
		}
	})
}

// Where certificates stand for tenants, their names have to be names of tenants, and they have to be valid now.
func TestCertificateNames(t *testing.T) {
	uri, err := url.Parse("spiffe://prod/billing")
	if err != nil {
		t.Fatal(err)
	}
	future := time.Now().Add(time.Hour)
	a := &auth.Authenticator{Certificates: true}
	for name, c := range map[string]struct {
		cert   x509.Certificate
		tenant string
		err    error
	}{
		"a common name":    {x509.Certificate{Subject: pkix.Name{CommonName: "acme"}, NotAfter: future}, "acme", nil},
		"a URI":            {x509.Certificate{URIs: []*url.URL{uri}, NotAfter: future}, uri.String(), nil},
		"no name":          {x509.Certificate{NotAfter: future}, "", auth.ErrRole},
		"a name of spaces": {x509.Certificate{Subject: pkix.Name{CommonName: "a b"}, NotAfter: future}, "", auth.ErrRole},
		"a line end":       {x509.Certificate{Subject: pkix.Name{CommonName: "a\nb"}, NotAfter: future}, "", auth.ErrRole},
		"expired":          {x509.Certificate{Subject: pkix.Name{CommonName: "acme"}}, "", auth.ErrRefused},
	} {
		id, err := a.Authenticate(t.Context(), auth.Credentials{Certificate: &c.cert})
		if !errors.Is(err, c.err) || err == nil && (id.Tenant != c.tenant || id.Role != auth.User) {
			t.Errorf("%s: %+v, %v; want tenant %q, %v", name, id, err, c.tenant, c.err)
		}
	}
}
