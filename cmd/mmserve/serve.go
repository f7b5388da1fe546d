package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/server"
)

type serveCmd struct {
	modelFlags
	telemetryFlags
	Listen          string        `default:"127.0.0.1:8080" env:"MMSERVE_LISTEN" help:"Address to serve gRPC on, host:port."`
	MaxMessageBytes int           `default:"67108864" env:"MMSERVE_MAX_MESSAGE_BYTES" help:"Largest request message accepted."`
	MaxImages       int           `default:"16" env:"MMSERVE_MAX_IMAGES" help:"Most pictures in one request."`
	DrainDelay      time.Duration `default:"0s" env:"MMSERVE_DRAIN_DELAY" help:"How long to go on serving after turning NOT_SERVING, for load balancers to see it."`
	Grace           time.Duration `default:"30s" env:"MMSERVE_GRACE" help:"How long running requests may take to finish on shutdown."`
}

// Run serves until SIGTERM or an interrupt, then drains. It fails when the device is lost.
func (s serveCmd) Run(ctx context.Context, c *cli, log *slog.Logger, level *slog.LevelVar) (err error) {
	if s.MaxMessageBytes < 1 || s.MaxImages < 1 {
		return errors.New("--max-message-bytes and --max-images take 1 or more")
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	lis, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", s.Listen, err)
	}
	defer lis.Close()
	var srv atomic.Pointer[server.Server] // nil while the model loads
	o, err := s.observe(ctx, log, level, func() error {
		if s := srv.Load(); s != nil {
			return s.Ready()
		}
		return errors.New("the model is loading")
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	log = slog.New(o.sdk.Handler(log.Handler()))
	var steps func(batching.Step)
	if o.server != nil {
		steps = o.server.Step
	}
	a, err := openApp(c.OrtLib, s.modelFlags, steps, log)
	if err != nil {
		return err
	}
	// An engine that ends by itself has lost its device: the server then stops too.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		err := <-a.stopped
		cancel(err)
		a.stopped <- err // for close
	}()
	log.Info("serving", "address", lis.Addr().String())
	srv.Store(server.New(a.server, a.engine, server.Options{
		MaxMessageBytes: s.MaxMessageBytes, MaxImages: s.MaxImages,
		Version: programVersion(), NoDrafts: !s.Speculative, DrainDelay: s.DrainDelay, Grace: s.Grace, Logger: log, Telemetry: o.server, GRPC: o.grpc(),
	}))
	err = srv.Load().Serve(ctx, lis)
	log.Info("stopped", "error", err)
	return errors.Join(err, a.close())
}
