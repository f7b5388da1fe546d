package serving

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/safety"
)

// record is what a request leaves behind: counts and times, never content. One goroutine writes it.
type record struct {
	telemetry  *Telemetry
	log        *slog.Logger
	model      string
	id, tenant string
	caller     string // the id of its credential; empty where callers need none
	operation  string
	span       trace.Span
	progress   *progress // nil if the trace is not recorded
	trail      *trail    // nil without an audit log

	arrived, mark                time.Time
	preprocess, tokenize, encode time.Duration
	images                       []preparation

	ids                   []int32 // the prompt's, for its log-probabilities
	tokens, image, cached int
	scores                []float32 // of the choices, if asked for
	answers               []answered
	sum                   answered // of all answers, once they have ended
	refused               error    // the engine's, if it took the request not

	watch  *safety.Watch  // nil: nothing counts signals of abuse
	actors []safety.Actor // whom they are counted of
}

// answered is what is known of one answer; the goroutine that delivers it writes it.
type answered struct {
	completion int
	reasoning  int // of completion, until the last of the thoughts
	finish     FinishReason
	timing     batching.Timing
	found      []safety.Count // in its text, by the policy
}

// newRecord begins a request's record and its span, which is in the context that it gives.
func (s *Service) newRecord(ctx context.Context, in *Request, model, operation string) (context.Context, *record) {
	now := time.Now()
	rec := &record{
		telemetry: s.options.Telemetry, log: s.options.Logger, model: model,
		arrived: now, mark: now, id: in.ID, operation: operation,
	}
	if rec.id == "" || !validID(rec.id) {
		rec.id = rand.Text()
	}
	if validID(in.Tenant) {
		rec.tenant = in.Tenant
	}
	if caller := CallerOf(ctx).Identity; caller != nil {
		rec.caller = caller.ID
	}
	if rec.trail = s.newTrail(ctx, rec, in); rec.trail != nil {
		ctx = context.WithValue(ctx, trailKey{}, rec.trail)
	}
	return rec.begin(ctx), rec
}

// generates says whether the request is one of those that answers are given to.
func (r *record) generates() bool {
	return r.operation == operationChat || r.operation == operationComplete
}

// refuse is the error of a request that the engine does not take.
func (r *record) refuse(err error) error {
	r.refused = err
	return refusal(err)
}

// refusedBy notes err as why the request was not taken.
func (r *record) refusedBy(err error) error {
	r.refused = err
	return err
}

// found is what a policy found in the request and all its answers.
func (r *record) found(req *checked) []safety.Count {
	if req.policed == nil {
		return nil
	}
	counts := req.policed.tally.Counts()
	for _, a := range r.answers {
		counts = append(counts, a.found...)
	}
	return counts
}

// tag is what the engine's steps are told by; nil if nobody wants to know.
func (r *record) tag() any {
	if r.progress == nil {
		return nil
	}
	return r.progress
}

// lap ends a stage: it took from the end of the one before until now.
func (r *record) lap(stage *time.Duration) {
	now := time.Now()
	*stage, r.mark = now.Sub(r.mark), now
}

func (r *record) prompt(in fusion.Input) {
	r.ids, r.tokens, r.image = in.IDs, len(in.IDs), in.ImageTokens()
}

func (r *record) usage(a answered) Usage {
	return Usage{
		Prompt: r.tokens, Text: r.tokens - r.image, Image: r.image,
		CachedImage: r.cached, Cached: a.timing.CachedTokens, Completion: a.completion, Reasoning: a.reasoning,
	}
}

// total sums the answers up: the tokens of all, and the times and end of the one that took longest.
func (r *record) total() (sum answered) {
	for _, a := range r.answers {
		n := sum.completion + a.completion
		if sum.timing.Submitted.IsZero() || a.finish != Unfinished && !a.timing.Finished.Before(sum.timing.Finished) {
			sum = a
		}
		sum.completion = n
	}
	return sum
}

func (r *record) timings(e batching.Timing) Timings {
	t := Timings{Preprocess: r.preprocess, Tokenize: r.tokenize, Encode: r.encode, Total: time.Since(r.arrived)}
	if !e.FirstScheduled.IsZero() {
		t.Queue = e.FirstScheduled.Sub(e.Submitted)
	}
	if !e.FirstToken.IsZero() {
		t.Prefill = e.FirstToken.Sub(e.FirstScheduled)
		t.FirstToken = e.FirstToken.Sub(r.arrived)
		last := e.Finished
		if last.IsZero() { // cut by a stage: the engine may still be at it
			last = time.Now()
		}
		t.Decode = last.Sub(e.FirstToken)
	}
	return t
}

// close is the end of every request: it makes what happened an error that is safe to show and writes one line.
// panicked is what recover gave.
func (r *record) close(ctx context.Context, panicked any, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause // what the packages below return does not tell a client that left from a shutdown
	}
	r.sum = r.total()
	var stack []slog.Attr
	if panicked != nil {
		err = fmt.Errorf("panic: %s", DescribePanic(panicked))
		stack = []slog.Attr{slog.String("stack", string(debug.Stack()))}
	}
	if r.refusedByPolicy(err) {
		r.watch.Refusal(r.actors)
	}
	told := shown(err, r.id)
	if failed := r.trail.close(r, KindOf(told)); failed != nil {
		told = failed
	}
	kind := KindOf(told)
	level, attrs := slog.LevelInfo, append([]slog.Attr{slog.String("id", r.id), slog.String("model", r.model)}, stack...)
	if kind == Internal {
		level = slog.LevelError
		attrs = append(attrs, slog.Any("error", err))
	}
	ctx = context.WithoutCancel(ctx)
	r.log.LogAttrs(ctx, level, "request", r.attributes(append(attrs, slog.String("code", kind.String())))...)
	r.report(ctx, kind)
	return told
}

// attributes appends what the log says of a request whatever its end.
func (r *record) attributes(attrs []slog.Attr) []slog.Attr {
	if !r.generates() {
		attrs = append(attrs, slog.String("operation", r.operation))
	}
	if r.tenant != "" {
		attrs = append(attrs, slog.String("tenant", r.tenant))
	}
	if r.caller != "" {
		attrs = append(attrs, slog.String("credential", r.caller))
	}
	if r.tokens > 0 {
		attrs = append(attrs,
			slog.Int("prompt_tokens", r.tokens), slog.Int("image_tokens", r.image),
			slog.Int("completion_tokens", r.sum.completion))
	}
	if name, ok := finishNames[r.sum.finish]; ok {
		attrs = append(attrs, slog.String("finish", name))
	}
	t := r.timings(r.sum.timing)
	for _, stage := range []struct {
		key  string
		took time.Duration
	}{
		{"preprocess_ms", t.Preprocess}, {"tokenize_ms", t.Tokenize}, {"encode_ms", t.Encode}, {"queue_ms", t.Queue},
		{"prefill_ms", t.Prefill}, {"decode_ms", t.Decode}, {"ttft_ms", t.FirstToken}, {"total_ms", t.Total},
	} {
		if stage.took > 0 {
			attrs = append(attrs, slog.Float64(stage.key, float64(stage.took.Microseconds())/1000))
		}
	}
	return attrs
}

// finishNames are the ends of answers as log lines write them.
var finishNames = map[FinishReason]string{FinishStop: "FINISH_REASON_STOP", FinishLength: "FINISH_REASON_LENGTH",
	FinishContentFilter: "FINISH_REASON_CONTENT_FILTER"}

// DescribePanic says what a panic was, but leaves out values that could hold content.
func DescribePanic(p any) string {
	if err, ok := p.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", p)
}
