package server_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/server"
)

// watchHealth opens a watcher on a connection, and waits for its first answer.
func watchHealth(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	w, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return err
	}
	_, err = w.Recv()
	return err
}

func dialMany(t *testing.T, addr string, n int) []*grpc.ClientConn {
	t.Helper()
	list := make([]*grpc.ClientConn, n)
	for i := range list {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		list[i] = conn
	}
	return list
}

// Watchers want no credential and never leave: they take nothing that requests need.
func TestAttackWatchers(t *testing.T) {
	addr, f := listen(t, server.Options{MaxMessageBytes: 1 << 20, MaxInflightBytes: 4 << 20, MaxConnections: 50})
	conns := dialMany(t, addr, 45)
	for _, conn := range conns {
		for range 8 { // 360 together; the budget is 256 times what a stream costs
			if err := watchHealth(t, conn); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := watchHealth(t, conns[0]); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a ninth watcher of a connection: %v", err)
	}
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("red"))); err != nil {
		t.Errorf("beside watchers: %v", err)
	}
	for range 20 { // more than there is room for: those who only watch make it
		c, err := client.Dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Generate(t.Context(), client.Prompt(client.Text("red"))); err != nil {
			t.Fatalf("a new caller: %v", err)
		}
	}
}
