package server

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/serving"
)

// Each kind has a code of its own, and what sending fails with comes back as the same kind.
func TestStatus(t *testing.T) {
	seen := map[codes.Code]serving.Kind{}
	for kind := serving.Canceled; kind <= serving.PermissionDenied; kind++ {
		st := status.Convert(toStatus(&serving.Error{Kind: kind, Message: "why"}))
		if other, ok := seen[st.Code()]; ok || st.Code() == codes.OK || st.Code() == codes.Unknown || st.Message() != "why" {
			t.Errorf("%v: %v, as %v", kind, st, other)
		}
		seen[st.Code()] = kind
		if back := serving.KindOf(fromStatus(st.Err())); back != kind {
			t.Errorf("%v comes back as %v", kind, back)
		}
		if st.Code().String() != kind.String() {
			t.Errorf("the log calls %v %v", st.Code(), kind)
		}
	}
	if toStatus(nil) != nil || fromStatus(nil) != nil {
		t.Error("no error has a status")
	}
	plain := errors.New("plain")
	if toStatus(plain) != plain || fromStatus(plain) != plain {
		t.Error("an error without a kind was changed")
	}
}

func TestStatusDetails(t *testing.T) {
	st := status.Convert(toStatus(serving.InvalidField("n", "17; want at most 16")))
	if d, ok := st.Details()[0].(*errdetails.BadRequest); !ok || len(d.GetFieldViolations()) != 1 ||
		d.GetFieldViolations()[0].GetField() != "n" {
		t.Errorf("details %v", st.Details())
	}
	st = status.Convert(toStatus(&serving.Error{Kind: serving.Exhausted, Message: "later", RetryAfter: time.Second}))
	if d, ok := st.Details()[0].(*errdetails.RetryInfo); !ok || d.GetRetryDelay().AsDuration() != time.Second {
		t.Errorf("details %v", st.Details())
	}
}
