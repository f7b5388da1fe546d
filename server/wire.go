package server

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// wireCounts are the most values of a repeated or map field in one request, counted before anything is decoded: a
// message of 64 MiB has room for 32 million empty parts. To leave near misses to validate, which names all violations,
// a message is refused here only when it has wireSlack times as many.
func (o *Options) wireCounts() map[protoreflect.FullName]int {
	return map[protoreflect.FullName]int{
		"mmserve.v1.Chat.messages":                  serving.MaxMessages,
		"mmserve.v1.Message.parts":                  serving.MaxParts,
		"mmserve.v1.Prompt.parts":                   serving.MaxParts,
		"mmserve.v1.TokenIds.ids":                   serving.MaxPromptIDs,
		"mmserve.v1.HasMediaRequest.digests":        maxDigests,
		"mmserve.v1.GenerateRequest.stop":           o.MaxStop,
		"mmserve.v1.GenerateRequest.stop_token_ids": serving.MaxStopIDs,
		"mmserve.v1.Sampling.logit_bias":            serving.MaxBiases,
		"mmserve.v1.Choices.texts":                  serving.MaxChoices,

		"mmserve.v1.AppendMessagesRequest.messages":           serving.MaxMessages,
		"mmserve.v1.CreateConversationRequest.metadata":       serving.MaxMetadata,
		"mmserve.v1.ExportConversationsRequest.conversations": maxExported,
	}
}

const (
	// defaultWireCount is for repeated fields of other services.
	defaultWireCount = 64
	// singularWireCount is how often a singular message field may come; encoders write one once,
	// and decoders merge several.
	singularWireCount = 16
	// wireTextBytes is the room for strings beside the text of the input: schemas, choices, stop strings, ids.
	wireTextBytes = 512 << 10
	// wireSlack is how many times its limit a field is counted before the message is refused.
	wireSlack = 4
	// maxExported is how many conversations an export names.
	maxExported = 64
	// maxDigests is how many files HasMedia is asked about.
	maxDigests = 256
	// maxCounted is where counting for the sake of an error's text ends.
	maxCounted = 100_000
	// maxWireFields is how many fields of any kind, unknown ones too, a message may hold.
	maxWireFields = 4 * maxCounted
	// maxIdentified is how many fields of a message that is refused are looked at for its id and tenant.
	maxIdentified = 1000
	// wireDepth is deeper than any request nests.
	wireDepth = 16
)

// wireScan counts what a message holds, in one pass and without decoding it.
type wireScan struct {
	limits map[protoreflect.FullName]int
	counts map[protoreflect.FullName]int
	text   int // bytes of strings that are left
	fields int // fields that are left

	over protoreflect.FieldDescriptor // the first field that has too many
	path string
}

// decodeMessage fills m from what a client sent, which has to be within limits and hold at most text bytes of strings.
// Its errors are *serving.Error, Invalid.
func decodeMessage(b []byte, m proto.Message, limits map[protoreflect.FullName]int, text int) error {
	d := m.ProtoReflect().Descriptor()
	s := wireScan{limits: limits, counts: map[protoreflect.FullName]int{}, text: text, fields: maxWireFields}
	if err := s.message(b, d, nil); err != nil {
		return err
	}
	if s.over != nil {
		return serving.InvalidField(s.path, "%d values; at most %d are allowed", s.counts[s.over.FullName()], s.limit(s.over))
	}
	// Unknown fields would be kept. Old clients and new ones send some, so they are no error.
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return malformed(d)
	}
	return nil
}

// malformed leaves out the decoder's text, which may quote the message.
func malformed(d protoreflect.MessageDescriptor) error {
	return serving.InvalidField("message", "the bytes are no %s with valid UTF-8 in its strings", d.FullName())
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
		if s.fields--; s.fields < 0 {
			return serving.InvalidField("message", "over %d fields, known and unknown ones; want fewer", maxWireFields)
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
		n := s.counts[f.FullName()] + elements(f, kind, value)
		s.counts[f.FullName()] = n
		if n > wireSlack*s.limit(f) && s.over == nil {
			s.over, s.path = f, fieldPath(path, f)
		}
		if n > maxCounted && s.over == f {
			return serving.InvalidField(s.path, "over %d values; at most %d are allowed", maxCounted, s.limit(f))
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
			return serving.InvalidField(fieldPath(path, f), "too many bytes of text up to here; the server takes fewer in one request")
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

// limit is how many values of a field a whole request may hold.
func (s *wireScan) limit(f protoreflect.FieldDescriptor) int {
	if n, ok := s.limits[f.FullName()]; ok {
		return n
	}
	switch f.ContainingMessage().FullName() {
	case "mmserve.v1.Part": // parts are counted, and each has one content
		return s.limits["mmserve.v1.Message.parts"]
	}
	if f.IsList() || f.IsMap() {
		return defaultWireCount
	}
	return singularWireCount
}

func fieldPath(path []string, f protoreflect.FieldDescriptor) string {
	return strings.Join(append(path[:len(path):len(path)], string(f.Name())), ".")
}

// identify reads request_id and tenant of a message that cannot be decoded into m, if they are among its first fields.
func identify(b []byte, m proto.Message) *pb.GenerateRequest {
	in, fields := &pb.GenerateRequest{}, m.ProtoReflect().Descriptor().Fields()
	number := func(name protoreflect.Name) protowire.Number {
		if f := fields.ByName(name); f != nil {
			return f.Number()
		}
		return 0
	}
	id, tenant := number("request_id"), number("tenant")
	for looked := 0; len(b) > 0 && looked < maxIdentified; looked++ {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			break
		}
		size := protowire.ConsumeFieldValue(number, kind, b[n:])
		if size < 0 {
			break
		}
		if value, _ := protowire.ConsumeBytes(b[n:]); kind == protowire.BytesType && len(value) <= serving.MaxIDBytes {
			switch number {
			case id:
				in.RequestId = string(value)
			case tenant:
				in.Tenant = string(value)
			}
		}
		b = b[n+size:]
	}
	return in
}
