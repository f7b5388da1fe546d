// Package client calls a mmserve server from Go. It needs neither cgo nor any other package of the server.
//
//	c, err := client.Dial("localhost:8080")
//	…
//	defer c.Close()
//	answer, err := c.Generate(ctx, client.Chat(client.User(client.ImageBytes(jpeg), client.Text("What is this?"))))
package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// ErrTruncated is the error of a stream that ended without a finish.
var ErrTruncated = errors.New("mmserve: the stream ended before the answer did")

// Client calls one server. It is safe for concurrent use.
type Client struct {
	rpc         pb.MMServeClient //lint:ignore SA1019 the only name that older servers have
	media       pb.InferenceServiceClient
	uploads     *uploads // nil: images are sent as they are
	health      healthpb.HealthClient
	conn        io.Closer // nil if the connection is the caller's
	retries     int
	unavailable int
}

type options struct {
	retries       int
	unavailable   int
	maxMessage    int
	uploadAbove   int
	tenant        string // of uploads
	creds         credentials.TransportCredentials
	key           func(context.Context) (string, error)
	plaintextKeys bool
	addresses     []string // of DialServers
	dial          []grpc.DialOption
}

// Option changes how a Client calls.
type Option func(*options)

// WithRetries makes a call that found the server full try again, up to n times, after the delay the server
// suggests and as much again at random. Default: no retries.
func WithRetries(n int) Option { return func(o *options) { o.retries = n } }

// WithMaxMessageBytes is the size of the largest message that Dial's connection sends or takes; the server's own
// limit counts too. Default: no limit on requests, gRPC's 4 MiB on answers.
func WithMaxMessageBytes(n int) Option { return func(o *options) { o.maxMessage = n } }

// WithTransportCredentials has Dial use credentials of gRPC's; see WithTLS. Default: plaintext.
func WithTransportCredentials(creds credentials.TransportCredentials) Option {
	return func(o *options) { o.creds = creds }
}

// WithDialOptions are further gRPC options for Dial.
func WithDialOptions(dial ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, dial...) }
}

// Dial makes a client for the server at addr, host:port or any gRPC target. Of several addresses the one with the
// fewest calls open is asked; dns:///name:port leaves out those whose health is not SERVING, too, and has to resolve to
// servers, not to a balancer's one address. The connection is made at the first call. Close it after use.
func Dial(addr string, opts ...Option) (*Client, error) {
	o := newOptions(opts)
	o.dial = append(balancing(strings.HasPrefix(addr, "dns:")), o.dial...)
	dial, err := o.secure(addr)
	if err != nil {
		return nil, err
	}
	if o.maxMessage > 0 {
		dial = append(dial, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(o.maxMessage),
			grpc.MaxCallSendMsgSize(o.maxMessage)))
	}
	conn, err := grpc.NewClient(addr, append(dial, o.dial...)...)
	if err != nil {
		return nil, err
	}
	c := o.client(conn)
	c.conn = conn
	return c, nil
}

// New makes a client that uses a connection of the caller's, who set it up (of the options only WithRetries,
// WithUnavailableRetries and WithUploads count; DialOptions has the others) and closes it.
func New(conn grpc.ClientConnInterface, opts ...Option) *Client {
	return newOptions(opts).client(conn)
}

func newOptions(opts []Option) options {
	o := options{creds: insecure.NewCredentials(), unavailable: unavailableRetries}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

func (o options) client(conn grpc.ClientConnInterface) *Client {
	//lint:ignore SA1019 the only name that older servers have
	c := &Client{rpc: pb.NewMMServeClient(conn), media: pb.NewInferenceServiceClient(conn),
		health: healthpb.NewHealthClient(conn), retries: o.retries, unavailable: o.unavailable}
	if o.uploadAbove > 0 {
		c.uploads = &uploads{client: c, above: o.uploadAbove, tenant: o.tenant, known: map[string]*upload{}}
	}
	return c
}

// Close closes the connection that Dial made.
func (c *Client) Close() error {
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

// Generate returns the whole answer. Errors are gRPC statuses; mmserve.proto lists them.
func (c *Client) Generate(ctx context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	r := c.uploads.replace(ctx, in)
	for try := 0; ; {
		out, err := c.rpc.Generate(ctx, r.now)
		switch {
		case err == nil:
			return out, nil
		case r.lost(ctx, err): // with what is there now
		case !c.again(ctx, err, try):
			return out, err
		default:
			try++
		}
	}
}

// ServerInfo says what the server serves, and where it runs.
func (c *Client) ServerInfo(ctx context.Context) (*pb.GetServerInfoResponse, error) {
	return c.rpc.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
}

// Models says which models the server has, the default first. A request names one of them in its Model field.
func (c *Client) Models(ctx context.Context) ([]*pb.ModelInfo, error) {
	out, err := c.rpc.ListModels(ctx, &pb.ListModelsRequest{})
	return out.GetModels(), err
}

// Stream yields the events of an answer as they come: a start, deltas, a finish for each of in.N. An error comes
// last: a gRPC status, or ErrTruncated. Leaving the loop early cancels the call, and the server stops working on it.
func (c *Client) Stream(ctx context.Context, in *pb.GenerateRequest) iter.Seq2[*pb.GenerateStreamResponse, error] {
	return func(yield func(*pb.GenerateStreamResponse, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		open := max(in.GetN(), 1)
		stream, event, err := c.open(ctx, in)
		for err == nil {
			if !yield(event, nil) {
				return
			}
			if event.GetFinish() != nil {
				open--
			}
			if open == 0 {
				_, _ = stream.Recv() // the status, always OK after a finish; without reading it the call would end as cancelled
				return
			}
			event, err = stream.Recv()
		}
		if errors.Is(err, io.EOF) {
			err = ErrTruncated
		}
		yield(nil, err)
	}
}

// open starts a stream and waits for its first event: until then it may be tried again.
func (c *Client) open(ctx context.Context,
	in *pb.GenerateRequest) (stream grpc.ServerStreamingClient[pb.GenerateStreamResponse],
	first *pb.GenerateStreamResponse, err error) {
	r := c.uploads.replace(ctx, in)
	for try := 0; ; {
		if stream, err = c.rpc.GenerateStream(ctx, r.now); err == nil {
			first, err = stream.Recv()
		}
		switch {
		case err == nil:
			return stream, first, nil
		case r.lost(ctx, err):
		case !c.again(ctx, err, try):
			return stream, first, err
		default:
			try++
		}
	}
}

// again says whether to call again after err, having waited as long as the server wants.
func (c *Client) again(ctx context.Context, err error, try int) bool {
	delay, ok := c.delay(err, try)
	if !ok {
		return false
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < delay {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(delay):
		return true
	}
}

// RetryDelay tells whether err says that the server is full, and after how long to try again.
func RetryDelay(err error) (delay time.Duration, ok bool) {
	st := status.Convert(err)
	if st.Code() != codes.ResourceExhausted {
		return 0, false
	}
	return retryInfo(st)
}

// retryInfo is the delay that a status suggests.
func retryInfo(st *status.Status) (delay time.Duration, ok bool) {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return max(info.GetRetryDelay().AsDuration(), 0), true
		}
	}
	return 0, false
}
