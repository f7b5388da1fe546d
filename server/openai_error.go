package server

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// All HTTP statuses are given here: those of serving's kinds of errors, and those of what happens to a body before it
// is a request.

// kindStatuses are the statuses of serving's kinds.
var kindStatuses = map[serving.Kind]int{
	serving.Canceled:           statusClientGone,
	serving.DeadlineExceeded:   http.StatusGatewayTimeout,
	serving.Invalid:            http.StatusBadRequest,
	serving.NotFound:           http.StatusNotFound,
	serving.FailedPrecondition: http.StatusBadRequest,
	serving.Exhausted:          http.StatusTooManyRequests,
	serving.Unavailable:        http.StatusServiceUnavailable,
	serving.Internal:           http.StatusInternalServerError,
	serving.Unauthenticated:    http.StatusUnauthorized,
	serving.PermissionDenied:   http.StatusForbidden,
	serving.AlreadyExists:      http.StatusConflict,
	serving.Aborted:            http.StatusConflict,
}

// statusClientGone is what nginx logs for a client that left. One that only closed its side reads it.
const statusClientGone = 499

// httpError is an answer that is an error.
type httpError struct {
	status     int
	body       *openai.Error
	retryAfter time.Duration // 0: another try is not known to help
}

func (e *httpError) Error() string { return e.body.Message }

// toHTTP is an error as it goes out. param gives a field of the contract its name in OpenAI's API.
func toHTTP(err error, param func(string) string) *httpError {
	var known *httpError
	if errors.As(err, &known) {
		return known
	}
	var body *openai.Error
	if errors.As(err, &body) {
		return &httpError{status: http.StatusBadRequest, body: body}
	}
	var e *serving.Error
	if !errors.As(err, &e) {
		if errors.Is(err, context.Canceled) {
			return refused(statusClientGone, "", "the call was cancelled")
		}
		return errBroken()
	}
	out := &httpError{status: kindStatuses[e.Kind], retryAfter: e.RetryAfter}
	field, code, message := "", kindTexts[e.Kind], e.Message
	if e.Kind == serving.Exhausted && e.RetryAfter == 0 { // another try does not help
		out.status, code = http.StatusRequestEntityTooLarge, "request_too_large"
	}
	if len(e.Violations) > 0 {
		field = param(e.Violations[0].Field)
		lines := make([]string, len(e.Violations))
		for i, v := range e.Violations {
			lines[i] = param(v.Field) + ": " + v.Description
		}
		message = strings.Join(lines, "; ")
	} else if e.Kind == serving.NotFound {
		field = "model"
	}
	if errors.Is(err, serving.ErrNoConversation) {
		code = "conversation_not_found"
	}
	if errors.Is(err, serving.ErrNoTools) {
		code = openai.CodeUnsupported
	}
	if errors.As(err, new(*serving.QuarantineError)) {
		code = "quarantined"
	}
	if errors.Is(err, serving.ErrPolicy) {
		code = "content_filter"
	}
	if errors.Is(err, serving.ErrContextLength) { // proxies that have a longer context elsewhere know these words
		code, message = "context_length_exceeded", message+". This model's maximum context length is exceeded"
	}
	out.body = openai.NewError(errorType(out.status), field, code, "%s", message)
	return out
}

// kindTexts are the codes that programs look at.
var kindTexts = map[serving.Kind]string{
	serving.Invalid:          openai.CodeInvalidValue,
	serving.NotFound:         "model_not_found",
	serving.Exhausted:        "rate_limit_exceeded",
	serving.Unavailable:      "service_unavailable",
	serving.DeadlineExceeded: "deadline_exceeded",
	serving.Unauthenticated:  "invalid_api_key",
	serving.PermissionDenied: "permission_denied",
	serving.AlreadyExists:    "already_exists",
	serving.Aborted:          "aborted",
}

func errorType(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return openai.RateLimit
	case status < 500:
		return openai.InvalidRequest
	}
	return openai.ServerError
}

// refusalKind is the kind of an error that has a status before it is one of serving's.
func refusalKind(status int) serving.Kind {
	switch status {
	case statusClientGone:
		return serving.Canceled
	case http.StatusRequestTimeout:
		return serving.DeadlineExceeded
	case http.StatusRequestEntityTooLarge, http.StatusTooManyRequests:
		return serving.Exhausted
	case http.StatusInternalServerError:
		return serving.Internal
	}
	return serving.Invalid
}

