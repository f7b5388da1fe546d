package server_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/server"
)

// callers notes the name of the caller of each connection.
type callers struct {
	mu    sync.Mutex
	names []string
}

func (c *callers) TagConn(ctx context.Context, info *stats.ConnTagInfo) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names = append(c.names, info.RemoteAddr.String())
	return ctx
}

func (*callers) HandleConn(context.Context, stats.ConnStats)                     {}
func (*callers) HandleRPC(context.Context, stats.RPCStats)                       {}
func (*callers) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (c *callers) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.names...)
}

// An answer that outlives its connection's age comes whole, while calls that come later go to a
// connection of their own.
func TestConnectionAge(t *testing.T) {
	runner := endless(2)
	runner.step = make(chan struct{})
	conns := new(callers)
	f := start(t, tinyVLM(t), runner, server.Options{
		MaxConnectionAge: 50 * time.Millisecond, GRPC: []grpc.ServerOption{grpc.StatsHandler(conns)},
	})
	in := question()
	in.MaxTokens, in.IgnoreEos = proto.Uint32(4), true
	answered := make(chan error, 1)
	go func() {
		_, deltas, finish, err := collect(t.Context(), f.Client, in)
		if err == nil && (finish.GetUsage().GetCompletionTokens() != 4 || len(deltas) == 0) {
			err = errors.New("the answer is not whole")
		}
		answered <- err
	}()
	runner.step <- struct{}{}
	eventually(t, "a second connection while the first answer goes on", func() bool {
		if _, err := f.ServerInfo(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(conns.seen()) > 1
	})
	select {
	case err := <-answered:
		t.Fatalf("the answer ended before its tokens came: %v", err)
	default:
	}
	close(runner.step)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// An answer that goes on after the grace of its connection's age ends with its connection.
func TestConnectionAgeGrace(t *testing.T) {
	t.Parallel() // it waits
	runner := endless(1)
	runner.step = make(chan struct{}) // no token comes
	f := start(t, tinyVLM(t), runner, server.Options{
		MaxConnectionAge: 50 * time.Millisecond, MaxConnectionAgeGrace: 50 * time.Millisecond,
	})
	if _, _, _, err := collect(t.Context(), f.Client, question()); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want UNAVAILABLE", err)
	}
	close(runner.step)
}

// A caller on a unix socket has a name, by which it takes turns with others.
func TestUnixCallersHaveNames(t *testing.T) {
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	conns := new(callers)
	e := newEngine(t, newChain(1, 430, 4), batching.Options{})
	s := server.New(tinyVLM(t), e, server.Options{GRPC: []grpc.ServerOption{grpc.StatsHandler(conns)}})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, lis) }()
	c, err := client.Dial("unix://" + lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Generate(t.Context(), question()); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if names := conns.seen(); len(names) != 1 || !strings.HasPrefix(names[0], "unix") {
		t.Errorf("the caller is called %q", names)
	}
}
