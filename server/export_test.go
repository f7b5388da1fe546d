package server

import (
	"context"
	"net/http"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	inferencepb "github.com/mmserve/mmserve/proto/inference"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// StreamID is streamID.
func StreamID(ctx context.Context) uint32 { return streamID(ctx) }

// UncountedFields are the repeated and map fields in requests of any service that have no limit on the wire.
func UncountedFields() (names []protoreflect.FullName) {
	limits := new(Options).wireCounts()
	var walk func(protoreflect.MessageDescriptor)
	walk = func(d protoreflect.MessageDescriptor) {
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			if _, ok := limits[f.FullName()]; !ok && (f.IsList() || f.IsMap()) {
				names = append(names, f.FullName())
			}
			if f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_mmserve_v1_mmserve_proto, inferencepb.File_inference_open_inference_proto,
	} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				walk(methods.Get(j).Input())
			}
		}
	}
	return names
}

// DecodeMessage is decodeMessage with the limits of default options.
func DecodeMessage(b []byte, m proto.Message) error {
	o := Options{}.withDefaults()
	return toStatus(decodeMessage(b, m, o.wireCounts(), o.MaxTextBytes+wireTextBytes))
}

// Open is how many requests for answers are open.
func (s *Server) Open() int64 { return s.open.Load() }

// Panicking is an HTTP edge whose handlers panic with content: before an answer (/early), and in a stream (/late).
func Panicking(o Options, content string) http.Handler {
	h := &httpServer{Server: Loading(o), mux: http.NewServeMux()}
	h.handle("", "/early", func(*exchange) error { panic(content) })
	h.handle("", "/late", func(x *exchange) error {
		s := sse{x: x}
		s.begin()
		s.add([]byte("x"))
		_ = s.flush()
		panic(content)
	})
	return h
}

// Bounds of TLS handshakes.
const (
	HandshakeRate, HandshakeBurst = handshakeRate, handshakeBurst
	MoreHandshakes                = moreHandshakes
	HandshakeHosts                = handshakeHosts
)

// Handshakes bounds them.
type Handshakes = handshakes

// NewHandshakes bounds those of one certificate.
var NewHandshakes = newHandshakes

func (h *handshakes) Wait(ctx context.Context, peer string) error { return h.wait(ctx, peer) }

// Hosts is the number of those that are remembered.
func (h *handshakes) Hosts() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.hosts)
}
