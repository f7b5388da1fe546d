package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

const (
	// refreshEvery is how often the keys are fetched without a reason, retryEvery while there are none.
	refreshEvery, retryEvery = 10 * time.Minute, 15 * time.Second
	// fetchPause is the least time between two fetches that tokens with unknown keys cause.
	fetchPause = 10 * time.Second
	// fetchTime is how long a fetch may take.
	fetchTime = 10 * time.Second
	// maxFetch is the most that an issuer may answer, in bytes, and maxKeys the most keys.
	maxFetch, maxKeys = 1 << 20, 64
	// maxWaiting is how many callers may wait for a fetch at once; the others are refused.
	maxWaiting = 64
)

// keySet has the public keys of an issuer. go-oidc's own fetches once for each token whose key it does not know, and
// goes on to trust keys that were withdrawn.
type keySet struct {
	issuer string
	client *http.Client
	log    *slog.Logger
	keys   atomic.Pointer[jose.JSONWebKeySet] // nil before the first fetch

	mu      sync.Mutex
	asked   time.Time     // when a token last caused a fetch
	flight  chan struct{} // closed when that fetch is over; nil: none is under way
	waiting atomic.Int32
}

func newKeySet(issuer string, roots *x509.CertPool, log *slog.Logger) *keySet {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	t.MaxResponseHeaderBytes = 64 << 10
	t.DisableKeepAlives = true // minutes pass between two fetches
	client := &http.Client{Transport: secureTransport{t}, Timeout: fetchTime}
	return &keySet{issuer: issuer, client: client, log: log}
}

// run fetches until ctx is done.
func (s *keySet) run(ctx context.Context) {
	for {
		_ = s.fetch() // it is logged
		wait := refreshEvery
		if s.keys.Load() == nil {
			wait = retryEvery
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// fetch gets the keys. Those of before stay where it fails.
func (s *keySet) fetch() error {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTime)
	defer cancel()
	keys, err := s.get(ctx)
	if err != nil {
		s.log.Error("the issuer's keys could not be fetched", "error", fmt.Sprintf("%.300s", err.Error()),
			"known", s.keys.Load() != nil)
		return err
	}
	s.keys.Store(keys)
	return nil
}

// get asks the issuer where its keys are, and for them.
func (s *keySet) get(ctx context.Context) (*jose.JSONWebKeySet, error) {
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, s.client), s.issuer)
	if err != nil {
		return nil, err
	}
	var where struct {
		JWKS string `json:"jwks_uri"`
	}
	if err := p.Claims(&where); err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, where.JWKS, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the issuer's keys: %s", resp.Status)
	}
	var all jose.JSONWebKeySet
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		return nil, fmt.Errorf("the issuer's keys: %w", err)
	}
	keys := new(jose.JSONWebKeySet)
	for _, k := range all.Keys {
		if k.Use != "enc" && k.IsPublic() && k.Valid() {
			keys.Keys = append(keys.Keys, k)
		}
	}
	if n := len(keys.Keys); n == 0 || n > maxKeys {
		return nil, fmt.Errorf("the issuer has %d keys for signatures; want 1 to %d", n, maxKeys)
	}
	return keys, nil
}

// ready says whether keys are known, and tries to fetch them once if they are not.
func (s *keySet) ready(ctx context.Context) bool {
	if s.keys.Load() == nil {
		s.fetchSoon(ctx)
	}
	return s.keys.Load() != nil
}

// fetchSoon has the keys fetched, unless that was tried a short while ago, and waits for the end of it.
func (s *keySet) fetchSoon(ctx context.Context) {
	s.mu.Lock()
	if now := time.Now(); s.flight == nil && now.Sub(s.asked) >= fetchPause {
		s.asked = now
		flight := make(chan struct{})
		s.flight = flight
		go func() { // it ends within fetchTime
			_ = s.fetch()
			s.mu.Lock()
			s.flight = nil
			s.mu.Unlock()
			close(flight)
		}()
	}
	flight := s.flight
	s.mu.Unlock()
	if flight == nil {
		return
	}
	defer s.waiting.Add(-1)
	if s.waiting.Add(1) > maxWaiting {
		return
	}
	select {
	case <-flight:
	case <-ctx.Done():
	}
}

var errNoKey = errors.New("no key of the issuer verifies the token")

// VerifySignature implements oidc.KeySet, whose user has checked the algorithm.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
	if err != nil || len(jws.Signatures) != 1 {
		return nil, errNoKey
	}
	payload, known := verify(jws, s.keys.Load())
	if payload == nil && !known {
		s.fetchSoon(ctx)
		payload, _ = verify(jws, s.keys.Load())
	}
	if payload == nil {
		return nil, errNoKey
	}
	return payload, nil
}

// verify gives what was signed, nil if no key fits. known says that the key which the token names is there: fetching
// them again would not help.
func verify(jws *jose.JSONWebSignature, keys *jose.JSONWebKeySet) (payload []byte, known bool) {
	header := jws.Signatures[0].Header
	for i := range keys.Keys {
		k := &keys.Keys[i]
		if header.KeyID != "" && k.KeyID != header.KeyID {
			continue
		}
		known = known || header.KeyID != ""
		if k.Algorithm != "" && k.Algorithm != header.Algorithm {
			continue
		}
		if payload, err := jws.Verify(k); err == nil {
			return payload, true
		}
	}
	return nil, known
}
