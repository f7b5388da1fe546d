package server

import (
	"context"
	"net/http"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// StreamID is streamID.
func StreamID(ctx context.Context) uint32 { return streamID(ctx) }

// UncountedFields are the repeated and map fields in messages that have no limit on the wire.
func UncountedFields(messages ...proto.Message) (names []protoreflect.FullName) {
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
	for _, m := range messages {
		walk(m.ProtoReflect().Descriptor())
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
