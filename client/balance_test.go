package client_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// counted is a server on loopback that counts its calls and takes its time over each.
type counted struct {
	pb.UnimplementedMMServeServer
	calls  atomic.Int64
	takes  time.Duration
	health *health.Server
	addr   string
	g      *grpc.Server
}

func (s *counted) Generate(ctx context.Context, _ *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	s.calls.Add(1)
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
	}
	return &pb.GenerateResponse{Text: "yes"}, nil
}

func startCounted(t *testing.T, addr string, takes time.Duration) *counted {
	t.Helper()
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &counted{takes: takes, health: health.NewServer(), addr: lis.Addr().String(), g: grpc.NewServer()}
	//lint:ignore SA1019 it is what the client calls
	pb.RegisterMMServeServer(s.g, s)
	healthpb.RegisterHealthServer(s.g, s.health)
	s.serving(true)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.g.Serve(lis) }()
	t.Cleanup(func() { s.g.Stop(); <-done })
	return s
}

func (s *counted) serving(yes bool) {
	state := healthpb.HealthCheckResponse_NOT_SERVING
	if yes {
		state = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus(pb.MMServe_ServiceDesc.ServiceName, state)
}

// callAll makes n calls, some of them at once, and returns how many failed.
func callAll(t *testing.T, c *client.Client, n, atOnce int) (failed int) {
	t.Helper()
	var wg sync.WaitGroup
	var bad atomic.Int64
	slots := make(chan struct{}, atOnce)
	for range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := c.Generate(ctx, client.Chat()); err != nil {
				bad.Add(1)
			}
		})
	}
	wg.Wait()
	return int(bad.Load())
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 500 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("never: %s", what)
}

