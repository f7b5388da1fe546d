package admin

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
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/auth/authtest"
)

const adminKey = "admin-0123456789abcdef"

// access is that of a key of its own, and of a file with others.
func access(t *testing.T) (a *Access, keyPath string, keys map[string]string) {
	t.Helper()
	dir := t.TempDir()
	keyPath = filepath.Join(dir, "admin")
	if err := os.WriteFile(keyPath, []byte(adminKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	key, err := OpenKey(keyPath, log)
	if err != nil {
		t.Fatal(err)
	}
	keys, text := map[string]string{}, ""
	for _, e := range []auth.Entry{
		{ID: "root", Role: auth.Admin}, {ID: "acme", Tenant: "acme", Role: auth.User},
		{ID: "prometheus", Role: auth.ReadOnly}, {ID: "reader", Tenant: "acme", Role: auth.ReadOnly},
	} {
		keys[e.ID] = auth.NewKey(&e)
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		text += string(line) + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "keys"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := auth.OpenKeys(filepath.Join(dir, "keys"), log)
	if err != nil {
		t.Fatal(err)
	}
	return &Access{Key: key, Auth: &auth.Authenticator{Keys: files}}, keyPath, keys
}

// Probes are for all, metrics for who reads and has no tenant, the rest for admins.
func TestAccess(t *testing.T) {
	a, keyPath, keys := access(t)
	addr := "http://" + start(t, Options{
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "m 1\n") }),
		Ready:   func() error { return nil }, Level: new(slog.LevelVar), Access: a,
	})
	ask := func(method, path string, set func(*http.Request)) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, addr+path, strings.NewReader("debug"))
		if err != nil {
			t.Fatal(err)
		}
		r.Close = true
		set(r)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusUnauthorized && len(resp.Header.Values("WWW-Authenticate")) != 2 {
			t.Errorf("%s %s: no challenge", method, path)
		}
		return resp.StatusCode
	}
	send := func(key string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+key) }
	}
	for name, c := range map[string]struct {
		set                            func(*http.Request)
		probe, metrics, level, profile int
	}{
		"nobody":            {func(*http.Request) {}, 200, 401, 401, 401},
		"the key":           {send(adminKey), 200, 200, 200, 200},
		"as a password":     {func(r *http.Request) { r.SetBasicAuth("any", adminKey) }, 200, 200, 200, 200},
		"as a user":         {func(r *http.Request) { r.SetBasicAuth(adminKey, "") }, 200, 401, 401, 401},
		"cut":               {send(adminKey[:20]), 200, 401, 401, 401},
		"an admin":          {send(keys["root"]), 200, 200, 200, 200},
		"a user":            {send(keys["acme"]), 200, 403, 403, 403},
		"Prometheus":        {send(keys["prometheus"]), 200, 200, 403, 403},
		"a tenant's reader": {send(keys["reader"]), 200, 403, 403, 403},
		"two": {func(r *http.Request) {
			r.SetBasicAuth("any", adminKey)
			r.Header.Set("X-Api-Key", keys["acme"])
		}, 200, 401, 401, 401},
	} {
		got := [4]int{ask("GET", "/readyz", c.set), ask("GET", "/metrics", c.set), ask("PUT", "/loglevel", c.set),
			ask("GET", "/debug/pprof/cmdline", c.set)}
		if want := [4]int{c.probe, c.metrics, c.level, c.profile}; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if err := os.WriteFile(keyPath, []byte("another-0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.Key.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := ask("GET", "/metrics", send(adminKey)); got != 401 {
		t.Errorf("the former key: %d", got)
	}
}

// gRPC's channelz wants the key, too.
func TestChannelzAccess(t *testing.T) {
	a, _, _ := access(t)
	addr := start(t, Options{Metrics: http.NotFoundHandler(), Level: new(slog.LevelVar), Access: a})
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for key, want := range map[string]codes.Code{"": codes.Unauthenticated, adminKey: codes.OK} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+key)
		_, err := grpc_channelz_v1.NewChannelzClient(conn).GetServers(ctx, &grpc_channelz_v1.GetServersRequest{})
		if status.Code(err) != want {
			t.Errorf("with the key %q: %v, want %v", key, err, want)
		}
	}
}

// The listener speaks TLS where it is given, and leaves profiles out where it is told to.
func TestAdminTLS(t *testing.T) {
	ca := authtest.NewCA(t)
	s, free, err := New(Options{
		Metrics: http.NotFoundHandler(), Level: new(slog.LevelVar), NoProfiles: true, TLS: authtest.ServerConfig(t, ca),
	})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(s, lis) }()
	t.Cleanup(func() {
		s.Close()
		<-done
		free()
	})
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}, DisableKeepAlives: true}
	for path, want := range map[string]int{"/healthz": 200, "/debug/pprof/": 404, "/debug/pprof/heap": 404} {
		r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://"+lis.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestOpenKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for _, text := range []string{"", "short", "two keys-0123456789 here", "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenKey(path, slog.New(slog.DiscardHandler))
		if err == nil || strings.Contains(err.Error(), "two keys") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
