package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/mmserve/mmserve/internal/socket"
)

type healthCmd struct {
	Server  string        `placeholder:"ADDR" env:"MMSERVE_LISTEN" default:"127.0.0.1:8080" help:"The server to ask, host:port or unix:///path; where it listens on all addresses, the one on this machine."`
	Timeout time.Duration `default:"3s" help:"How long it may take to answer."`
}

// Run fails unless the server takes requests. It is for containers without a shell.
func (h healthCmd) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	conn, err := grpc.NewClient(local(h.Server), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return fmt.Errorf("%s: %w", h.Server, err)
	}
	if r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("%s is %s", h.Server, r.GetStatus())
	}
	return nil
}

// local is gRPC's target for what listens on addr of this machine.
func local(addr string) string {
	if _, unix, _ := socket.Path(addr); unix {
		return addr
	}
	return "passthrough:" + reached(addr)
}

// reached is the address at which this machine reaches what listens on addr.
func reached(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}
