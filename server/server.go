// Package server is the gRPC edge: it receives messages within a budget of bytes, makes requests of them, has
// serving answer them, and makes messages of what comes. It is the one place that knows the wire (request.go,
// event.go) and status codes (status.go).
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
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/media"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// Options bound what a request may ask for and say how the server stops. A zero field takes its default.
type Options struct {
	// MaxMessageBytes is the size of the largest request message accepted. A larger one is refused by gRPC before
	// anything here sees it: RESOURCE_EXHAUSTED, with both sizes in the text and no RetryInfo. Default: 64 MiB.
	MaxMessageBytes int
	// MaxTextBytes is the most text in one request; the tokenizer's work grows with it. Default: 1 MiB.
	MaxTextBytes int
	// MaxImages is the most images in one request. Default: 16.
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
	// CallersByConnection is serving.ServiceOptions.CallersByConnection.
	CallersByConnection bool
	// SharePrefixes has images that one tenant sent count as cached for others, as batching.Options.SharePrefixes does for
	// prompts.
	SharePrefixes bool
	// Quotas hold tenants to what they may use. Default: they may use all there is.
	Quotas *serving.Quotas
	// Filters are those of serving.ServiceOptions.
	Filters []serving.Filter
	// Version is mmserve's, for GetServerInfo.
	Version string
	// Audit and AuditRequired are those of serving.ServiceOptions; callers that are refused for their credentials are
	// recorded, too.
	Audit         serving.Auditor
	AuditRequired bool
	// Logger gets one line per request, without content. Default: slog.Default.
	Logger *slog.Logger
	// Telemetry gets traces and metrics; it is of one server. Default: nothing does.
	Telemetry *serving.Telemetry
	// MaxInflightBytes bounds request messages from their first byte until their images have been decoded, all together.
	// Beyond it those that are still being received are refused: RESOURCE_EXHAUSTED with RetryInfo. Default: 128 MiB, and
	// at least twice MaxMessageBytes.
	MaxInflightBytes int64
	// MaxConnections is the most clients' connections; one more takes the place of a silent one. Default: 1024.
	MaxConnections int
	// MaxStreams is the most calls at once on one connection. Default: 1024.
	MaxStreams int
	// ReceiveTimeout is how long a message may take to come whole. Default: 30 s.
	ReceiveTimeout time.Duration
	// MaxConnectionAge is how old a connection gets, give or take a tenth, before its client is told to make another;
	// calls that run have MaxConnectionAgeGrace to finish. Default: any age, and all the time they take.
	MaxConnectionAge, MaxConnectionAgeGrace time.Duration
	// Credentials are TLS, say. nil: plaintext.
	Credentials credentials.TransportCredentials
	// ImageBudget is that of serving.ServiceOptions.
	ImageBudget serving.ImageBudget
	// Media keeps the image files that callers upload. Default: no uploads are taken. It is closed when Serve ends.
	Media *media.Store
	// Conversations keeps conversations between requests; it is the caller's to close. Default: none are kept.
	Conversations conversation.Store
	// StoreResponses has OpenAI's responses kept that do not say whether they are to be.
	StoreResponses bool
	// Auth knows who may call. nil: everybody may, and requests say on whose behalf they come.
	Auth *auth.Authenticator
	// AuthHealth has grpc.health.v1 want a credential too, as the other metadata do.
	AuthHealth bool
	// Fetcher gets images that requests name by URL, and holds them in Media. Default: they are refused.
	Fetcher serving.Fetcher
	// HTTP is OpenAI's API beside gRPC, over the same service and within the same bounds.
	HTTP HTTPOptions
	// GRPC are further options of the gRPC server that Serve runs: telemetry. Unary methods call no unary interceptors.
	GRPC []grpc.ServerOption
}

