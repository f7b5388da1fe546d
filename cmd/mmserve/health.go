package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/socket"
)

type healthCmd struct {
	credentialFlags
	Pin     string        `name:"tls-pin" placeholder:"FILE" env:"MMSERVE_TLS_CERT" help:"Certificate that the server has to show, PEM: where it runs on this machine its own, whatever name is in it."`
	Server  string        `placeholder:"ADDR" env:"MMSERVE_LISTEN" default:"127.0.0.1:8080" help:"The server to ask, host:port or unix:///path; where it listens on all addresses, the one on this machine."`
	Timeout time.Duration `default:"3s" range:"1ms..24h" help:"How long it may take to answer."`
}

// Run fails unless the server takes requests. It is for containers without a shell.
func (h healthCmd) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	var pin []client.Option
	if h.Pin != "" {
		creds, err := h.pinned()
		if err != nil {
			return err
		}
		pin = append(pin, client.WithTransportCredentials(creds))
	}
	dial, err := h.dial(reached(h.Server), pin...)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(local(h.Server), dial...)
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if st, ok := status.FromError(err); !ok {
		return fmt.Errorf("%s: %w", h.Server, err)
	} else if err != nil {
		return explainStatus(st, h.Server)
	}
	if r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("%s is %s", h.Server, r.GetStatus())
	}
	return nil
}

// pinned have the server show one certificate, which need not name this machine.
func (h healthCmd) pinned() (credentials.TransportCredentials, error) {
	c, err := h.config()
	if err != nil {
		return nil, err
	}
	file, err := folder.ReadFile(h.Pin, maxSecretBytes)
	if err != nil {
		return nil, fmt.Errorf("--tls-pin: %w", err)
	}
	block, _ := pem.Decode(file)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("--tls-pin %s: want a certificate in PEM", h.Pin)
	}
	c.InsecureSkipVerify = true // VerifyConnection does, by the certificate itself
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if !bytes.Equal(s.PeerCertificates[0].Raw, block.Bytes) {
			return errors.New("the server shows another certificate than --tls-pin")
		}
		return nil
	}
	return credentials.NewTLS(c), nil
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
