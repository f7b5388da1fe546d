package loadtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// GRPC is a server of mmserve.v1.
type GRPC struct {
	client *client.Client
	conn   *grpc.ClientConn
	raw    bool
}

// DialGRPC makes a target of the server at addr, any gRPC target. If raw, it sends prompts instead of chats, for models
// without a chat template.
func DialGRPC(addr string, raw bool, opts ...grpc.DialOption) (*GRPC, error) {
	conn, err := grpc.NewClient(addr, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		opts...)...)
	if err != nil {
		return nil, err
	}
	return &GRPC{client.New(conn, client.WithUnavailableRetries(0)), conn, raw}, nil // every failure counts
}

func (g *GRPC) String() string { return "grpc://" + g.conn.Target() }

// Close closes the connection.
func (g *GRPC) Close() error { return g.conn.Close() }

// Ready waits until the server says that it serves.
func (g *GRPC) Ready(ctx context.Context) error {
	for {
		r, err := healthpb.NewHealthClient(g.conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		if err == nil && r.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%v is not ready: %w", g, errors.Join(ctx.Err(), err))
		}
	}
}

// Server is what the server says of itself.
func (g *GRPC) Server(ctx context.Context) (*pb.GetServerInfoResponse, error) {
	return g.client.ServerInfo(ctx)
}

// Generate implements Target.
func (g *GRPC) Generate(ctx context.Context, r *Request, token func(int)) (a Answer, err error) {
	for e, err := range g.client.Stream(ctx, g.message(r)) {
		switch {
		case err != nil:
			return a, err
		case e.GetStart() != nil:
			a.usage(e.GetStart().GetUsage())
		case e.GetDelta() != nil:
			token(int(e.GetDelta().GetTokens()))
		case e.GetFinish() != nil:
			f := e.GetFinish()
			a.usage(f.GetUsage())
			a.Finish = finishNames[f.GetFinishReason()]
			a.stages(f.GetTimings())
		}
	}
	return a, nil
}

var finishNames = map[pb.FinishReason]string{
	pb.FinishReason_FINISH_REASON_STOP: "stop", pb.FinishReason_FINISH_REASON_LENGTH: "length",
	pb.FinishReason_FINISH_REASON_CANCELLED: finishCancelled,
}

const finishCancelled = "cancelled"

var priorities = map[string]pb.Priority{
	"interactive": pb.Priority_PRIORITY_INTERACTIVE, "default": pb.Priority_PRIORITY_DEFAULT,
	"batch": pb.Priority_PRIORITY_BATCH,
}

func (g *GRPC) message(r *Request) *pb.GenerateRequest {
	var parts []*pb.Part
	for _, p := range r.Images {
		parts = append(parts, client.ImageBytes(p.Data))
	}
	parts = append(parts, client.Text(r.Text))
	in := client.Chat(client.User(parts...))
	if g.raw {
		in = client.Prompt(parts...)
	}
	limit := uint32(r.MaxTokens)
	in.RequestId, in.MaxTokens, in.IgnoreEos, in.Tenant, in.Priority = r.ID, &limit, r.IgnoreEOS, r.Tenant,
		priorities[r.Priority]
	return in
}

func (a *Answer) usage(u *pb.Usage) {
	a.Prompt, a.Image, a.CachedImage = int(u.GetPromptTokens()), int(u.GetImageTokens()), int(u.GetCachedImageTokens())
	a.Cached, a.Completion = int(u.GetCachedTokens()), int(u.GetCompletionTokens())
}

func (a *Answer) stages(t *pb.Timings) {
	a.Stages = map[string]time.Duration{}
	for name, d := range map[string]*durationpb.Duration{
		"preprocess": t.GetPreprocess(), "tokenize": t.GetTokenize(), "encode": t.GetEncode(), "queue": t.GetQueue(),
		"prefill": t.GetPrefill(), "decode": t.GetDecode(), "ttft": t.GetTtft(), "total": t.GetTotal(),
	} {
		if d != nil {
			a.Stages[name] = d.AsDuration()
		}
	}
}
