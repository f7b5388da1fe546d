package socket_test

import (
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mmserve/mmserve/internal/socket"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// A listener that is paused refuses connections, keeps its address and takes connections again.
func TestPause(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0", sockettest.FreeAddress(t)} {
		lis, err := net.Listen("tcp", address)
		if err != nil {
			t.Log(address, err) // no IPv6, say
			continue
		}
		resume, ok := socket.Pause(lis)
		if !ok {
			t.Fatalf("%s cannot be paused", address)
		}
		_, port, _ := net.SplitHostPort(lis.Addr().String())
		host, _, _ := net.SplitHostPort(address)
		to := net.JoinHostPort(host, port)
		if conn, err := net.Dial("tcp", to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: dialed while paused: %v, %v", address, conn, err)
		}
		if another, err := net.Listen("tcp", to); err == nil {
			// Linux lets two sockets have an address of which none listens; the second to listen is told.
			another.Close()
		}
		if err := resume(); err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		for range 3 {
			done := make(chan error, 1)
			go func() {
				conn, err := lis.Accept()
				if err == nil {
					err = conn.Close()
				}
				done <- err
			}()
			conn, err := net.Dial("tcp", to)
			if err != nil {
				t.Fatalf("%s: dialed after a pause: %v", address, err)
			}
			conn.Close()
			if err := <-done; err != nil {
				t.Errorf("%s: accepted after a pause: %v", address, err)
			}
		}
		if err := lis.Close(); err != nil {
			t.Error(err)
		}
	}
	unix, err := socket.Listen(filepath.Join(t.TempDir(), "s"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	if _, ok := socket.Pause(unix); ok {
		t.Error("a unix socket cannot listen again")
	}
}
