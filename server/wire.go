package server

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// wireCounts are the most values of a repeated or map field in one request, counted before anything is decoded: a message
// of 64 MiB has room for 32 million empty parts. They only bound memory; validate has the contract's own limits.
var wireCounts = map[protoreflect.FullName]int{
	"mmserve.v1.Chat.messages":                  2048,
	"mmserve.v1.Message.parts":                  8192,
	"mmserve.v1.Prompt.parts":                   8192,
	"mmserve.v1.GenerateRequest.stop":           256,
	"mmserve.v1.GenerateRequest.stop_token_ids": 256,
	"mmserve.v1.Sampling.logit_bias":            1024,
	"mmserve.v1.Choices.texts":                  32 << 10,
}

const (
	// defaultWireCount is for repeated fields of other services.
	defaultWireCount = 64
	// singularWireCount is how often a singular message field may come; encoders write one once, and decoders merge several.
	singularWireCount = 16
	// wireTextBytes is the room for strings beside the text of the input: schemas, choices, stop strings, ids.
	wireTextBytes = 512 << 10
	// wireDepth is deeper than any request nests.
	wireDepth = 16
)

// decodeMessage fills m from what a client sent, which has to be within the counts above and hold at most text bytes of
// strings. Its errors are INVALID_ARGUMENT.
func decodeMessage(b []byte, m proto.Message, text int) error {
	s := wireScan{counts: map[protoreflect.FullName]int{}, text: text}
	if err := s.message(b, m.ProtoReflect().Descriptor(), nil); err != nil {
		return err
	}
	// Unknown fields would be kept. Old clients and new ones send some, so they are no error.
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return malformed(m.ProtoReflect().Descriptor())
	}
	return nil
}

// malformed leaves out the decoder's text, which may quote the message.
func malformed(d protoreflect.MessageDescriptor) error {
	return invalid("message", "the bytes are no %s with valid UTF-8 in its strings", d.FullName())
}

// wireScan counts what a message holds, in one pass and without decoding it.
type wireScan struct {
	counts map[protoreflect.FullName]int
	text   int // bytes of strings that are left
}

func (s *wireScan) message(b []byte, d protoreflect.MessageDescriptor, path []string) error {
	if len(path) > wireDepth {
		return malformed(d)
	}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed(d)
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(number, kind, b)
		if size < 0 {
			return malformed(d)
		}
		if f := d.Fields().ByNumber(number); f != nil {
			if err := s.field(f, kind, b[:size], path); err != nil {
				return err
			}
		}
		b = b[size:]
	}
	return nil
}

// field counts one value, or a packed run of them.
func (s *wireScan) field(f protoreflect.FieldDescriptor, kind protowire.Type, value []byte, path []string) error {
	if f.IsList() || f.IsMap() || f.Message() != nil {
		if s.counts[f.FullName()] += elements(f, kind, value); s.counts[f.FullName()] > wireCount(f) {
			return invalid(fieldPath(path, f), "more than %d values; the limit is below that", wireCount(f))
		}
	}
	if kind != protowire.BytesType {
		return nil
	}
	content, _ := protowire.ConsumeBytes(value)
	switch f.Kind() {
	case protoreflect.MessageKind:
		return s.message(content, f.Message(), append(path, string(f.Name())))
	case protoreflect.StringKind:
		if s.text -= len(content); s.text < 0 {
			return invalid(fieldPath(path, f), "too many bytes of text up to here; the server takes fewer in one request")
		}
	}
	return nil
}

// elements is the number of values in one field of the wire: of a packed list there may be many.
func elements(f protoreflect.FieldDescriptor, kind protowire.Type, value []byte) int {
	if kind != protowire.BytesType || !f.IsList() || !f.IsPacked() {
		return 1
	}
	content, _ := protowire.ConsumeBytes(value)
	switch f.Kind() {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return len(content) / 4
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return len(content) / 8
	}
	n := 0
	for _, c := range content {
		if c < 0x80 { // the last byte of a varint
			n++
		}
	}
	return n
}

func wireCount(f protoreflect.FieldDescriptor) int {
	if n, ok := wireCounts[f.FullName()]; ok {
		return n
	}
	if f.IsList() || f.IsMap() {
		return defaultWireCount
	}
	if p := f.ContainingMessage().FullName(); p == "mmserve.v1.Part" {
		return 2 * wireCounts["mmserve.v1.Message.parts"] // parts are counted, and each has one content
	} else if f.ContainingMessage().IsMapEntry() {
		return defaultWireCount
	}
	return singularWireCount
}

func fieldPath(path []string, f protoreflect.FieldDescriptor) string {
	return strings.Join(append(path[:len(path):len(path)], string(f.Name())), ".")
}