func (o Options) withDefaults() Options {
	setDefault(&o.MaxMessageBytes, 64<<20)
	setDefault(&o.MaxTextBytes, 1<<20)
	setDefault(&o.MaxImages, 16)
	setDefault(&o.MaxStop, 16)
	setDefault(&o.Grace, 30*time.Second)
	setDefault(&o.MaxInflightBytes, max(128<<20, 2*int64(o.MaxMessageBytes)))
	setDefault(&o.MaxConnections, 1024)
	setDefault(&o.MaxStreams, 1024)
	setDefault(&o.ReceiveTimeout, 30*time.Second)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Server answers mmserve.v1 from the models of a registry.
type Server struct {
	pb.UnimplementedInferenceServiceServer
	pb.UnimplementedModelServiceServer
	pb.UnimplementedMMServeServer
	pb.UnimplementedConversationServiceServer
	pb.UnimplementedSubjectServiceServer
	models    *serving.Registry // set by Attach, as the next
	service   *serving.Service
	attached  atomic.Bool // both may be read
	options   Options
	health    *health.Server
	inflight  *inflight
	refusals  refusals
	importing chan struct{} // has room for the one archive that is received
	refused   *audit.Flood  // lines of the audit log about those
	// grpcAddress is where Serve answers gRPC.
	grpcAddress net.Addr
	loaded      chan struct{} // closed once attached

	// decoding has one place per core, for request messages: images have a budget of their own.
	decoding chan struct{}

	// drained ends watchers and reflection, shutdown the requests that did not finish in time; cut counts those.
	drained, shutdown   context.Context
	endWatchers, cutAll context.CancelFunc
	cut                 atomic.Int64

	open     atomic.Int64  // requests for answers, from their first byte
	stopping atomic.Bool   // Serve has sent GOAWAY, or is about to
	idle     chan struct{} // has room for one note: stopping, and no call is open
}

// New returns a server for a model and the engine that runs it.
func New(m serving.Model, e *batching.Engine, o Options) *Server {
	s := Loading(o)
	s.Attach(serving.Single(serving.Run(m, e)))
	return s
}

// Loading returns a server that may Serve before it has a model: until Attach it takes no connections, so that calls
// are UNAVAILABLE at once instead of waiting.
func Loading(o Options) *Server {
	s := &Server{
		options: o.withDefaults(), health: health.NewServer(),
		decoding:  make(chan struct{}, runtime.GOMAXPROCS(0)),
		idle:      make(chan struct{}, 1),
		importing: make(chan struct{}, 1),
		refused:   audit.NewFlood(refusalLines, refusalBurst),
		loaded:    make(chan struct{}),
	}
	s.inflight = newInflight(s.options.MaxInflightBytes)
	s.drained, s.endWatchers = context.WithCancel(context.Background())
	s.shutdown, s.cutAll = context.WithCancel(context.Background())
	s.report(healthpb.HealthCheckResponse_NOT_SERVING)
	return s
}

// Attach gives the server its models, at least one, once, and has it report SERVING, unless it is stopping.
func (s *Server) Attach(models *serving.Registry) {
	o := s.options
	s.models = models
	s.service = serving.NewService(models, serving.ServiceOptions{
		MaxTextBytes: o.MaxTextBytes, MaxImages: o.MaxImages, MaxStop: o.MaxStop,
		NoDrafts: o.NoDrafts, CallersByConnection: o.CallersByConnection, SharePrefixes: o.SharePrefixes,
		Quotas: o.Quotas, Filters: o.Filters, Audit: o.Audit, AuditRequired: o.AuditRequired,
		Logger: o.Logger, Telemetry: o.Telemetry, Traffic: s.traffic, Shutdown: s.shutdown,
		Media: o.Media, Fetcher: o.Fetcher, ImageBudget: o.ImageBudget,
		Conversations: o.Conversations,
	})
	s.attached.Store(true)
	close(s.loaded)
	s.report(healthpb.HealthCheckResponse_SERVING)
}

// traffic is what the server counts of its messages.
func (s *Server) traffic() serving.Traffic {
	bytes, connections := s.inflight.usage()
	return serving.Traffic{InflightBytes: bytes, Evicted: s.inflight.evicted.Load(), Connections: connections}
}

// report sets the health of the whole and of each service that answers from models.
func (s *Server) report(status healthpb.HealthCheckResponse_ServingStatus) {
	for _, name := range append([]string{""}, serviceNames...) {
		s.health.SetServingStatus(name, status)
	}
}

// Ready says why the server takes no requests, nil if it does.
func (s *Server) Ready() error {
	if !s.attached.Load() {
		return errors.New("the model is loading")
	}
	r, err := s.health.Check(context.Background(), &healthpb.HealthCheckRequest{})
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

const (
	// flushTime is how long requests that were cut have to tell their clients so.
	flushTime = 2 * time.Second
	// watchTime is how long watchers have to hear of NOT_SERVING before their streams end.
	watchTime = 20 * time.Millisecond
	// handshakeTime is how long a new connection may take to speak HTTP/2.
	handshakeTime = 10 * time.Second
	// idleTime is how long a connection may stay without a call; clients connect again when they need one.
	idleTime = 15 * time.Minute
	// maxHeaderBytes bounds the metadata of a call, as HTTP/2 counts it.
	maxHeaderBytes = 32 << 10
)

// grpcServer makes the gRPC server, with all services behind guard.
func (s *Server) grpcServer() *grpc.Server {
	creds := s.options.Credentials
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	g := grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(framedCredentials{creds}),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(s.options.MaxMessageBytes),
		grpc.MaxConcurrentStreams(uint32(s.options.MaxStreams)),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.UnknownServiceHandler(unknownMethod),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: idleTime, Time: time.Minute, Timeout: 20 * time.Second,
			MaxConnectionAge: s.options.MaxConnectionAge, MaxConnectionAgeGrace: s.options.MaxConnectionAgeGrace,
		}),
	}, s.options.GRPC...)...)
	r := guard{g, s, s.options.wireCounts()}
	s.register(r)
	healthpb.RegisterHealthServer(r, s.health)
	reflection.Register(r)
	return g
}

