package auth_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/auth/authtest"
)

const audience = "mmserve"

// issuer starts one with a key of each algorithm, and what checks its tokens.
func issuer(
	t testing.TB, change func(*auth.IssuerOptions),
) (i *authtest.Issuer, a *auth.Authenticator, rs, es jose.JSONWebKey) {
	t.Helper()
	ca := authtest.NewCA(t)
	i = authtest.NewIssuer(t, ca)
	rs, es = authtest.NewKey(t, "rs", jose.RS256), authtest.NewKey(t, "es", jose.ES256)
	i.Publish(rs, es)
	o := auth.IssuerOptions{URL: i.URL, Audience: audience, RootCAs: ca.Pool(), Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	tokens, err := auth.NewIssuer(o)
	if err != nil {
		t.Fatal(err)
	}
	return i, &auth.Authenticator{Tokens: tokens}, rs, es
}

// claims are those of a token that counts, with changes; a change to nil takes one out.
func claims(i *authtest.Issuer, changes map[string]any) map[string]any {
	c := map[string]any{"iss": i.URL, "aud": audience, "sub": "jo", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func TestTokens(t *testing.T) {
	i, a, rs, es := issuer(t, nil)
	foreign := authtest.NewKey(t, "rs", jose.RS256) // the name of the issuer's key, but another
	good := authtest.Sign(t, rs, claims(i, nil))
	elsewhere := map[string]any{"iss": "https://example.com"}
	slash := map[string]any{"iss": i.URL + "/"}
	hour := time.Hour.Seconds()
	now := float64(time.Now().Unix())
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"RS256":               {authtest.Sign(t, rs, claims(i, nil)), nil},
		"ES256":               {authtest.Sign(t, es, claims(i, nil)), nil},
		"one of audiences":    {authtest.Sign(t, rs, claims(i, map[string]any{"aud": []string{"x", audience}})), nil},
		"expired":             {authtest.Sign(t, rs, claims(i, map[string]any{"exp": now - 1})), auth.ErrRefused},
		"no expiry":           {authtest.Sign(t, rs, claims(i, map[string]any{"exp": nil})), auth.ErrRefused},
		"not before":          {authtest.Sign(t, rs, claims(i, map[string]any{"nbf": now + hour})), auth.ErrRefused},
		"other audience":      {authtest.Sign(t, rs, claims(i, map[string]any{"aud": "other"})), auth.ErrRefused},
		"no audience":         {authtest.Sign(t, rs, claims(i, map[string]any{"aud": nil})), auth.ErrRefused},
		"other issuer":        {authtest.Sign(t, rs, claims(i, elsewhere)), auth.ErrRefused},
		"issuer with a slash": {authtest.Sign(t, rs, claims(i, slash)), auth.ErrRefused},
		"another's signature": {authtest.Sign(t, foreign, claims(i, nil)), auth.ErrRefused},
		"no signature":        {unsigned(t, "none", claims(i, nil)), auth.ErrRefused},
		"None":                {unsigned(t, "None", claims(i, nil)), auth.ErrRefused},
		"HS256 of the key":    {withPublicKey(t, rs, claims(i, nil)), auth.ErrRefused},
		"changed":             {swapPayload(t, good, claims(i, map[string]any{"sub": "root"})), auth.ErrRefused},
		"no subject":          {authtest.Sign(t, rs, claims(i, map[string]any{"sub": nil})), auth.ErrRole},
		"a tenant with space": {authtest.Sign(t, rs, claims(i, map[string]any{"sub": "a b"})), auth.ErrRole},
		"not a token":         {"mms_x", auth.ErrRefused},
		"dots":                {"...", auth.ErrRefused},
		"JSON":                {`{"payload":"e30","signatures":[]}`, auth.ErrRefused},
	} {
		id, err := who(t, a, c.token)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if c.want == nil && (id == nil || id.Tenant != "jo" || id.ID != "jo" || id.Role != auth.User) {
			t.Errorf("%s: %+v, want the user jo", name, id)
		}
	}
	if n := i.Fetches.Load(); n > 2 {
		t.Errorf("the keys were fetched %d times", n)
	}
}

// unsigned is a token with an algorithm that signs nothing.
func unsigned(t testing.TB, algorithm string, c map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"`+algorithm+`","typ":"JWT"}`)) + "." + encode(payload) + "."
}

// withPublicKey signs with HMAC, whose key is what everybody knows of k.
func withPublicKey(t testing.TB, k jose.JSONWebKey, c map[string]any) string {
	t.Helper()
	public, err := k.Public().MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return authtest.Sign(t, jose.JSONWebKey{KeyID: k.KeyID, Algorithm: string(jose.HS256), Key: public}, c)
}

// swapPayload is a token with the signature of other claims.
func swapPayload(t testing.TB, token string, c map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString(payload) + "." + parts[2]
}

func TestTokenClaims(t *testing.T) {
	i, a, rs, _ := issuer(t, func(o *auth.IssuerOptions) {
		o.TenantClaim, o.RoleClaim = "https://mmserve.example/tenant", "realm_access.roles"
		o.Roles = map[string]auth.Role{"operators": auth.Admin, "people": auth.User, "probes": auth.ReadOnly}
	})
	for name, c := range map[string]struct {
		tenant, roles any
		want          string
	}{
		"a list":             {"acme", map[string]any{"roles": []string{"x", "people"}}, "acme user"},
		"the most counts":    {"acme", map[string]any{"roles": []string{"probes", "operators"}}, "acme admin"},
		"words":              {"acme", map[string]any{"roles": "openid probes"}, "acme read-only"},
		"an unmapped role":   {"acme", map[string]any{"roles": []string{"admin"}}, "role"},
		"no role":            {"acme", nil, "role"},
		"roles are a number": {"acme", map[string]any{"roles": 3}, "role"},
		"not nested":         {"acme", "people", "role"},
		"no tenant":          {nil, map[string]any{"roles": "people"}, "role"},
		"two tenants":        {[]string{"a", "b"}, map[string]any{"roles": "people"}, "role"},
		"a list of one":      {[]string{"a"}, map[string]any{"roles": "people"}, "a user"},
	} {
		id, err := who(t, a, authtest.Sign(t, rs,
			claims(i, map[string]any{"https://mmserve.example/tenant": c.tenant, "realm_access": c.roles})))
		got := "role"
		if err == nil {
			got = id.Tenant + " " + id.Role.String()
		} else if !errors.Is(err, auth.ErrRole) {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// A new key is found when the first token has it; one that was withdrawn counts no more after a fetch.
func TestTokenKeyRotates(t *testing.T) {
	i, a, rs, _ := issuer(t, nil)
	token := authtest.Sign(t, rs, claims(i, nil))
	if _, err := who(t, a, token); err != nil {
		t.Fatal(err)
	}
	next := authtest.NewKey(t, "next", jose.ES256)
	i.Publish(next)
	auth.ForgetFetch(a.Tokens) // as if the pause between two fetches had passed
	if _, err := who(t, a, authtest.Sign(t, next, claims(i, nil))); err != nil {
		t.Errorf("the new key: %v", err)
	}
	if _, err := who(t, a, token); !errors.Is(err, auth.ErrRefused) {
		t.Errorf("the key that was withdrawn: %v", err)
	}
	before, stranger := i.Fetches.Load(), authtest.NewKey(t, "stranger", jose.ES256)
	for range 20 {
		if _, err := who(t, a, authtest.Sign(t, stranger, claims(i, nil))); !errors.Is(err, auth.ErrRefused) {
			t.Errorf("a key that is not the issuer's: %v", err)
		}
	}
	if n := i.Fetches.Load() - before; n != 0 {
		t.Errorf("20 tokens of an unknown key, one after the other, made %d requests within the pause", n)
	}
}

// While the issuer is down tokens of known keys count, others do not, whatever their number one fetch is tried, and the
// issuer is found again.
func TestIssuerDown(t *testing.T) {
	i, a, rs, _ := issuer(t, nil)
	i.Down.Store(true)
	known, next := authtest.Sign(t, rs, claims(i, nil)), authtest.NewKey(t, "next", jose.RS256)
	unknown := authtest.Sign(t, next, claims(i, nil))
	if _, err := who(t, a, known); !errors.Is(err, auth.ErrUnchecked) {
		t.Errorf("before any key is known: %v", err)
	}
	i.Down.Store(false)
	if err := a.Tokens.Reload(); err != nil {
		t.Fatal(err)
	}
	i.Down.Store(true)
	auth.ForgetFetch(a.Tokens)
	before := i.Fetches.Load()
	var callers sync.WaitGroup
	for n := range 200 {
		callers.Go(func() {
			if _, err := who(t, a, known); err != nil {
				t.Errorf("a known key: %v", err)
			}
			k := jose.JSONWebKey{KeyID: fmt.Sprint(n), Algorithm: next.Algorithm, Key: next.Key}
			other := authtest.Sign(t, k, claims(i, nil))
			for _, token := range []string{unknown, other} {
				if _, err := who(t, a, token); !errors.Is(err, auth.ErrRefused) {
					t.Errorf("an unknown key: %v", err)
				}
			}
		})
	}
	callers.Wait()
	if err := a.Tokens.Reload(); err == nil {
		t.Error("fetching from an issuer that is down worked")
	}
	if _, err := who(t, a, known); err != nil {
		t.Errorf("a known key after a fetch that failed: %v", err)
	}
	// The issuer is asked where its keys are first, and does not say.
	if n := i.Fetches.Load() - before; n > 1 {
		t.Errorf("the keys were fetched %d times, want once at most", n)
	}
}

// An issuer that answers without end, leads elsewhere or is another is no source of keys.
func TestHostileIssuer(t *testing.T) {
	ca := authtest.NewCA(t)
	for name, handler := range map[string]func(url string) http.HandlerFunc{
		"endless": func(string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				for n := 0; n < 64; n++ {
					if _, err := w.Write(make([]byte, 1<<20)); err != nil {
						return
					}
				}
				t.Error("64 MiB were read")
			}
		},
		"plaintext keys": func(url string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"http://127.0.0.1:1/keys"}`, url)
			}
		},
		"a redirect to plaintext": func(string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
			}
		},
		"another issuer": func(string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, `{"issuer":"https://example.com","jwks_uri":"https://example.com/keys"}`)
			}
		},
		"no keys": func(url string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"keys":[]}`, url, url+"/keys")
			}
		},
		"a symmetric key": func(url string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"keys":[{"kty":"oct","k":"AAAA"}]}`, url, url+"/keys")
			}
		},
	} {
		var h http.HandlerFunc
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(w, r) }))
		s.TLS = authtest.ServerConfig(t, ca)
		s.StartTLS()
		h = handler(s.URL)
		tokens, err := auth.NewIssuer(auth.IssuerOptions{
			URL: s.URL, Audience: audience, RootCAs: ca.Pool(), Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := tokens.Reload(); err == nil {
			t.Errorf("%s: keys were taken", name)
		}
		s.Close()
	}
}

func TestIssuerOptions(t *testing.T) {
	for name, o := range map[string]auth.IssuerOptions{
		"plaintext":   {URL: "http://issuer.example", Audience: "a"},
		"no URL":      {Audience: "a"},
		"a query":     {URL: "https://issuer.example?x", Audience: "a"},
		"a password":  {URL: "https://u:p@issuer.example", Audience: "a"},
		"no audience": {URL: "https://issuer.example"},
	} {
		if _, err := auth.NewIssuer(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
