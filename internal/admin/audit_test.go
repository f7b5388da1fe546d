package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/audit"
)

// What operators change is kept before it is done and after. What cannot be kept is not done.
func TestAudit(t *testing.T) {
	a, _, keys := access(t)
	var lines []string
	full := false
	level := new(slog.LevelVar)
	addr := "http://" + start(t, Options{
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "m 1\n") }),
		Ready:   func() error { return nil }, Level: level, Access: a,
		Audit: func(e *audit.Event) error {
			if full {
				return errors.New("full")
			}
			lines = append(lines, strings.Join([]string{e.Kind, e.Action, e.Decision, e.Credential, e.Peer}, "|"))
			return nil
		},
	})
	ask := func(method, path, key, body string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(context.Background(), method, addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Close = true
		r.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	ask("GET", "/metrics", adminKey, "")
	ask("GET", "/loglevel", adminKey, "")
	ask("PUT", "/loglevel", adminKey, "debug")
	ask("PUT", "/loglevel", keys["root"], "nonsense")
	ask("GET", "/debug/pprof/cmdline", adminKey, "")
	ask("PUT", "/loglevel", keys["acme"], "warn")
	ask("PUT", "/loglevel", "wrong", "warn")
	ask("PUT", "/Xq7canary", adminKey, "Xq7canary")
	want := []string{
		"admin|PUT /loglevel|allowed|admin-key|127.0.0.1", "admin|PUT /loglevel|OK|admin-key|127.0.0.1",
		"admin|PUT /loglevel|allowed|root|127.0.0.1", "admin|PUT /loglevel|Bad Request|root|127.0.0.1",
		"admin|GET /debug/pprof|allowed|admin-key|127.0.0.1", "admin|GET /debug/pprof|OK|admin-key|127.0.0.1",
		"credential|PUT /loglevel|Forbidden|acme|127.0.0.1", "credential|PUT /loglevel|Unauthorized||127.0.0.1",
		"admin|PUT other|allowed|admin-key|127.0.0.1", "admin|PUT other|Not Found|admin-key|127.0.0.1",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("lines\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	full = true
	got := ask("PUT", "/loglevel", adminKey, "error")
	if got != http.StatusServiceUnavailable || level.Level() != slog.LevelDebug {
		t.Errorf("with a full disk: status %d, level %v", got, level.Level())
	}
	if got := ask("GET", "/metrics", adminKey, ""); got != http.StatusOK {
		t.Errorf("metrics with a full disk: %d", got)
	}
}
