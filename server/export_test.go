package server

import (
	"context"

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
