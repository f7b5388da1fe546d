package authtest

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// Issuer is an OpenID Connect issuer that listens on loopback, through TLS.
type Issuer struct {
	// URL is what tokens have in iss.
	URL string
	// Fetches counts how often the keys were asked for.
	Fetches atomic.Int64
	// Down has it answer nothing but errors.
	Down atomic.Bool

	mu   sync.Mutex
	keys []jose.JSONWebKey
}

// NewIssuer starts an issuer whose certificate ca signed. It has no keys yet.
func NewIssuer(t testing.TB, ca *CA) *Issuer {
	t.Helper()
	i := new(Issuer)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		i.answer(w, map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		i.Fetches.Add(1)
		i.mu.Lock()
		defer i.mu.Unlock()
		var public jose.JSONWebKeySet
		for _, k := range i.keys {
			public.Keys = append(public.Keys, k.Public())
		}
		i.answer(w, public)
	})
	s := httptest.NewUnstartedServer(mux)
	s.TLS = ServerConfig(t, ca)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	i.URL = s.URL
	return i
}

func (i *Issuer) answer(w http.ResponseWriter, v any) {
	if i.Down.Load() {
		http.Error(w, "out of order", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// NewKey makes a key of an algorithm, RS256 or ES256, which the issuer does not publish yet.
func NewKey(t testing.TB, id string, algorithm jose.SignatureAlgorithm) jose.JSONWebKey {
	t.Helper()
	k := jose.JSONWebKey{KeyID: id, Algorithm: string(algorithm), Use: "sig"}
	if algorithm == jose.RS256 {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		k.Key = key
		return k
	}
	k.Key = newKey(t)
	return k
}

// Publish has the issuer have these keys, and no others.
func (i *Issuer) Publish(keys ...jose.JSONWebKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = keys
}

// Sign makes a token of claims with a key.
func Sign(t testing.TB, k jose.JSONWebKey, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(k.Algorithm), Key: k},
		new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
