package serving

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/constrain"
)

// What the packages below say becomes a kind, and words that are safe to show.
func TestErrorsAreShown(t *testing.T) {
	late := &batching.DeadlineError{Wait: 3 * time.Second, Allowed: time.Second}
	for _, c := range []struct {
		err   error
		kind  Kind
		says  string
		retry time.Duration
	}{
		{refusal(late), Exhausted, late.Error(), 2 * time.Second},
		{refusal(batching.ErrBusy), Exhausted, "every slot is taken", retryDelay},
		{refusal(batching.ErrDraining), Unavailable, "shutting down", stoppingDelay},
		{refusal(fmt.Errorf("step: %w", decoder.ErrDevice)), Unavailable, "shutting down", stoppingDelay},
		{refusal(errors.New("secret")), Internal, "its log has request r-1", 0},
		{fmt.Errorf("a: %w", ErrCut), Unavailable, "the server is shutting down", stoppingDelay},
		{errUnloaded, Unavailable, "the model was unloaded", stoppingDelay},
		{context.Canceled, Canceled, "the call was cancelled", 0},
		{fmt.Errorf("b: %w", context.DeadlineExceeded), DeadlineExceeded, "deadline passed", 0},
		{errors.New("secret"), Internal, "its log has request r-1", 0},
		{InvalidField("n", "%d", 3), Invalid, "n: 3", 0},
		{Overloaded("full"), Exhausted, "full", 500 * time.Millisecond},
		{TooLarge(5000, 4000), Invalid, "about 5000 bytes with the log-probabilities and answers that are asked for; want at most 4000", 0},
	} {
		told := shown(c.err, "r-1")
		var e *Error
		if !errors.As(told, &e) || e.Kind != c.kind || KindOf(told) != c.kind || !strings.Contains(e.Error(), c.says) ||
			e.RetryAfter != c.retry || strings.Contains(e.Error(), "secret") {
			t.Errorf("%v is shown as %+v, want %v that says %q, retry after %v", c.err, e, c.kind, c.says, c.retry)
		}
	}
	if shown(nil, "r") != nil || KindOf(nil) != OK || KindOf(errors.New("x")) != Internal || Violations(nil).Err() != nil {
		t.Error("what is no error is one")
	}
	if cause := errors.New("cause"); !errors.Is(shown(cause, "r"), cause) {
		t.Error("the cause is lost")
	}
}

// Each kind has its names, and those that are the server's fault are known.
func TestKinds(t *testing.T) {
	ours := map[Kind]bool{DeadlineExceeded: true, Unavailable: true, Internal: true}
	for k := OK; k <= Internal; k++ {
		if k.ours() != ours[k] || k.String() == "" || k.label() == "" {
			t.Errorf("%d is %q, %q, the server's fault: %t", k, k, k.label(), k.ours())
		}
	}
}

// Why a request was not taken, in the word that metrics count it by.
func TestRejectionReasons(t *testing.T) {
	for _, c := range []struct {
		refused error
		kind    Kind
		want    string
	}{
		{&Error{Kind: Exhausted, cause: &QuotaError{}}, Exhausted, "quota"},
		{&batching.DeadlineError{}, Exhausted, "deadline"},
		{batching.ErrBusy, Exhausted, "busy"},
		{batching.ErrDraining, Unavailable, "draining"},
		{nil, Unavailable, "draining"},
		{nil, Invalid, "invalid"},
		{nil, NotFound, "model"},
		{nil, FailedPrecondition, "unsupported"},
		{nil, Canceled, "left"},
		{nil, DeadlineExceeded, "left"},
		{nil, Exhausted, "error"},
		{nil, Internal, "error"},
	} {
		if got := (&record{refused: c.refused}).reason(c.kind); got != c.want {
			t.Errorf("%v with %v counts as %q, want %q", c.kind, c.refused, got, c.want)
		}
	}
}

// What ends a call tells why it was cancelled, and nothing of another mistake.
func TestCloseTellsTheCause(t *testing.T) {
	l := bordered(t)
	cut, cancel := context.WithCancelCause(t.Context())
	cancel(ErrCut)
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want Kind
	}{
		{t.Context(), nil, OK}, {t.Context(), context.Canceled, Canceled}, {cut, nil, OK},
		{cut, context.Canceled, Unavailable}, {cut, InvalidField("n", "none"), Invalid}, {cut, errors.New("x"), Internal},
	} {
		_, r := l.newRecord(t.Context(), asks(func(*Request) {}), "tiny", operationChat)
		if err := r.close(c.ctx, nil, c.err); KindOf(err) != c.want {
			t.Errorf("%v becomes %v, want %v", c.err, err, c.want)
		}
	}
}

// The log names the tenant and the credential of a call, where it has them.
func TestLogNamesItsCaller(t *testing.T) {
	l := bordered(t)
	for want, c := range map[string]Caller{
		"[]": {}, "[tenant=acme credential=key]": {Identity: &auth.Identity{ID: "key"}, Tenant: "acme"},
	} {
		in := asks(func(in *Request) { in.Tenant = c.Tenant })
		_, r := l.newRecord(WithCaller(t.Context(), c), in, "tiny", operationChat)
		attrs := slices.DeleteFunc(r.attributes(nil), func(a slog.Attr) bool { return a.Key == "total_ms" })
		if got := fmt.Sprint(attrs); got != want {
			t.Errorf("the log has %s, want %s", got, want)
		}
	}
}

// An error of a constraint is its author's, the machine's or the caller's that left.
func TestConstraintErrors(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrCut)
	list := &constrain.SchemaErrors{List: []error{errors.New("one"), errors.New("two")}}
	other := errors.New("other")
	for _, c := range []struct {
		name  string
		ctx   context.Context
		field string
		err   error
		kind  Kind
		says  string
	}{
		{"none", t.Context(), "regex", nil, OK, ""},
		{"the caller has left", ctx, "regex", other, Internal, ErrCut.Error()},
		{"busy", t.Context(), "regex", constrain.ErrBusy, Exhausted, "constraint: "},
		{"too much work for an answer", t.Context(), "", constrain.ErrWork, Exhausted, "constraint: "},
		{"too much work for a constraint", t.Context(), "regex", constrain.ErrWork, Invalid, "constraint.regex: "},
		{"not the constraint's", t.Context(), "", other, Internal, "other"},
		{"the constraint's", t.Context(), "regex", other, Invalid, "constraint.regex: other"},
		{"a schema's", t.Context(), "json_schema", list, Invalid, "constraint.json_schema: one; constraint.json_schema: two"},
	} {
		err := constraintError(c.ctx, c.field, c.err)
		if KindOf(err) != c.kind || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v (%v), want %v that says %q", c.name, err, KindOf(err), c.kind, c.says)
		}
	}
}