// fail answers with an error. In the middle of a stream it is the last event.
func (x *exchange) fail(err error) {
	e := toHTTP(err, x.param)
	var body any = struct {
		Error *openai.Error `json:"error"`
	}{e.body}
	if strings.HasPrefix(x.r.URL.Path, ollamaPrefix) {
		body = ollamaError(e)
	}
	switch {
	case x.streams && x.last != nil:
		x.last(e)
		return
	case x.streams:
		x.sendLast(body)
		return
	case x.began:
		return
	}
	h := x.w.Header()
	if e.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(e.retryAfter.Seconds()))))
		h.Set("Retry-After-Ms", strconv.FormatInt(max(1, e.retryAfter.Milliseconds()), 10))
	}
	if e.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="mmserve"`)
	}
	linger := x.lingers()
	if linger {
		_ = x.rc.EnableFullDuplex()
		h.Set("Connection", "close")
	}
	if x.writeStatus(e.status, body); linger {
		x.linger()
	}
}

// write answers with a value as JSON.
func (x *exchange) write(v any) error {
	x.writeStatus(http.StatusOK, v)
	return nil
}

func (x *exchange) writeStatus(status int, v any) {
	b := openai.Marshal(v)
	x.began = true
	h := x.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	_ = x.rc.SetWriteDeadline(time.Now().Add(writeTime))
	x.w.WriteHeader(status)
	_, _ = x.w.Write(b) // a client that left does not read it
}

func refused(status int, code, format string, args ...any) *httpError {
	return &httpError{status: status, body: openai.NewError(errorType(status), "", code, format, args...)}
}

func errBroken() *httpError {
	return refused(http.StatusInternalServerError, "", "the server failed")
}

func errOrigin() error {
	return refused(http.StatusForbidden, "origin_not_allowed", "this web page may not ask here (--http-allow-origin)")
}

// errHost does not repeat the name.
func errHost() error {
	return refused(http.StatusForbidden, "host_not_allowed",
		"this Host is not answered here: ask by IP address or as localhost (--http-allow-origin allows a name)")
}

// errUnknownPath does not repeat what the client asked for.
func errUnknownPath() error {
	return refused(http.StatusNotFound, "unknown_url", "no such endpoint here; there are "+endpoints)
}

func errMethod(want string) error {
	return refused(http.StatusMethodNotAllowed, "method_not_allowed", "this endpoint wants %s", want)
}

func errEncoded() error {
	return refused(http.StatusUnsupportedMediaType, "unsupported_encoding",
		"compressed bodies are not taken: images are compressed already; send the body as it is, without Content-Encoding")
}

func errMediaType() error {
	return refused(http.StatusUnsupportedMediaType, "unsupported_media_type", "want Content-Type: application/json")
}

func errBodyTooLarge(most int) error {
	return refused(http.StatusRequestEntityTooLarge, "body_too_large",
		"the body is larger than this server takes: at most %d bytes", most)
}

func errSlowBody(within time.Duration) error {
	return refused(http.StatusRequestTimeout, "body_timeout", "the body did not come whole within %v", within)
}

func errBrokenBody() error {
	return refused(http.StatusBadRequest, openai.CodeInvalidJSON, "the body broke off before its end")
}

// contractNames turn parts of the contract's names of fields into OpenAI's, in order.
var contractNames = strings.NewReplacer(
	"chat.", "", "sampling.", "", ".parts[", ".content[", ".parts", ".content",
	".image.data", ".image_url.url", ".image.url", ".image_url.url",
)

// param is the name in the exchange's API of a field of the contract.
func (x *exchange) param(field string) string {
	switch {
	case field == "input":
		return cmp.Or(x.input, "messages")
	case field == "top_logprobs" && x.input == "prompt":
		return "logprobs"
	case field == "max_tokens":
		return cmp.Or(x.limit, field)
	case field == "request_id":
		return "x-request-id"
	case strings.HasPrefix(field, "prompt.parts"):
		return "prompt"
	case strings.HasPrefix(field, "constraint") && x.constraint != "":
		return x.constraint
	}
	return contractNames.Replace(field)
}
