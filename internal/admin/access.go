package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/reload"
	"github.com/mmserve/mmserve/internal/socket"
)

// Access says who may use the listener. One of its fields is set at least.
type Access struct {
	// Key is the hash of the listener's own key.
	Key *reload.Files[[sha256.Size]byte]
	// Auth knows others: an admin may do everything, and who is read-only and has no tenant may read the metrics.
	Auth *auth.Authenticator
}

// minKey is the length of the shortest key, in bytes, which somebody may have typed.
const minKey = 16

// OpenKey reads a file that holds a key and nothing else, as Prometheus' credentials_file does.
func OpenKey(path string, log *slog.Logger) (*reload.Files[[sha256.Size]byte], error) {
	return reload.Open("admin key", log, func(contents [][]byte) (sum [sha256.Size]byte, err error) {
		key := bytes.TrimSpace(contents[0])
		if len(key) < minKey || bytes.ContainsAny(key, " \t\r\n") {
			return sum, fmt.Errorf("%s: want one key of %d bytes or more, without spaces", path, minKey)
		}
		return sha256.Sum256(key), nil
	}, path)
}

// probes are what anybody may ask: whether the process lives and is ready.
var probes = map[string]bool{"/healthz": true, "/readyz": true}

// nearKey is where a request's context says whether only this machine reaches the listener.
type nearKey struct{}

// keepPagesOut refuses what a browser asks for another site's page. Where only this machine reaches the listener and
// nothing else says who asks, it refuses foreign names too: a page's own name may have been made to resolve to here. A
// certificate would not have that name.
func (o Options) keepPagesOut(next http.Handler) http.Handler {
	open := o.Access == nil && o.TLS == nil
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		near, _ := r.Context().Value(nearKey{}).(bool)
		site := r.Header.Get("Sec-Fetch-Site")
		switch {
		case r.Header.Get("Origin") != "" || site != "" && site != "none" && site != "same-origin":
			http.Error(w, "browsers ask nothing here for pages of other sites", http.StatusForbidden)
		case open && near && !socket.OwnHost(r.Host):
			http.Error(w, "this Host is not answered here: ask by IP address or as localhost", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// guard has requests answered whose callers may ask. Everybody may where a is nil. refused is told of those that may
// not.
func (a *Access) guard(next http.Handler, refused func(r *http.Request, id string, status int)) http.Handler {
	if a == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if probes[r.URL.Path] {
			next.ServeHTTP(w, r)
			return
		}
		id, err := a.identify(r)
		switch {
		case err != nil:
			refused(r, "", http.StatusUnauthorized)
			w.Header().Add("WWW-Authenticate", `Bearer realm="mmserve admin"`)
			w.Header().Add("WWW-Authenticate", `Basic realm="mmserve admin"`)
			http.Error(w, err.Error(), http.StatusUnauthorized)
		case id.Role == auth.Admin, id.Role == auth.ReadOnly && r.URL.Path == "/metrics":
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), operatorKey{}, id.ID)))
		default:
			refused(r, id.ID, http.StatusForbidden)
			http.Error(w, "the credential does not allow this", http.StatusForbidden)
		}
	})
}

// operatorKey is where a request's context has the id of its credential.
type operatorKey struct{}

// keyID is what the listener's own key is called in the audit log.
const keyID = "admin-key"

// identify says who asks, and by the role what it may do: auth.Admin everything, auth.ReadOnly metrics, others nothing.
// The key or token may come as the password of Basic too, which is all that `go tool pprof` and browsers can send.
func (a *Access) identify(r *http.Request) (auth.Identity, error) {
	c := auth.FromRequest(r)
	if _, password, ok := r.BasicAuth(); ok && len(c.Secrets) == 1 {
		c.Secrets[0] = password
	}
	if a.Key != nil && len(c.Secrets) == 1 {
		want, got := a.Key.Value(), sha256.Sum256([]byte(c.Secrets[0]))
		if subtle.ConstantTimeCompare(want[:], got[:]) == 1 {
			return auth.Identity{ID: keyID, Role: auth.Admin}, nil
		}
	}
	if a.Auth == nil {
		if len(c.Secrets) == 0 {
			return auth.Identity{}, auth.ErrMissing
		}
		return auth.Identity{}, auth.ErrRefused
	}
	id, err := a.Auth.Authenticate(r.Context(), c)
	switch {
	case errors.Is(err, auth.ErrRole):
		return auth.Identity{}, nil
	case err != nil:
		return auth.Identity{}, err
	case id.Role == auth.ReadOnly && id.Tenant != "":
		return auth.Identity{ID: id.ID}, nil // the metrics are of all tenants
	}
	return *id, nil
}
