package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mmserve/mmserve/serving"
)

// All status codes are given here: those of serving's kinds of errors, and those of what happens to a message before
// it is a request.

// kindCodes are the codes of serving's kinds.
var kindCodes = map[serving.Kind]codes.Code{
	serving.OK:                 codes.OK,
	serving.Canceled:           codes.Canceled,
	serving.DeadlineExceeded:   codes.DeadlineExceeded,
	serving.Invalid:            codes.InvalidArgument,
	serving.NotFound:           codes.NotFound,
	serving.FailedPrecondition: codes.FailedPrecondition,
	serving.Exhausted:          codes.ResourceExhausted,
	serving.Unavailable:        codes.Unavailable,
	serving.Internal:           codes.Internal,
	serving.Unauthenticated:    codes.Unauthenticated,
	serving.PermissionDenied:   codes.PermissionDenied,
	serving.AlreadyExists:      codes.AlreadyExists,
	serving.Aborted:            codes.Aborted,
}

// toStatus is an error as it goes out: a *serving.Error with its details, a status as it is. It is nil if err is.
func toStatus(err error) error {
	var e *serving.Error
	if !errors.As(err, &e) {
		return err
	}
	var detail protoadapt.MessageV1
	switch {
	case len(e.Violations) > 0:
		list := make([]*errdetails.BadRequest_FieldViolation, len(e.Violations))
		for i, v := range e.Violations {
			list[i] = &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description}
		}
		detail = &errdetails.BadRequest{FieldViolations: list}
	case quarantineInfo(err) != nil:
		detail = quarantineInfo(err)
	case e.RetryAfter > 0:
		detail = &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)}
	}
	st := status.New(kindCodes[e.Kind], e.Message)
	if detail != nil {
		if with, err := st.WithDetails(detail); err == nil {
			st = with
		}
	}
	return st.Err()
}

// quarantineInfo tells programs of a quarantine; nil if err is none. It has no RetryInfo: clients would take it for a
// load that goes away.
func quarantineInfo(err error) *errdetails.ErrorInfo {
	var q *serving.QuarantineError
	if !errors.As(err, &q) {
		return nil
	}
	return &errdetails.ErrorInfo{Reason: "QUARANTINED", Domain: "mmserve", Metadata: map[string]string{
		"reference": q.Reference, "until": q.Until.UTC().Format(time.RFC3339),
	}}
}

// fromStatus is what sending failed with, as serving takes it from a sink.
func fromStatus(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	for kind, code := range kindCodes {
		if code == st.Code() {
			return &serving.Error{Kind: kind, Message: st.Message()}
		}
	}
	return err
}

// exhausted is RESOURCE_EXHAUSTED of a message that trying again does not help.
func exhausted(format string, args ...any) error {
	return status.Errorf(codes.ResourceExhausted, format, args...)
}

// ended is the status of a context that has ended.
func ended(ctx context.Context) error { return status.FromContextError(ctx.Err()).Err() }

// tooSlow is for a message that did not come whole.
func tooSlow(within time.Duration) error {
	return status.Errorf(codes.DeadlineExceeded, "the message did not come whole within %v", within)
}

// readable makes what gRPC calls INTERNAL in receiving the client's mistake that it is: broken
// framing, a missing message.
func readable(err error) error {
	if st, ok := status.FromError(err); ok && st.Code() == codes.Internal {
		return status.Error(codes.InvalidArgument, st.Message())
	}
	return err
}

// broken is the status of a call that a panic ended.
func broken() error { return status.Error(codes.Internal, "the server failed") }

func errLoading() error { return toStatus(serving.Loading()) }

func errCompressed() error {
	return status.Error(codes.Unimplemented,
		"compressed requests are not taken: images are compressed already; send the message as it is (grpc-encoding identity)")
}

// errUnknownMethod does not repeat what the client asked for.
func errUnknownMethod() error {
	return status.Error(codes.Unimplemented, fmt.Sprintf("unknown method; this server has %s, %s and reflection",
		strings.Join(serviceNames, ", "), grpc_health_v1.Health_ServiceDesc.ServiceName))
}
