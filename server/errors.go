package server

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
)

// retryDelay is what RetryInfo suggests to a caller that found every slot taken: about the time in which a short
// answer leaves one. Callers add their own jitter.
const retryDelay = 500 * time.Millisecond

// maxViolations bounds the details of one error: they travel in an HTTP/2 header, which proxies limit to a few KiB.
const maxViolations = 8

// violations collects what is wrong with a request's fields. The texts say what was given and what is allowed,
// but never quote what a user wrote.
type violations []*errdetails.BadRequest_FieldViolation

func (v *violations) add(field, format string, args ...any) {
	if len(*v) < maxViolations {
		*v = append(*v, &errdetails.BadRequest_FieldViolation{Field: field, Description: fmt.Sprintf(format, args...)})
	}
}

// err is INVALID_ARGUMENT with the violations as its detail, or nil if there are none.
func (v violations) err() error {
	if len(v) == 0 {
		return nil
	}
	lines := make([]string, len(v))
	for i, f := range v {
		lines[i] = f.Field + ": " + f.Description
	}
	return withDetail(codes.InvalidArgument, strings.Join(lines, "; "), &errdetails.BadRequest{FieldViolations: v})
}

// invalid is INVALID_ARGUMENT for a single field.
func invalid(field, format string, args ...any) error {
	var v violations
	v.add(field, format, args...)
	return v.err()
}

// refusal is the status for a request that got no slot.
func refusal(err error) error {
	var late *batching.DeadlineError
	switch {
	case errors.As(err, &late):
		return withDetail(codes.ResourceExhausted, late.Error(), &errdetails.RetryInfo{RetryDelay: durationpb.New(late.RetryAfter())})
	case errors.Is(err, batching.ErrBusy):
		return withDetail(codes.ResourceExhausted, "every slot is taken: try again later",
			&errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)})
	case errors.Is(err, batching.ErrDraining), errors.Is(err, decoder.ErrDevice): // the process is about to end
		return errStopping()
	}
	return err
}

func errStopping() error { return status.Error(codes.Unavailable, "the server is shutting down") }

func withDetail(code codes.Code, message string, detail protoadapt.MessageV1) error {
	st, err := status.New(code, message).WithDetails(detail)
	if err != nil {
		return status.Error(code, message)
	}
	return st.Err()
}
