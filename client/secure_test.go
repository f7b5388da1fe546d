package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// keyed is a server that notes the keys of calls.
type keyed struct {
	script
	mu   sync.Mutex
	keys []string
}

func (k *keyed) note(ctx context.Context, in any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	k.mu.Lock()
	k.keys = append(k.keys, metadata.ValueFromIncomingContext(ctx, "authorization")...)
	k.mu.Unlock()
	return h(ctx, in)
}

// listen serves on a network's address and gives a gRPC target.
func (k *keyed) listen(t *testing.T, network, addr string, creds credentials.TransportCredentials) string {
	t.Helper()
	lis, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(creds), grpc.UnaryInterceptor(k.note))
	pb.RegisterMMServeServer(g, k) //lint:ignore SA1019 the client's
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	t.Cleanup(func() { g.Stop(); <-done })
	if network == "unix" {
		return "unix://" + addr
	}
	return lis.Addr().String()
}

func generate(t *testing.T, target string, opts ...client.Option) error {
	t.Helper()
	c, err := client.Dial(target, opts...)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = c.Generate(ctx, client.Prompt(client.Text("?")))
	return err
}

// certificate is one for localhost, and the roots that trust it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// A key goes over TLS, to loopback and to unix sockets, anew for each call.
func TestAPIKey(t *testing.T) {
	cert, roots := certificate(t)
	for name, c := range map[string]struct {
		network, addr string
		server        credentials.TransportCredentials
		opts          []client.Option
	}{
		"TLS": {"tcp", "127.0.0.1:0", credentials.NewServerTLSFromCert(&cert),
			[]client.Option{client.WithTLS(&tls.Config{RootCAs: roots})}},
		"loopback": {"tcp", "127.0.0.1:0", insecure.NewCredentials(), nil},
		"unix":     {"unix", filepath.Join(t.TempDir(), "s"), insecure.NewCredentials(), nil},
		"allowed": {"tcp", "127.0.0.1:0", insecure.NewCredentials(),
			[]client.Option{client.WithPlaintextKeys()}},
	} {
		t.Run(name, func(t *testing.T) {
			k := new(keyed)
			target := k.listen(t, c.network, c.addr, c.server)
			keys := []string{"sk-one", "sk-two"}
			next := client.WithAPIKeyFunc(func(context.Context) (string, error) {
				key := keys[0]
				keys = keys[1:]
				return key, nil
			})
			for range 2 {
				if err := generate(t, target, append(c.opts, next)...); err != nil {
					t.Fatal(err)
				}
			}
			if got := strings.Join(k.keys, ", "); got != "Bearer sk-one, Bearer sk-two" {
				t.Errorf("the server got %q", got)
			}
		})
	}
}

// A key crosses no network in plaintext unless that is allowed by name.
func TestAPIKeyStaysHere(t *testing.T) {
	for _, target := range []string{
		"10.0.0.1:80", "mm.example:443", "dns:///mm.example:443", "passthrough:///10.0.0.1:80", "localhost.example:80",
		"127.0.0.1.example:80", "dns://127.0.0.1/mm.example:80", "[2001:db8::1]:80", "0.0.0.0:80", "xds:///localhost", "",
	} {
		if c, err := client.Dial(target, client.WithAPIKey("canary")); !errors.Is(err, client.ErrPlaintextKey) {
			t.Errorf("%s: %v", target, err)
			_ = c.Close()
		} else if strings.Contains(err.Error(), "canary") {
			t.Error(err)
		}
	}
	_, err := client.DialServers("127.0.0.1:80,10.0.0.1:80", client.WithAPIKey("k"))
	if !errors.Is(err, client.ErrPlaintextKey) {
		t.Errorf("one of several: %v", err)
	}
	for _, target := range []string{"localhost:1", "[::1]:1", "127.8.8.8:1", "dns:///localhost:1", "unix:///s", "unix:s",
		"::1", "[::ffff:127.0.0.1]:1"} {
		c, err := client.Dial(target, client.WithAPIKey("k"))
		if err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		_ = c.Close()
	}
	c, err := client.Dial("10.0.0.1:80", client.WithAPIKey("k"), client.WithPlaintextKeys())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// elsewhere is a connection that says it goes to another machine.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 80} }

// Neither a name that turns out to be another machine's nor a dial option gets a key in plaintext.
func TestAPIKeyIsNotTricked(t *testing.T) {
	k := new(keyed)
	target := k.listen(t, "tcp", "127.0.0.1:0", insecure.NewCredentials())
	dialer := grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return elsewhere{conn}, nil
	})
	err := generate(t, target, client.WithAPIKey("canary"), client.WithDialOptions(dialer))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a name of another machine: %v", err)
	}
	plain := grpc.WithTransportCredentials(insecure.NewCredentials())
	err = generate(t, target, client.WithAPIKey("canary"), client.WithDialOptions(plain))
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("a dial option: %v", err)
	}
	if len(k.keys) > 0 {
		t.Errorf("the server got %q", k.keys)
	}
}

// A key that cannot be sent is an error that does not tell it.
func TestAPIKeyThatIsNone(t *testing.T) {
	target := new(keyed).listen(t, "tcp", "127.0.0.1:0", insecure.NewCredentials())
	for name, key := range map[string]client.Option{
		"newline": client.WithAPIKey("canary\n"), "empty": client.WithAPIKey(""), "umlaut": client.WithAPIKey("canary\u00fc"),
		"error": client.WithAPIKeyFunc(func(context.Context) (string, error) { return "canary", errors.New("no vault") }),
	} {
		err := generate(t, target, key)
		if status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// DialOptions protect the connections of who makes them as Dial does.
func TestDialOptions(t *testing.T) {
	for _, servers := range []string{"10.0.0.1:80", "127.0.0.1:80,10.0.0.1:80", "dns:///mm.example:80"} {
		if _, err := client.DialOptions(servers, client.WithAPIKey("k")); !errors.Is(err, client.ErrPlaintextKey) {
			t.Errorf("%s: %v", servers, err)
		}
	}
	k := new(keyed)
	target := k.listen(t, "tcp", "127.0.0.1:0", insecure.NewCredentials())
	dial, err := client.DialOptions(target, client.WithAPIKey("sk-one"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(target, dial...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := client.New(conn).Generate(t.Context(), client.Prompt(client.Text("?"))); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(k.keys, ", "); got != "Bearer sk-one" {
		t.Errorf("the server got %q", got)
	}
}