// Serve answers on lis, and on Options.HTTP.Listener, until ctx is done, then stops in the order that loses no request:
// it reports NOT_SERVING, goes on for DrainDelay, then closes the listeners and tells clients to go elsewhere (GOAWAY,
// 503), answers what is on the wire already for up to Grace, and cuts the rest, which ends with UNAVAILABLE and is
// counted in a *CutError. It may be called once. The engine takes requests until the last call is over, is drained
// then, and is still the caller's to end.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	if s.options.Media != nil {
		defer s.options.Media.Close()
	}
	g := s.grpcServer()
	l := &listener{
		Listener: lis, inflight: s.inflight, most: s.options.MaxConnections, ready: s.attached.Load,
		log: s.options.Logger, closed: make(chan struct{}),
	}
	if !s.attached.Load() {
		l.pause(s.loaded)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	s.grpcAddress = lis.Addr()
	web := s.newHTTPServer()
	webServed := web.start()
	select {
	case err := <-served:
		web.close()
		return fmt.Errorf("gRPC server: %w", err)
	case err := <-webServed:
		g.Stop()
		return fmt.Errorf("HTTP server: %w", err)
	case <-ctx.Done():
	}

	s.health.Shutdown()
	s.options.Logger.Info("stopping", append(s.left(), "drain_delay", s.options.DrainDelay, "grace", s.options.Grace)...)
	if s.attached.Load() && s.options.DrainDelay > 0 {
		time.Sleep(s.options.DrainDelay)
		s.options.Logger.Info("draining: no new connections are taken", s.left()...)
	}
	s.drain(g, l, web)
	<-served
	web.wait()
	if n := s.cut.Load(); n > 0 {
		return &CutError{Requests: int(n), Grace: s.options.Grace}
	}
	return nil
}

// left counts what a shutdown waits for, for its log lines: requests, and their sequences in the engines.
func (s *Server) left() []any {
	running, waiting := 0, 0
	if s.attached.Load() {
		s.models.Each(func(d *serving.Deployment) {
			stats := d.Engine.Stats()
			running, waiting = running+stats.Running, waiting+stats.Waiting
		})
	}
	return []any{"open_requests", s.open.Load(), "running", running, "waiting", waiting}
}

// drain lets the open calls finish, and cuts those that do not within Grace.
func (s *Server) drain(g *grpc.Server, l *listener, web *httpServer) {
	grace, cancel := context.WithTimeout(context.Background(), s.options.Grace)
	defer cancel()
	_ = l.Close()
	time.AfterFunc(unreadTime, l.closeMute)
	s.stopping.Store(true)
	webStopped, stopped := web.drain(), make(chan struct{})
	go func() { defer close(stopped); g.GracefulStop(); <-webStopped }()
	if s.open.Load() == 0 {
		s.noteIdle()
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		select {
		case <-s.idle:
			time.Sleep(watchTime)
		case <-grace.Done():
		}
		s.endWatchers()
	}()
	defer func() { <-told }()
	select {
	case <-stopped:
	case <-grace.Done():
		s.cutAll()
		select {
		case <-stopped:
		case <-time.After(flushTime):
			g.Stop()
			web.close()
			<-stopped
		}
	}
	if s.attached.Load() {
		ended, cancel := context.WithTimeout(context.Background(), flushTime)
		defer cancel()
		_ = s.models.Drain(ended) // its error says that the engine does not move, which is its owner's to end
	}
}

// requestOver notes the end of a Generate or GenerateStream call.
func (s *Server) requestOver() {
	if s.open.Add(-1) == 0 && s.stopping.Load() {
		s.noteIdle()
	}
}

func (s *Server) noteIdle() {
	select {
	case s.idle <- struct{}{}:
	default:
	}
}
