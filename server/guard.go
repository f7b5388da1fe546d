package server

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// smallMessage is the largest message of methods that carry no prompt, in bytes.
const smallMessage = 64 << 10

// unadmittedMessage is the largest message that is received while every place is taken, in bytes: one may be free by
// then, and the log has the request's id.
const unadmittedMessage = 2 << 20

// guard stands in front of every method of every service that is registered through it: it asks who calls, receives
// messages within the time and the byte budget, counts what is in them before it decodes them, and turns a panic into
// INTERNAL. Unary methods are registered as streams of the same wire format, because gRPC decodes a unary request
// before any code of ours runs.
type guard struct {
	*grpc.Server
	server *Server
	limits map[protoreflect.FullName]int // see Options.wireCounts
}

// RegisterService registers d with the guard around its methods.
func (g guard) RegisterService(d *grpc.ServiceDesc, impl any) {
	own := *d
	own.Methods, own.Streams = nil, nil
	for _, m := range d.Methods {
		name := "/" + d.ServiceName + "/" + m.MethodName
		handle := func(srv any, stream grpc.ServerStream) error {
			return g.call(name, stream, func(s *guarded) error {
				reply, err := m.Handler(srv, s.ctx, s.RecvMsg, nil)
				if err != nil {
					return err
				}
				return stream.SendMsg(reply)
			})
		}
		own.Streams = append(own.Streams, grpc.StreamDesc{StreamName: m.MethodName, Handler: handle})
	}
	for _, m := range d.Streams {
		name, handle := "/"+d.ServiceName+"/"+m.StreamName, m.Handler
		upload := m.ClientStreams && !m.ServerStreams
		m.Handler = func(srv any, stream grpc.ServerStream) error {
			return g.call(name, stream, func(s *guarded) error {
				if upload {
					s.until = time.Now().Add(g.server.options.ReceiveTimeout)
				}
				s.watcher = !s.prompt && !upload
				return handle(srv, s)
			})
		}
		own.Streams = append(own.Streams, m)
	}
	g.Server.RegisterService(&own, impl)
}

