package admin

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/credentials/insecure"
)

// A connection whose body was refused is closed half a second later.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// start gives the address of a listener.
func start(t *testing.T, o Options) string {
	t.Helper()
	s, free, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Close()
		<-done
		free()
	})
	return lis.Addr().String()
}

func do(t *testing.T, method, url, body string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Close = true
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestEndpoints(t *testing.T) {
	ready := errors.New("the model is loading")
	level := new(slog.LevelVar)
	addr := "http://" + start(t, Options{
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "m 1\n") }),
		Ready:   func() error { return ready },
		Level:   level,
	})
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/metrics", "", 200, "m 1\n"},
		{"GET", "/healthz", "", 200, "ok\n"},
		{"GET", "/readyz", "", 503, "the model is loading\n"},
		{"GET", "/loglevel", "", 200, "info\n"},
		{"PUT", "/loglevel", "debug\n", 200, "debug\n"},
		{"GET", "/loglevel", "", 200, "debug\n"},
		{"PUT", "/loglevel", "loud", 400, "want debug, info, warn or error\n"},
		{"PUT", "/loglevel", strings.Repeat("x", 1<<20), 400, "want debug, info, warn or error\n"},
		{"POST", "/loglevel", "info", 405, ""},
		{"GET", "/debug/pprof/", "", 200, "goroutine"},
		{"GET", "/debug/pprof/heap?debug=1", "", 200, "heap profile"},
		{"GET", "/nothing", "", 404, ""},
	} {
		if status, got := do(t, c.method, addr+c.path, c.body); status != c.status || !strings.Contains(got, c.want) {
			t.Errorf("%s %s: %d %.80q, want %d %q", c.method, c.path, status, got, c.status, c.want)
		}
	}
	if level.Level() != slog.LevelDebug {
		t.Errorf("the level is %v, want DEBUG", level.Level())
	}
	ready = nil
	if status, got := do(t, "GET", addr+"/readyz", ""); status != 200 || got != "ok\n" {
		t.Errorf("ready: %d %q", status, got)
	}
}

// gRPC's channelz is on the same port.
func TestChannelz(t *testing.T) {
	addr := start(t, Options{Metrics: http.NotFoundHandler(), Level: new(slog.LevelVar)})
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	out, err := grpc_channelz_v1.NewChannelzClient(conn).GetServers(t.Context(), &grpc_channelz_v1.GetServersRequest{})
	if err != nil || len(out.GetServer()) == 0 {
		t.Errorf("servers %v, %v", out, err)
	}
}

// Pages of other sites learn nothing: neither by asking from their own name, nor by one that resolves to this machine.
func TestForeignPages(t *testing.T) {
	o := Options{Metrics: http.NotFoundHandler(), Level: new(slog.LevelVar)}
	a, _, _ := access(t)
	open := start(t, o)
	o.Access = a
	keyed := start(t, o)
	for _, c := range []struct {
		addr, host, header, value string
		status                    int
	}{
		{open, "evil.example", "", "", 403}, {open, "evil.example:9464", "Sec-Fetch-Site", "same-origin", 403},
		{open, "localhost:9464", "", "", 200}, {open, "[::1]:9464", "", "", 200}, {open, "", "", "", 200},
		{open, "", "Sec-Fetch-Site", "cross-site", 403}, {open, "", "Sec-Fetch-Site", "same-site", 403},
		{open, "", "Sec-Fetch-Site", "none", 200}, {open, "", "Sec-Fetch-Site", "same-origin", 200},
		{open, "", "Origin", "https://evil.example", 403},
		{keyed, "mm.example", "Authorization", "Bearer " + adminKey, 200},
		{keyed, "mm.example", "Sec-Fetch-Site", "cross-site", 403},
	} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+c.addr+"/debug/pprof/cmdline", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Close, r.Host = true, c.host
		if c.header != "" {
			r.Header.Set(c.header, c.value)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != c.status {
			t.Errorf("Host %q, %s: %s: %d, want %d", c.host, c.header, c.value, resp.StatusCode, c.status)
		}
	}
}
