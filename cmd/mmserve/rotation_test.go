package main

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/auth/authtest"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// rotating is a server with TLS and API keys in a process of its own, whose files are replaced.
type rotating struct {
	*served
	ca               *authtest.CA
	cert, keys, root string // files
}

func startRotating(t *testing.T, args ...string) (s *rotating, key string) {
	t.Helper()
	dir := t.TempDir()
	s = &rotating{
		ca: authtest.NewCA(t), cert: filepath.Join(dir, "cert.pem"), keys: filepath.Join(dir, "keys"),
		root: filepath.Join(dir, "ca.pem"),
	}
	s.write(t, s.root, s.ca.PEM)
	s.newCertificate(t)
	key = s.newKey(t, "one")
	s.served = startServe(t, sockettest.FreeAddress(t), nil,
		append(args, "--tls-cert", s.cert, "--tls-key", s.cert, "--api-keys-file", s.keys)...)
	s.logged("msg=serving")
	return s, key
}

func (s *rotating) write(t *testing.T, name string, text []byte) {
	t.Helper()
	next := name + ".new"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, name); err != nil {
		t.Fatal(err)
	}
}

// newCertificate gives the server another certificate of its authority.
func (s *rotating) newCertificate(t *testing.T) {
	t.Helper()
	cert, key := s.ca.Issue(t, authtest.Leaf{CommonName: "server"})
	s.write(t, s.cert, append(cert, key...))
}

// newKey makes a key that takes the place of all others.
func (s *rotating) newKey(t *testing.T, id string) string {
	t.Helper()
	code, out, errs := mmserve(t, "keys", "new", "--id", id, "--tenant", "alice")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) < 2 {
		t.Fatalf("keys new: status %d, %s", code, errs)
	}
	s.write(t, s.keys, []byte(lines[len(lines)-1]+"\n"))
	return lines[1]
}

// dial gives a client, and what notes the serial number of the certificate that it last saw.
func (s *rotating) dial(t *testing.T, key string) (c *client.Client, serial *string) {
	t.Helper()
	serial = new(string)
	c, err := client.Dial(s.addr, client.WithAPIKey(key), client.WithTLS(&tls.Config{
		RootCAs: s.ca.Pool(), ClientSessionCache: nil, VerifyConnection: func(state tls.ConnectionState) error {
			*serial = state.PeerCertificates[0].SerialNumber.String()
			return nil
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, serial
}

// SIGHUP has keys and certificates that were replaced take effect, under a stream that goes on.
func TestReloadKeys(t *testing.T) {
	s, old := startRotating(t, "--pace=1ms,10ms")
	c, before := s.dial(t, old)
	rotated, finished := false, false
	for e, err := range c.Stream(t.Context(), longAnswer(100)) {
		if err != nil {
			t.Fatal(err)
		}
		finished = finished || e.GetFinish() != nil
		if e.GetDelta() == nil || rotated {
			continue
		}
		rotated = true
		s.newCertificate(t)
		key := s.newKey(t, "two")
		s.signal(syscall.SIGHUP)
		s.logged(`msg="SIGHUP: read again" what="keys and certificates"`)
		fresh, after := s.dial(t, key)
		if _, err := fresh.Generate(t.Context(), longAnswer(1)); err != nil {
			t.Errorf("the new key: %v", err)
		}
		if *after == *before || *after == "" {
			t.Error("the server still shows its old certificate")
		}
		former, _ := s.dial(t, old)
		if _, err := former.Generate(t.Context(), longAnswer(1)); status.Code(err) != codes.Unauthenticated {
			t.Errorf("the old key: %v", err)
		}
	}
	if !rotated || !finished {
		t.Error("the stream did not come whole")
	}
	if strings.Contains(s.log.String(), old) {
		t.Error("the log has a key")
	}
	s.signal(syscall.SIGTERM)
	if code, _ := s.wait(10 * time.Second); code != 0 {
		t.Errorf("status %d:\n%s", code, s.log)
	}
}