// call runs a method.
func (g guard) call(method string, stream grpc.ServerStream, run func(*guarded) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			g.server.options.Logger.LogAttrs(context.Background(), slog.LevelError, "panic", slog.String("method", method),
				slog.String("error", serving.DescribePanic(p)), slog.String("stack", string(debug.Stack())))
			err = broken()
		}
	}()
	ctx, prompt := stream.Context(), requests[method]
	if ctx, err = g.server.identifyCall(ctx, method); err != nil {
		return err
	}
	if err, ok := refusedMethods[method]; ok {
		return err
	}
	if !g.server.attached.Load() && strings.HasPrefix(method, "/"+mmservePackage+".") {
		return errLoading()
	}
	if t, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ RecvCompress() string }); ok {
		if c := t.RecvCompress(); c != "" && c != encoding.Identity {
			return errCompressed()
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &guarded{ServerStream: stream, guard: g, text: smallMessage, prompt: prompt}
	most := int64(smallMessage)
	if prompt {
		ctx = withPeer(ctx)
		var release func()
		ctx, release, s.unadmitted = g.admit(ctx, method)
		defer release()
		s.ctx = ctx
		denied := serving.KindOf(s.unadmitted) == serving.PermissionDenied
		if denied || errors.As(s.unadmitted, new(*serving.QuotaError)) { // whatever the message says
			return toStatus(s.turnAway(method))
		}
		// gRPC itself refuses a longer message by its header; frames may carry padding.
		most, s.text = int64(g.server.options.MaxMessageBytes)*2, g.server.options.MaxTextBytes+wireTextBytes
		if s.unadmitted != nil {
			most = unadmittedMessage
		}
		g.server.open.Add(1)
		defer g.server.requestOver()
	} else {
		// Watchers and reflection never leave by themselves.
		defer context.AfterFunc(g.server.drained, cancel)()
	}
	beyond := s.unadmitted
	if prompt && beyond == nil {
		beyond = exhausted("the message is larger than this server takes: at most %d bytes", g.server.options.MaxMessageBytes)
	}
	s.inbound = g.server.inflight.claim(ctx, most, beyond)
	defer g.server.inflight.end(s.inbound)
	s.ctx = context.WithValue(ctx, inboundKey{}, s.inbound)
	return toStatus(run(s))
}

// admit asks whether a request could be taken, before its message is received.
func (g guard) admit(ctx context.Context, method string) (context.Context, func(), error) {
	if placeless[method] {
		return g.server.service.AdmitPlaceless(ctx)
	}
	return g.server.service.Admit(ctx)
}

// turnAway is the error of a call that is not going to be taken, of which there is a line in the log as of every other.
func (s *guarded) turnAway(method string) error {
	service, peer := s.guard.server.service, serving.CallerOf(s.ctx).Peer
	switch method {
	case pb.InferenceService_UploadMedia_FullMethodName:
		return service.RefuseUpload(s.ctx, s.unadmitted)
	case pb.InferenceService_CountTokens_FullMethodName:
		return service.RefuseCount(s.ctx, &serving.Request{Peer: peer}, s.unadmitted)
	}
	return s.refused(s.unadmitted)
}

// withPeer adds the address to what is known of a call's caller.
func withPeer(ctx context.Context) context.Context {
	c := serving.CallerOf(ctx)
	c.Peer = peerOf(ctx)
	return serving.WithCaller(ctx, c)
}

// guarded is a stream whose messages are received under guard. One goroutine receives.
type guarded struct {
	grpc.ServerStream
	guard   guard
	ctx     context.Context
	inbound *inbound
	text    int  // bytes of strings in a message
	prompt  bool // the message is of one of requests
	again   bool
	watcher bool      // the call is a stream that asks for no work: health, reflection
	until   time.Time // when all messages have to be there; zero where each has a time of its own
	// unadmitted is why the request is not going to be taken, as far as its headers tell.
	unadmitted error
}

func (s *guarded) Context() context.Context { return s.ctx }

// RecvMsg fills m, a proto.Message, with the stream's next message.
func (s *guarded) RecvMsg(m any) error {
	f := s.guard.server.inflight
	if s.again {
		f.again(s.inbound)
	}
	s.again = true
	raw, err := s.receive()
	if err != nil {
		return err
	}
	defer raw.Free()
	if err := f.complete(s.inbound, raw.Len()); err != nil {
		return s.refused(err)
	}
	if err := s.decode(raw, m.(proto.Message)); err != nil || !s.watcher {
		return err
	}
	return f.watch(s.inbound)
}

// receive waits for a whole message. One that is refused, or late, is left to its goroutine, which ends with the call.
func (s *guarded) receive() (mem.BufferSlice, error) {
	type received struct {
		message rawMessage
		err     error
	}
	done := make(chan received, 1)
	go func() {
		var r received
		r.err = s.ServerStream.RecvMsg(&r.message)
		done <- r
	}()
	wait := s.guard.server.options.ReceiveTimeout
	if !s.until.IsZero() {
		wait = time.Until(s.until)
	}
	late := time.NewTimer(wait)
	defer late.Stop()
	select {
	case r := <-done:
		return r.message.data, readable(r.err)
	case <-s.inbound.refused:
		return nil, s.refused(s.inbound.err)
	case <-late.C:
		return nil, tooSlow(s.guard.server.options.ReceiveTimeout)
	case <-s.ctx.Done():
		return nil, ended(s.ctx)
	}
}

// refused is the error of a message that was refused while it came. Of a request that would not have been taken there
// is a line in the log as of every other.
func (s *guarded) refused(err error) error {
	if s.unadmitted == nil || err != s.unadmitted {
		return err
	}
	return s.guard.server.service.Refuse(s.ctx, &serving.Request{Peer: serving.CallerOf(s.ctx).Peer}, err)
}

// decode fills m. As many messages as there are cores are decoded at once: each takes its size again meanwhile.
func (s *guarded) decode(raw mem.BufferSlice, m proto.Message) error {
	if raw.Len() > smallMessage {
		select {
		case s.guard.server.decoding <- struct{}{}:
			defer func() { <-s.guard.server.decoding }()
		case <-s.ctx.Done():
			return ended(s.ctx)
		}
	}
	whole := raw.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	err := decodeMessage(whole.ReadOnlyData(), m, s.guard.limits, s.text)
	if err != nil && identified(m) {
		return s.guard.server.refuseMessage(s.ctx, whole.ReadOnlyData(), m, err)
	}
	return err
}

// identified says whether messages of m's kind name their request.
func identified(m proto.Message) bool {
	switch m.(type) {
	case *pb.GenerateRequest, *pb.EmbedImageRequest:
		return true
	}
	return false
}

// refuseMessage records a request that is refused before it is decoded: it ends with a line in the log as every other.
func (s *Server) refuseMessage(ctx context.Context, message []byte, m proto.Message, err error) error {
	return s.service.Refuse(ctx, request(ctx, identify(message, m)), err)
}

// rawMessage is received as it is on the wire.
type rawMessage struct{ data mem.BufferSlice }

// codec is protobuf's, but leaves a rawMessage as it is.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if raw, ok := v.(*rawMessage); ok {
		data.Ref()
		raw.data = data
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

func unknownMethod(any, grpc.ServerStream) error { return errUnknownMethod() }
