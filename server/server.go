// Package server is the gRPC edge: requests in, text out. It is the one place that knows status codes, and the
// one goroutine of a request runs from validation to the last delta in generate.go; the engine it submits to
// works in ids on a goroutine of its own.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/tokenizer"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/vision"
)

// Model is what the server needs of the served model. Its functions are called concurrently.
type Model struct {
	// Name is what requests call the model, Digest what tells its weights and configuration from others.
	Name, Digest string
	// MaxLen is the context: prompt and answer together, in tokens. Vocab is the number of logits.
	MaxLen, Vocab int
	// EOS are the ids that end an answer.
	EOS       []int32
	Tokenizer *tokenizer.Tokenizer
	// AddSpecial says whether a prompt gets the tokens of the tokenizer's post-processor (BOS). One from a chat
	// template that starts with BOS, where that is not empty, has got them.
	AddSpecial bool
	BOS        string
	// Template is nil for a model that completes raw prompts only.
	Template *chat.Template
	// Guarded are the texts that a user's words never form: the contents of the added tokens.
	Guarded []string
	Layout  fusion.Layout
	// Prepare decodes an encoded image and cuts it into tiles, on the request's goroutine, when the budget of all decodes
	// has room. Its error wraps vision.ErrImage if the image is at fault, or is the context's cause. nil: the model takes
	// no images, and Encode is not called.
	Prepare func(ctx context.Context, data []byte, detail pb.Detail) (*vision.Image, error)
	// Encode returns a picture's patch embeddings, [patches, Hidden], and whether they had been made before.
	Encode func(ctx context.Context, img *vision.Image) (patches []float32, cached bool, err error)
	Hidden int
	// KVBytesPerToken is the memory that a position of a sequence takes, for metrics.
	KVBytesPerToken int64
	// EncoderStats is what the encoder behind Encode counts; nil if it does not.
	EncoderStats func() vision.EncoderStats
	// DeviceStats is what devices count; nil where there is none.
	DeviceStats func() DeviceStats
	// MaxImages is the most pictures the model takes in a prompt. 0: it sets no limit.
	MaxImages int
	// Compiler makes constraints for the model's vocabulary; it may take a while the first time. Its error says why there can
	// be none. nil: there are none.
	Compiler func() (*constrain.Compiler, error)
	// Sessions say where the model's graphs run; none where no model does. ProviderReason says why there, if somebody chose.
	Sessions       []Session
	ProviderReason string
	// Defaults is how the model samples when a request does not say; Seed is not used.
	Defaults decoder.Sampling
}

// DeviceStats counts bytes: copied to and from the devices that the model's graphs run on, and held there between runs.
type DeviceStats struct{ To, From, Held int64 }

// Session is one of the model's graphs and where its nodes run.
type Session struct {
	// Graph names the graph, Provider the execution provider that it was opened on.
	Graph, Provider string
	// Nodes counts its nodes by the execution provider that runs them, Fallbacks by operator those that the processor runs
	// for want of a kernel.
	Nodes, Fallbacks map[string]int
}

// Options bound what a request may ask for and say how the server stops. A zero field takes its default.
type Options struct {
	// MaxMessageBytes is the size of the largest request message accepted. A larger one is refused by gRPC before
	// anything here sees it: RESOURCE_EXHAUSTED, with both sizes in the text and no RetryInfo. Default: 64 MiB.
	MaxMessageBytes int
	// MaxTextBytes is the most text in one request; the tokenizer's work grows with it. Default: 1 MiB.
	MaxTextBytes int
	// MaxImages is the most pictures in one request. Default: 16.
	MaxImages int
	// MaxStop is the most stop strings in one request. Default: 16.
	MaxStop int
	// DrainDelay is how long Serve goes on taking requests after it turned NOT_SERVING, so that load balancers
	// see it first. Default: none.
	DrainDelay time.Duration
	// Grace is how long running requests may take to finish once Serve stops. Default: 30 s.
	Grace time.Duration
	// NoDrafts has tokens generated one by one for requests that do not say speculative.
	NoDrafts bool
	// Version is mmserve's, for GetServerInfo.
	Version string
	// Logger gets one line per request, without content. Default: slog.Default.
	Logger *slog.Logger
	// Telemetry gets traces and metrics; it is of one server. Default: nothing does.
	Telemetry *Telemetry
	// GRPC are further options of the gRPC server that Serve runs: credentials, telemetry.
	GRPC []grpc.ServerOption
}

