package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// TestHTTPStatuses holds the status, type and code of each kind of error.
func TestHTTPStatuses(t *testing.T) {
	x := &exchange{}
	for _, c := range []struct {
		err          error
		status       int
		kind, code   string
		param        string
		retriesAfter time.Duration
	}{
		{serving.InvalidField("sampling.top_p", "0"), 400, openai.InvalidRequest, openai.CodeInvalidValue, "top_p", 0},
		{serving.InvalidField("chat.messages[1].parts[0].image.data", "x"), 400, openai.InvalidRequest, openai.CodeInvalidValue,
			"messages[1].content[0].image_url.url", 0},
		{&serving.Error{Kind: serving.NotFound, Message: "model: no"},
			404, openai.InvalidRequest, "model_not_found", "model", 0},
		{&serving.Error{Kind: serving.FailedPrecondition, Message: "no"}, 400, openai.InvalidRequest, "", "", 0},
		{serving.Overloaded("busy"), 429, openai.RateLimit, "rate_limit_exceeded", "", 500 * time.Millisecond},
		{&serving.Error{Kind: serving.Exhausted, Message: "never"}, 413, openai.InvalidRequest, "request_too_large", "", 0},
		{serving.Stopping(), 503, openai.ServerError, "service_unavailable", "", 100 * time.Millisecond},
		{&serving.Error{Kind: serving.DeadlineExceeded, Message: "late"},
			504, openai.ServerError, "deadline_exceeded", "", 0},
		{&serving.Error{Kind: serving.Internal, Message: "failed"}, 500, openai.ServerError, "", "", 0},
		{&serving.Error{Kind: serving.Canceled, Message: "gone"}, 499, openai.InvalidRequest, "", "", 0},
		{&serving.Error{Kind: serving.Unauthenticated, Message: "no key"},
			401, openai.InvalidRequest, "invalid_api_key", "", 0},
		{&serving.Error{Kind: serving.PermissionDenied, Message: "no"},
			403, openai.InvalidRequest, "permission_denied", "", 0},
		{openai.Unsupported("tools", "no"), 400, openai.InvalidRequest, openai.CodeUnsupported, "tools", 0},
		{errors.New("a secret"), 500, openai.ServerError, "", "", 0},
		{fmt.Errorf("reading: %w", context.Canceled), 499, openai.InvalidRequest, "", "", 0},
		{errMediaType(), http.StatusUnsupportedMediaType, openai.InvalidRequest, "unsupported_media_type", "", 0},
	} {
		e := toHTTP(c.err, x.param)
		code := ""
		if e.body.Code != nil {
			code = *e.body.Code
		}
		if e.status != c.status || e.body.Type != c.kind || code != c.code || e.body.Field() != c.param ||
			e.retryAfter != c.retriesAfter || e.body.Message == "" || e.body.Message == "a secret" {
			t.Errorf("%v: %d %+v code %q param %q after %v", c.err, e.status, e.body, code, e.body.Field(), e.retryAfter)
		}
	}
	for kind := serving.OK + 1; kind <= serving.PermissionDenied; kind++ {
		if kindStatuses[kind] == 0 {
			t.Errorf("%v has no status", kind)
		}
	}
}
