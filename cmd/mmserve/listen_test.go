package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mmserve/mmserve/client"
)

// A server on unix sockets is reached by its clients and probes alone who may write to them, takes the place of one
// that was killed but not of one that runs, and leaves nothing behind.
func TestServeUnix(t *testing.T) {
	dir := t.TempDir()
	rpc, web, admin := filepath.Join(dir, "rpc.sock"), filepath.Join(dir, "web.sock"), filepath.Join(dir, "admin.sock")
	args := []string{"--pace=1ms,1ms", "--http-listen=unix://" + web, "--admin-address=unix://" + admin, "--socket-mode=0660"}
	p := startServe(t, "unix://"+rpc, nil, args...)
	p.logged("msg=serving")
	for _, path := range []string{rpc, web, admin} {
		if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o660 {
			t.Errorf("%s: %v, %v; want permissions of 0660", path, st, err)
		}
	}
	call := func() {
		t.Helper()
		c, err := client.Dial("unix://" + rpc)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Generate(t.Context(), longAnswer(3)); err != nil {
			t.Error(err)
		}
	}
	call()
	if code, _, errs := mmserve(t, "health", "--server", "unix://"+rpc); code != 0 {
		t.Errorf("health: status %d, %s", code, errs)
	}
	for path, url := range map[string]string{admin: "http://admin/readyz", web: "http://web/v1/models"} {
		get(t, path, url)
	}

	if code, _, errs := mmserve(t, "serve", "--pace=1ms,1ms", "--admin-address=", "--listen=unix://"+rpc); code != 1 ||
		!strings.Contains(errs, "another server listens there") {
		t.Errorf("a second server: status %d, %s", code, errs)
	}
	call()
	p.signal(syscall.SIGKILL)
	p.wait(10 * time.Second)
	if _, err := os.Lstat(rpc); err != nil {
		t.Errorf("a killed server removed its socket: %v", err)
	}
	p = startServe(t, "unix://"+rpc, nil, args...)
	p.logged("msg=serving")
	call()
	p.signal(syscall.SIGTERM)
	if code, _ := p.wait(10 * time.Second); code != 0 {
		t.Errorf("status %d:\n%s", code, p.log)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// get asks for a URL at a unix socket.
func get(t *testing.T, path, url string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer c.CloseIdleConnections()
	r, err := c.Get(url)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v, %v", url, r, err)
	}
	_ = r.Body.Close()
}
