package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// connect gives a client of the named server, or of a whole server inside this process: the terminal commands go
// the way that every client goes.
func (f connectFlags) connect(c *cli, log *slog.Logger) (*client.Client, func() error, error) {
	if f.Server != "" {
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
	if err := f.check(); err != nil {
		return nil, nil, err
	}
	m, err := f.one()
	if err != nil {
		return nil, nil, err
	}
	config := f.config(c.OrtLib, log)
	config.Name, config.Dir = m.Name, m.Dir
	a, err := serving.Open(context.Background(), config)
	if err != nil {
		return nil, nil, err
	}
	lis := bufconn.Listen(1 << 20)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- server.New(a.Model, a.Engine, server.Options{Logger: log}).Serve(ctx, lis)
	}()
	cl, err := client.Dial("passthrough:in-process", client.WithRetries(10),
		client.WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) })))
	end := func() error {
		stop()
		return errors.Join(<-served, a.Close(context.Background()))
	}
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return cl, func() error { return errors.Join(cl.Close(), end()) }, nil
}

// untilSignal gives a context that an interrupt or SIGTERM ends.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}