func (o Options) withDefaults() Options {
	setDefault(&o.MaxMessageBytes, 64<<20)
	setDefault(&o.MaxTextBytes, 1<<20)
	setDefault(&o.MaxImages, 16)
	setDefault(&o.MaxStop, 16)
	setDefault(&o.Grace, 30*time.Second)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Telemetry == nil {
		o.Telemetry = noTelemetry()
	}
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Server answers mmserve.v1.MMServe from one model and one engine.
type Server struct {
	pb.UnimplementedMMServeServer
	model   Model
	engine  *batching.Engine
	options Options
	health  *health.Server

	// preparing has one place per core for compiling constraints. Decoding images has a budget of its own.
	preparing chan struct{}

	// drained ends the watchers of the health service, shutdown the requests that did not finish in time; cut
	// counts those.
	drained, shutdown   context.Context
	endWatchers, cutAll context.CancelFunc
	cut                 atomic.Int64
}

// New returns a server for a model and the engine that runs it.
func New(m Model, e *batching.Engine, o Options) *Server {
	s := &Server{
		model: m, engine: e, options: o.withDefaults(), health: health.NewServer(),
		preparing: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	s.drained, s.endWatchers = context.WithCancel(context.Background())
	s.shutdown, s.cutAll = context.WithCancel(context.Background())
	s.options.Telemetry.watch(s)
	return s
}

// Register adds the mmserve and health services to a gRPC server of the caller's, who then is in charge of
// message sizes and shutdown. Serve does it all.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	pb.RegisterMMServeServer(r, s)
	healthpb.RegisterHealthServer(r, s.health)
	s.health.SetServingStatus(pb.MMServe_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
}

// Ready says why the server takes no requests, nil if it does.
func (s *Server) Ready() error {
	r, err := s.health.Check(context.Background(), &healthpb.HealthCheckRequest{Service: pb.MMServe_ServiceDesc.ServiceName})
	if err == nil && r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		err = errors.New("the server is shutting down")
	}
	return err
}

// CutError is what Serve returns when requests were still running at the end of the grace period.
type CutError struct {
	Requests int
	Grace    time.Duration
}

func (e *CutError) Error() string {
	return fmt.Sprintf("shutdown: %d requests were still running after %v and were cut", e.Requests, e.Grace)
}

// flushTime is how long requests that were cut have to tell their clients so.
const flushTime = 2 * time.Second

// Serve answers on lis until ctx is done, then stops in the order that loses no request: it reports NOT_SERVING,
// waits DrainDelay, refuses new requests, lets the running ones finish for up to Grace, and cuts the rest, which
// end with FINISH_REASON_CANCELLED and are counted in a *CutError. It may be called once. It closes lis; the
// engine is drained but still the caller's to end.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	g := grpc.NewServer(append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(s.options.MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.ChainStreamInterceptor(s.endWatch),
	}, s.options.GRPC...)...)
	s.Register(g)
	reflection.Register(g)

	served := make(chan error, 1)
	go func() { served <- g.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("gRPC server: %w", err)
	case <-ctx.Done():
	}

	s.health.Shutdown()
	time.Sleep(s.options.DrainDelay)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.options.Grace)
	defer cancel()
	// Its error says no more than that grace is over, which cuts what is left.
	_ = s.engine.Drain(grace)
	s.endWatchers()
	stopped := make(chan struct{})
	go func() { defer close(stopped); g.GracefulStop() }()
	select {
	case <-stopped:
	case <-grace.Done():
		s.cutAll()
		select {
		case <-stopped:
		case <-time.After(flushTime):
			g.Stop()
			<-stopped
		}
	}
	<-served
	if n := s.cut.Load(); n > 0 {
		return &CutError{Requests: int(n), Grace: s.options.Grace}
	}
	return nil
}

// endWatch ends the watchers of the health service when the server has drained: they never leave by themselves, and
// GracefulStop would wait for them.
func (s *Server) endWatch(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if info.FullMethod != healthpb.Health_Watch_FullMethodName {
		return handler(srv, stream)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.drained, cancel)()
	return handler(srv, watchStream{stream, ctx})
}

type watchStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s watchStream) Context() context.Context { return s.ctx }
