package loadtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
)

// Target is a server under load. Its methods may be called from any goroutine.
type Target interface {
	// Generate sends r and calls token, on its own goroutine, for each piece of text as it comes, with the number of
	// tokens it is made of as far as the protocol tells. It returns when the answer has ended or ctx has, and keeps
	// nothing of r.
	Generate(ctx context.Context, r *Request, token func(tokens int)) (Answer, error)
	// String is the protocol and the address.
	String() string
	Close() error
}

// Answer is what the server says of a whole answer.
type Answer struct {
	// Tokens of the prompt; of those, of images; of those and of all, the ones that a cache had; and of the answer.
	Prompt, Image, CachedImage, Cached, Completion int
	// Finish is why it ended, in the words of OpenAI's finish_reason, or cancelled when the server cut it short.
	Finish string
	// Stages are the times it took by the server's clock, as far as it tells.
	Stages map[string]time.Duration
}

// Codes of requests that did not fail at the server.
const (
	codeOK          = "OK"
	codeAbandoned   = "ABANDONED"   // given up on purpose
	codeNotSent     = "NOT_SENT"    // too many were open
	codeInterrupted = "INTERRUPTED" // the run ended first
	codeCut         = "CUT"         // the server ended the answer because it shut down
)

var codeNames = map[codes.Code]string{
	codes.Canceled: "CANCELLED", codes.InvalidArgument: "INVALID_ARGUMENT", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
	codes.NotFound: "NOT_FOUND", codes.PermissionDenied: "PERMISSION_DENIED",
	codes.ResourceExhausted:  "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL",
	codes.Unavailable: "UNAVAILABLE", codes.Unauthenticated: "UNAUTHENTICATED", codes.Aborted: "ABORTED",
	codes.OutOfRange: "OUT_OF_RANGE",
	codes.DataLoss:   "DATA_LOSS", codes.AlreadyExists: "ALREADY_EXISTS", codes.Unknown: "UNKNOWN",
}

// httpError is an answer with another status than 200.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.status, e.text) }

// CodeOf names an error: gRPC's codes in capitals, HTTP_429, TRUNCATED for a stream that broke off.
func CodeOf(err error) string {
	var http *httpError
	switch {
	case err == nil:
		return codeOK
	case errors.As(err, &http):
		return fmt.Sprintf("HTTP_%d", http.status)
	case errors.Is(err, client.ErrTruncated), errors.Is(err, errTruncated):
		return "TRUNCATED"
	case errors.Is(err, context.DeadlineExceeded):
		return "DEADLINE_EXCEEDED"
	case errors.Is(err, context.Canceled):
		return "CANCELLED"
	}
	if s, ok := status.FromError(err); ok {
		return codeNames[s.Code()]
	}
	return "TRANSPORT"
}
