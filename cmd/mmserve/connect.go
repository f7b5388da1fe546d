package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// connect gives a client of the named server, or of a whole server inside this process: the terminal commands go
// the way that every client goes. The model's own log lines are left out, but for warnings.
func (f connectFlags) connect(ctx context.Context, c *cli, log *slog.Logger) (*client.Client, func() error, error) {
	if f.Server != "" {
		if err := checkServers(f.Server); err != nil {
			return nil, nil, usageError{err}
		}
		o, err := f.clientOptions(f.Server)
		if err != nil {
			return nil, nil, err
		}
		cl, err := client.Dial(f.Server, append(o, client.WithRetries(10))...)
		if err != nil {
			return nil, nil, err
		}
		return cl, cl.Close, nil
	}
	d, err := f.openDeployment(ctx, c, log)
	if err != nil {
		return nil, nil, err
	}
	return inProcess(d, server.Options{Logger: quiet(log)})
}

// openDeployment opens the model, which a hub may have to give first, and says what was chosen for it.
func (f connectFlags) openDeployment(ctx context.Context, c *cli, log *slog.Logger) (*serving.Deployment, error) {
	if err := f.check(); err != nil {
		return nil, usageError{err}
	}
	m, err := f.one(ctx, f.wanted(), log)
	if err != nil {
		return nil, err
	}
	config := f.config(c.OrtLib, quiet(log))
	config.Name, config.Dir = m.Name, m.Dir
	end := waiting("loading " + cmp.Or(m.Name, m.Dir, "the model"))
	d, err := serving.Open(context.Background(), config)
	end()
	if err != nil {
		return nil, err
	}
	if !log.Enabled(ctx, slog.LevelDebug) { // else the model's own lines have it
		for _, why := range d.Reasons() {
			log.Info(why)
		}
	}
	return d, nil
}

// inProcess serves a model in this process, and ends it.
func inProcess(d *serving.Deployment, o server.Options) (*client.Client, func() error, error) {
	lis := bufconn.Listen(1 << 20)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- server.New(d.Model, d.Engine, o).Serve(ctx, lis)
	}()
	cl, err := client.Dial("passthrough:in-process", client.WithRetries(10),
		client.WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return lis.DialContext(ctx)
		})))
	end := func() error {
		stop()
		return errors.Join(<-served, d.Close(context.Background()))
	}
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return cl, func() error { return errors.Join(cl.Close(), end()) }, nil
}

// schemes begin gRPC's targets that are no host:port.
var schemes = []string{"unix:", "unix-abstract:", "dns:", "passthrough:", "xds:", "vsock:"}

// checkServers refuses a server of a list without a port: gRPC would ask at 443, or say so only once it is asked.
func checkServers(servers string) error {
	list, err := client.SplitServers(servers)
	if err != nil {
		return fmt.Errorf("--server: %w", err)
	}
	for _, s := range list {
		known := func(scheme string) bool { return strings.HasPrefix(s, scheme) }
		if strings.Contains(s, "://") && !strings.HasPrefix(s, "http") || slices.ContainsFunc(schemes, known) {
			continue
		}
		if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
			return fmt.Errorf("--server %q: want host:port, as localhost:8080 or [::1]:8080, or unix:///path", s)
		}
	}
	return nil
}

// hints say what is likely to be wrong where a connection fails with a text that only gRPC's authors read. The first
// that is found counts.
var hints = []struct{ text, hint string }{
	{"looked like an HTTP/1.1 header", "is this the HTTP listener? want the address of --listen, which speaks gRPC"},
	{"no application protocol", "is this the HTTP listener? want the address of --listen, which speaks gRPC"},
	{"missing selected ALPN", "is this the HTTP listener? want the address of --listen, which speaks gRPC"},
	{"error reading server preface", "does the server speak TLS? then --tls-ca or --tls says so"},
	{"first record does not look like a TLS handshake",
		"the server speaks no TLS: leave out --tls, --tls-ca and --tls-cert"},
	{"certificate signed by unknown authority", "--tls-ca names the authority of the server's certificate"},
	{"certificate required", "the server wants a certificate: --tls-cert and --tls-key"},
}

// hinted adds the hint to an error, if there is one.
func hinted(err error) error {
	if err == nil {
		return nil
	}
	for _, h := range hints {
		if strings.Contains(err.Error(), h.text) {
			return fmt.Errorf("%w (%s)", err, h.hint)
		}
	}
	return err
}

// untilSignal gives a context that an interrupt or SIGTERM ends.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}
