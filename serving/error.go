package serving

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
)

// Kind says whose fault an error is, and what its caller can do.
type Kind int

const (
	// OK is that of no error.
	OK Kind = iota
	// Canceled and DeadlineExceeded say that the caller waits no longer.
	Canceled
	DeadlineExceeded
	// Invalid has Violations, which say what to change.
	Invalid
	// NotFound says that no model has the name, or no upload the digest.
	NotFound
	// FailedPrecondition says that the model does not do what is asked.
	FailedPrecondition
	// Exhausted may be tried again after RetryAfter, if that is given.
	Exhausted
	// Unavailable says that the server is about to end, or that the model is.
	Unavailable
	// Internal is the server's own fault; its log says more.
	Internal
	// Unauthenticated says that the caller has no credential that counts here.
	Unauthenticated
	// PermissionDenied says that the caller's credential does not allow what is asked.
	PermissionDenied
	// AlreadyExists says that what was to be made is there: an answer of the same request.
	AlreadyExists
	// Aborted says that others changed in between what the request is about.
	Aborted
)

// kindNames are the kinds as log lines and as metrics write them.
var kindNames = [...][2]string{
	OK:                 {"OK", "OK"},
	Canceled:           {"Canceled", "CANCELLED"},
	DeadlineExceeded:   {"DeadlineExceeded", "DEADLINE_EXCEEDED"},
	Invalid:            {"InvalidArgument", "INVALID_ARGUMENT"},
	NotFound:           {"NotFound", "NOT_FOUND"},
	FailedPrecondition: {"FailedPrecondition", "FAILED_PRECONDITION"},
	Exhausted:          {"ResourceExhausted", "RESOURCE_EXHAUSTED"},
	Unavailable:        {"Unavailable", "UNAVAILABLE"},
	Internal:           {"Internal", "INTERNAL"},
	Unauthenticated:    {"Unauthenticated", "UNAUTHENTICATED"},
	PermissionDenied:   {"PermissionDenied", "PERMISSION_DENIED"},
	AlreadyExists:      {"AlreadyExists", "ALREADY_EXISTS"},
	Aborted:            {"Aborted", "ABORTED"},
}

// String is the kind as log lines write it.
func (k Kind) String() string { return kindNames[k][0] }

// Code is the kind as the audit log writes it: gRPC's name of its status.
func Code(k Kind) string { return k.label() }

// label is the kind as metrics and traces write it.
func (k Kind) label() string { return kindNames[k][1] }

// ours says whether a kind is the server's fault, as the RPC conventions see it.
func (k Kind) ours() bool {
	return k == DeadlineExceeded || k == Unavailable || k == Internal
}

// Error is why a request failed, in words that are safe to show to its caller.
type Error struct {
	Kind       Kind
	Message    string
	Violations Violations
	// RetryAfter is how long to wait before another try; 0 if that is not known to help. Callers add their own jitter.
	RetryAfter time.Duration

	cause error // for errors.Is; its text may not be shown
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the cause, whose text may say more than callers should see.
func (e *Error) Unwrap() error { return e.cause }

// KindOf is the kind of an error: Internal unless it is an *Error, OK if it is nil.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.Kind
	}
	return Internal
}

// retryDelay is what is suggested to a caller that found every slot taken: about the time in which a
// short answer leaves one.
const retryDelay = 500 * time.Millisecond

// stoppingDelay is what is suggested to a caller of a server that stops or loads its model. Another server may take the
// request at once, and whoever has only this one tries again with a back-off of its own.
const stoppingDelay = 100 * time.Millisecond

// maxViolations bounds the details of one error: they travel in an HTTP/2 header, which proxies limit to a few KiB.
const maxViolations = 8

// Violation is what is wrong with a field, named as in the contract.
type Violation struct{ Field, Description string }

// Violations collects what is wrong with a request's fields. The texts say what was given and what is allowed,
// but never quote what a user wrote.
type Violations []Violation

// Add notes a violation, unless there are many already.
func (v *Violations) Add(field, format string, args ...any) {
	if len(*v) < maxViolations {
		*v = append(*v, Violation{field, fmt.Sprintf(format, args...)})
	}
}

// Err is an Invalid error of the violations, or nil if there are none.
func (v Violations) Err() error {
	if len(v) == 0 {
		return nil
	}
	lines := make([]string, len(v))
	for i, f := range v {
		lines[i] = f.Field + ": " + f.Description
	}
	return &Error{Kind: Invalid, Message: strings.Join(lines, "; "), Violations: v}
}

// InvalidField is an Invalid error of a single field.
func InvalidField(field, format string, args ...any) error {
	var v Violations
	v.Add(field, format, args...)
	return v.Err()
}

// Overloaded is the error of a request that finds what it needs taken by others.
func Overloaded(message string) error {
	return &Error{Kind: Exhausted, Message: message, RetryAfter: retryDelay}
}

// TooSlow is the error of a caller that does not take its answer.
func TooSlow(within time.Duration) error {
	return &Error{Kind: DeadlineExceeded, Message: fmt.Sprintf("the answer was not taken within %v", within)}
}

// Stopping is the error of requests that come too late.
func Stopping() error { return unavailable("the server is shutting down", nil) }

// Loading is the error of requests that come before the models.
func Loading() error { return unavailable("the model is loading", nil) }

// unavailable is the error of a request that another server, or this one later, may answer.
func unavailable(message string, cause error) error {
	return &Error{Kind: Unavailable, Message: message, RetryAfter: stoppingDelay, cause: cause}
}

// Left is the error of a caller whose ctx has ended.
func Left(ctx context.Context) error { return shown(ctx.Err(), "") }

// failed is an error of the kind, with a text that is safe to show.
func failed(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// ErrCut is the cause of a request's end when the server shuts down and cannot wait any longer.
var ErrCut = errors.New("cut by shutdown")

// errUnloaded is the cause of a request's end when its model was taken out and cannot wait any longer.
var errUnloaded = errors.New("cut by unloading")

// refusal is the error of a request that got no slot.
func refusal(err error) error {
	var late *batching.DeadlineError
	switch {
	case errors.As(err, &late):
		return &Error{Kind: Exhausted, Message: late.Error(), RetryAfter: late.RetryAfter()}
	case errors.Is(err, batching.ErrBusy):
		return &Error{Kind: Exhausted, Message: "every slot is taken: try again later", RetryAfter: retryDelay, cause: err}
	case errors.Is(err, batching.ErrDraining), errors.Is(err, decoder.ErrDevice): // the process is about to end
		return Stopping()
	}
	return err
}

// shown is err as the caller of the request id sees it. One that is no *Error is the server's own fault, and its text
// stays here.
func shown(err error, id string) error {
	if err == nil || errors.As(err, new(*Error)) {
		return err
	}
	kind, message := Internal, "the server failed; its log has request "+id
	switch {
	case errors.Is(err, ErrCut):
		return unavailable("the server is shutting down", err)
	case errors.Is(err, errUnloaded):
		return unavailable("the model was unloaded before the answer was complete", err)
	case errors.Is(err, context.Canceled):
		kind, message = Canceled, "the call was cancelled"
	case errors.Is(err, context.DeadlineExceeded):
		kind, message = DeadlineExceeded, "the call's deadline passed"
	}
	return &Error{Kind: kind, Message: message, cause: err}
}
