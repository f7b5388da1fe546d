package server_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// While the model loads a call ends at once, as UNAVAILABLE, and so does the server when it is told to stop.
func TestLoading(t *testing.T) {
	t.Parallel() // it waits
	for _, attach := range []bool{true, false} {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := server.Loading(server.Options{Logger: slog.New(slog.DiscardHandler)})
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, lis) }()
		c, err := client.Dial(lis.Addr().String(), client.WithUnavailableRetries(0))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := c.Generate(t.Context(), question()); status.Code(err) != codes.Unavailable ||
			time.Since(began) > 5*time.Second {
			t.Errorf("while loading: %v after %v", err, time.Since(began))
		}
		if s.Ready() == nil {
			t.Error("ready without a model")
		}
		if attach {
			s.Attach(serving.Single(serving.Run(tinyVLM(t), newEngine(t, newChain(1, 430, 4), batching.Options{}))))
			eventually(t, "it answers", func() bool {
				_, err := c.Generate(t.Context(), question())
				return err == nil
			})
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		c.Close()
	}
}
