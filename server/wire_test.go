package server

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// A refused message is known by its id and tenant, which are looked for among its first fields only.
func TestIdentify(t *testing.T) {
	named, err := proto.Marshal(&pb.GenerateRequest{RequestId: "r-1", Tenant: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	stop := protowire.AppendString(protowire.AppendTag(nil, 7, protowire.BytesType), "")
	for name, c := range map[string]struct {
		message    []byte
		id, tenant string
	}{
		"first":          {slices.Concat(named, bytes.Repeat(stop, 5000)), "r-1", "acme"},
		"within":         {slices.Concat(bytes.Repeat(stop, maxIdentified-2), named), "r-1", "acme"},
		"later":          {slices.Concat(bytes.Repeat(stop, maxIdentified), named), "", ""},
		"before garbage": {slices.Concat(named, []byte{0xff}), "r-1", "acme"},
	} {
		if in := identify(c.message, &pb.GenerateRequest{}); in.GetRequestId() != c.id || in.GetTenant() != c.tenant {
			t.Errorf("%s: %q of %q, want %q of %q", name, in.GetRequestId(), in.GetTenant(), c.id, c.tenant)
		}
	}
}

// The wire's counts at their borders: what is just let through to be refused by its name, or taken, and what is not.
func TestWireAtItsBorders(t *testing.T) {
	marshal := func(m proto.Message) []byte {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	ids := func(n int) []byte { return marshal(&pb.GenerateRequest{StopTokenIds: make([]uint32, n)}) }
	stops := func(n int) []byte { return marshal(&pb.GenerateRequest{Stop: make([]string, n)}) }
	tenant := func(n int) []byte { return marshal(&pb.GenerateRequest{Tenant: strings.Repeat("x", n)}) }
	unknown := func(n int) []byte {
		return bytes.Repeat(protowire.AppendVarint(protowire.AppendTag(nil, 9999, protowire.VarintType), 1), n)
	}
	sampling := marshal(&pb.GenerateRequest{Sampling: &pb.Sampling{}})
	parts := func(n int) []byte {
		return marshal(&pb.GenerateRequest{Input: &pb.GenerateRequest_Prompt{
			Prompt: &pb.Prompt{Parts: slices.Repeat([]*pb.Part{{}}, n)},
		}})
	}
	const text = 100
	for _, c := range []struct {
		name    string
		message []byte
		says    string
	}{
		{"nothing", nil, ""},
		{"packed ids", ids(wireSlack * serving.MaxStopIDs), ""},
		{"an id more", ids(wireSlack*serving.MaxStopIDs + 1), "stop_token_ids: 65 values; at most 16 are allowed"},
		{"as many as are counted", ids(maxCounted), "stop_token_ids: 100000 values; at most 16 are allowed"},
		{"more than are counted", ids(maxCounted + 1), "stop_token_ids: over 100000 values; at most 16 are allowed"},
		{"texts", stops(wireSlack * 16), ""},
		{"a text more", stops(wireSlack*16 + 1), "stop: 65 values; at most 16"},
		{"a message many times", bytes.Repeat(sampling, wireSlack*singularWireCount), ""},
		{"once more", bytes.Repeat(sampling, wireSlack*singularWireCount+1), "sampling: 65 values; at most 16"},
		{"parts", parts(wireSlack * serving.MaxParts), ""},
		{"a part more", parts(wireSlack*serving.MaxParts + 1), "prompt.parts: 8193 values; at most 2048"},
		{"bytes of text", tenant(text), ""},
		{"a byte more", tenant(text + 1), "tenant: too many bytes of text"},
		{"unknown fields", unknown(maxWireFields), ""},
		{"one more", unknown(maxWireFields + 1), "message: over 400000 fields"},
		{"no tag", []byte{0x80}, "message: the bytes are no mmserve.v1.GenerateRequest"},
		{"no value", []byte{0x0a, 5}, "message: the bytes are no mmserve.v1.GenerateRequest"},
	} {
		o := Options{}.withDefaults()
		err := decodeMessage(c.message, &pb.GenerateRequest{}, o.wireCounts(), text)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.HasPrefix(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
		if told := (*serving.Error)(nil); err != nil && (!errors.As(err, &told) || told.Kind != serving.Invalid) {
			t.Errorf("%s: %v is no fault of the message", c.name, err)
		}
	}
	d := (&pb.GenerateRequest{}).ProtoReflect().Descriptor()
	for depth, deep := range map[int]bool{wireDepth: false, wireDepth + 1: true} {
		s := wireScan{fields: 1}
		if err := s.message(nil, d, make([]string, depth)); (err != nil) != deep {
			t.Errorf("at depth %d: %v", depth, err)
		}
	}
}

// Of a packed list each value counts, and nothing but a packed list has more than one.
func TestElements(t *testing.T) {
	field := func(m proto.Message, name protoreflect.Name) protoreflect.FieldDescriptor {
		return m.ProtoReflect().Descriptor().Fields().ByName(name)
	}
	scores, stops := field(&pb.StreamFinish{}, "choice_scores"), field(&pb.GenerateRequest{}, "stop_token_ids")
	list := func(content ...byte) []byte { return protowire.AppendBytes(nil, content) }
	for _, c := range []struct {
		f     protoreflect.FieldDescriptor
		kind  protowire.Type
		value []byte
		want  int
	}{
		{stops, protowire.BytesType, list(), 0},
		{stops, protowire.BytesType, list(1, 0x7f, 0), 3},
		{stops, protowire.BytesType, list(0x80, 1, 0xff, 0xff, 3), 2},
		{stops, protowire.VarintType, []byte{5}, 1},
		{scores, protowire.BytesType, list(make([]byte, 12)...), 3},
		{scores, protowire.BytesType, list(), 0},
		{scores, protowire.Fixed32Type, make([]byte, 4), 1},
		{field(&pb.GenerateRequest{}, "stop"), protowire.BytesType, list(1, 2, 3), 1},
		{field(&pb.GenerateRequest{}, "tenant"), protowire.BytesType, list(1, 2, 3), 1},
	} {
		if got := elements(c.f, c.kind, c.value); got != c.want {
			t.Errorf("%s of %x has %d values, want %d", c.f.Name(), c.value, got, c.want)
		}
	}
}
