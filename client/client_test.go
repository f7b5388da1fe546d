package client_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a server that refuses calls with the errors of its list, one each, and answers every later one.
type script struct {
	pb.UnimplementedMMServeServer
	refusals []error
	calls    []time.Time
	gone     chan struct{} // closed when a stream's client has left
	truncate bool
}

func (s *script) admit() error {
	s.calls = append(s.calls, time.Now())
	if n := len(s.calls); n <= len(s.refusals) {
		return s.refusals[n-1]
	}
	return nil
}

func (s *script) Generate(context.Context, *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	return &pb.GenerateResponse{Text: "yes"}, s.admit()
}

func (s *script) GenerateStream(_ *pb.GenerateRequest,
	stream grpc.ServerStreamingServer[pb.GenerateStreamResponse]) error {
	if err := s.admit(); err != nil {
		return err
	}
	for _, e := range []*pb.GenerateStreamResponse{
		{Event: &pb.GenerateStreamResponse_Start{Start: &pb.StreamStart{Id: "1"}}},
		{Event: &pb.GenerateStreamResponse_Delta{Delta: &pb.StreamDelta{Text: "yes"}}},
	} {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	if s.gone != nil {
		<-stream.Context().Done()
		close(s.gone)
		return stream.Context().Err()
	}
	if s.truncate {
		return nil
	}
	return stream.Send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Finish{Finish: &pb.StreamFinish{}}})
}

func dial(t *testing.T, s *script, opts ...client.Option) *client.Client {
	lis := bufconn.Listen(1 << 16)
	g := grpc.NewServer()
	//lint:ignore SA1019 it is what the client calls
	pb.RegisterMMServeServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); g.Stop(); <-done })
	return client.New(conn, opts...)
}

func busy(delay time.Duration) error {
	st, err := status.New(codes.ResourceExhausted,
		"busy").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// stream reads all of a stream's text.
func stream(ctx context.Context, c *client.Client) (text string, err error) {
	for e, err := range c.Stream(ctx, client.Prompt(client.Text("?"))) {
		if err != nil {
			return text, err
		}
		text += e.GetDelta().GetText()
	}
	return text, nil
}

func TestRetry(t *testing.T) {
	calls := map[string]func(context.Context, *client.Client) (string, error){
		"Stream": stream,
		"Generate": func(ctx context.Context, c *client.Client) (string, error) {
			out, err := c.Generate(ctx, client.Prompt(client.Text("?")))
			return out.GetText(), err
		},
	}
	for _, tt := range []struct {
		name     string
		refusals []error
		retries  int
		timeout  time.Duration
		calls    int
		code     codes.Code
	}{
		{"not unless asked", []error{busy(time.Second)}, 0, time.Hour, 1, codes.ResourceExhausted},
		{"until there is room", []error{busy(time.Second), busy(2 * time.Second)}, 5, time.Hour, 3, codes.OK},
		{"so many times", []error{busy(time.Second), busy(time.Second), busy(time.Second)}, 2, time.Hour, 3,
			codes.ResourceExhausted},
		{"not beyond the deadline", []error{busy(time.Minute)}, 5, 30 * time.Second, 1, codes.ResourceExhausted},
		{"not without RetryInfo", []error{status.Error(codes.ResourceExhausted, "too large")}, 5, time.Hour, 1,
			codes.ResourceExhausted},
		{"not other errors", []error{status.Error(codes.Internal, "broken")}, 5, time.Hour, 1, codes.Internal},
	} {
		for name, call := range calls {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &script{refusals: tt.refusals}
					c := dial(t, s, client.WithRetries(tt.retries))
					ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
					defer cancel()
					text, err := call(ctx, c)
					if status.Code(err) != tt.code || err == nil && text != "yes" {
						t.Errorf("got %q, %v; want code %v", text, err, tt.code)
					}
					if len(s.calls) != tt.calls {
						t.Fatalf("%d calls, want %d", len(s.calls), tt.calls)
					}
					for i := range s.calls[1:] {
						suggested, _ := client.RetryDelay(tt.refusals[i])
						if waited := s.calls[i+1].Sub(s.calls[i]); waited < suggested || waited > 2*suggested+time.Millisecond {
							t.Errorf("waited %v where the server suggests %v", waited, suggested)
						}
					}
				})
			})
		}
	}
}

func TestLeavingTheLoopCancels(t *testing.T) {
	s := &script{gone: make(chan struct{})}
	for e, err := range dial(t, s).Stream(t.Context(), client.Prompt(client.Text("?"))) {
		if err != nil {
			t.Fatal(err)
		}
		if e.GetDelta() != nil {
			break
		}
	}
	select {
	case <-s.gone:
	case <-time.After(10 * time.Second):
		t.Error("the server was not told that the client left")
	}
}

func TestTruncatedStream(t *testing.T) {
	text, err := stream(t.Context(), dial(t, &script{truncate: true}))
	if text != "yes" || !errors.Is(err, client.ErrTruncated) {
		t.Errorf("got %q, %v; want the text and ErrTruncated", text, err)
	}
}

func TestDial(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	//lint:ignore SA1019 it is what the client calls
	pb.RegisterMMServeServer(g, &script{})
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	t.Cleanup(func() { g.Stop(); <-done })
	c, err := client.Dial(lis.Addr().String(), client.WithMaxMessageBytes(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	image := client.ImageBytes(make([]byte, 5<<20)) // past gRPC's default of 4 MiB
	if out, err := c.Generate(t.Context(), client.Chat(client.System(client.Text("s")), client.User(image),
		client.Assistant(client.Text("a")))); err != nil || out.GetText() != "yes" {
		t.Errorf("got %v, %v", out, err)
	}
	if _, err := c.Generate(t.Context(), client.Prompt(client.ImageBytes(make([]byte,
		9<<20)))); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("9 MiB over a limit of 8: %v", err)
	}
}