func TestCallsGoToTheServersThatAreFastAndServe(t *testing.T) {
	fast, slow, off := startCounted(
		t,
		"127.0.0.1:0",
		time.Millisecond,
	), startCounted(
		t,
		"127.0.0.1:0",
		40*time.Millisecond,
	), startCounted(
		t,
		"127.0.0.1:0",
		0,
	)
	off.serving(false)
	c, err := client.DialServers(
		strings.Join([]string{fast.addr, slow.addr, off.addr}, ","),
		client.WithUnavailableRetries(5),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := callAll(t, c, 10, 1); n > 0 { // connects
		t.Fatalf("%d of 10 failed", n)
	}
	eventually(
		t,
		"both take calls",
		func() bool { callAll(t, c, 2, 2); return fast.calls.Load() > 0 && slow.calls.Load() > 0 },
	)
	f, s := fast.calls.Load(), slow.calls.Load()
	if n := callAll(t, c, 300, 8); n > 0 {
		t.Errorf("%d failed", n)
	}
	f, s = fast.calls.Load()-f, slow.calls.Load()-s
	if f < 2*s || s == 0 || off.calls.Load() != 0 {
		t.Errorf("fast %d, slow %d, off %d", f, s, off.calls.Load())
	}
	// One that comes into service takes its part, and one that goes away loses no call.
	off.serving(true)
	eventually(t, "the third takes calls", func() bool { callAll(t, c, 3, 3); return off.calls.Load() > 0 })
	fast.g.Stop()
	if n := callAll(t, c, 50, 4); n > 0 {
		t.Errorf("%d failed after one went away", n)
	}
	if err := c.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestHealthyAndRetriesAcrossARestart(t *testing.T) {
	s := startCounted(t, "127.0.0.1:0", 0)
	c, err := client.DialServers(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	s.g.Stop()
	if err := c.Healthy(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("stopped: %v", err)
	}
	if _, err := c.Generate(t.Context(), client.Chat()); status.Code(err) != codes.Unavailable {
		t.Errorf("stopped: %v", err)
	}
	again := startCounted(t, s.addr, 0)
	patient, err := client.DialServers(s.addr, client.WithUnavailableRetries(8))
	if err != nil {
		t.Fatal(err)
	}
	defer patient.Close()
	if _, err := patient.Generate(t.Context(), client.Chat()); err != nil || again.calls.Load() != 1 {
		t.Errorf("started again: %v", err)
	}
	eventually(t, "the first client finds it again", func() bool { return c.Healthy(t.Context()) == nil })
	again.serving(false)
	eventually(t, "health is told", func() bool { return c.Healthy(t.Context()) != nil })
}

func TestSplitServers(t *testing.T) {
	for in, want := range map[string]int{"a:1": 1, "a:1, b:2": 2, "dns:///x:1": 1, "": 0, "a:1,": 0, "a:1,a:1": 0,
		"dns:///x:1,b:2": 0, strings.Repeat("a,", 2000) + "b": 0} {
		list, err := client.SplitServers(in)
		if (err == nil) != (want > 0) || err == nil && len(list) != want {
			t.Errorf("%.20q: %q, %v", in, list, err)
		}
	}
}

// A call that got UNAVAILABLE waits for as long as the server suggests, within bounds, and three times by default.
func TestUnavailableHeedsRetryInfo(t *testing.T) {
	stopping := func(after time.Duration) error {
		st, err := status.New(codes.Unavailable, "stopping").WithDetails(&errdetails.RetryInfo{
			RetryDelay: durationpb.New(after)})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	for suggested, want := range map[time.Duration]time.Duration{
		0: 100 * time.Millisecond, -time.Hour: 100 * time.Millisecond,
		5 * time.Second: 5 * time.Second, time.Hour: time.Minute,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{refusals: slices.Repeat([]error{stopping(suggested)}, 3)}
			if _, err := dial(t, s).Generate(t.Context(), client.Chat()); err != nil || len(s.calls) != 4 {
				t.Fatalf("%v: %v after %d calls, want an answer to the fourth", suggested, err, len(s.calls))
			}
			if got := s.calls[1].Sub(s.calls[0]); got < want || got > max(want, 200*time.Millisecond) {
				t.Errorf("%v suggested: waited %v, want %v", suggested, got, want)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			s := &script{refusals: slices.Repeat([]error{stopping(suggested)}, 4)}
			if _, err := dial(t, s).Generate(t.Context(), client.Chat()); status.Code(err) != codes.Unavailable {
				t.Errorf("%v: %v after the fourth refusal", suggested, err)
			}
		})
	}
}

// Dial asks each address of a target, and with dns: only those that are SERVING.
func TestDialBalances(t *testing.T) {
	a, off := startCounted(t, "127.0.0.1:0", 0), startCounted(t, "127.0.0.1:0", 0)
	off.serving(false)
	for scheme, want := range map[string]bool{"several": true, "dns": false} {
		r := manual.NewBuilderWithScheme(scheme)
		r.InitialState(resolver.State{Addresses: []resolver.Address{{Addr: a.addr}, {Addr: off.addr}}})
		c, err := client.Dial(scheme+":///name:1", client.WithDialOptions(grpc.WithResolvers(r)))
		if err != nil {
			t.Fatal(err)
		}
		before := off.calls.Load()
		if n := callAll(t, c, 40, 4); n > 0 {
			t.Errorf("%s: %d failed", scheme, n)
		}
		if want {
			eventually(t, "both are asked", func() bool { callAll(t, c, 4, 4); return off.calls.Load() > before })
		} else if off.calls.Load() > before {
			t.Error("a server that is not SERVING was asked")
		}
		c.Close()
	}
}

// UNAVAILABLE is tried again only before the first token, and only so often.
func TestUnavailableRetries(t *testing.T) {
	gone := status.Error(codes.Unavailable, "gone")
	for retries, want := range map[int]codes.Code{0: codes.Unavailable, 1: codes.Unavailable, 2: codes.OK} {
		s := &script{refusals: []error{gone, gone}}
		_, err := dial(t, s, client.WithUnavailableRetries(retries)).Generate(t.Context(), client.Chat())
		if status.Code(err) != want || len(s.calls) != min(retries, 2)+1 {
			t.Errorf("%d retries: %v after %d calls", retries, err, len(s.calls))
		}
	}
	s := &script{truncate: true}
	for _, err := range dial(t, s, client.WithUnavailableRetries(5)).Stream(t.Context(), client.Chat()) {
		if err != nil && len(s.calls) != 1 {
			t.Errorf("%v after %d calls", err, len(s.calls))
		}
	}
	for try := range 40 {
		if d := client.BackOff(try); d < 100*time.Millisecond || d > 10*time.Second {
			t.Errorf("try %d: %v", try, d)
		}
	}
}
