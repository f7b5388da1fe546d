package server

import (
	"bytes"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
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
