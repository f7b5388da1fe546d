package server

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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/fusion"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// record is what a request leaves behind: counts and times, never content. One goroutine writes it.
type record struct {
	server     *Server
	id, tenant string
	operation  string
	span       trace.Span
	progress   *progress // nil if the trace is not recorded

	arrived, mark                time.Time
	preprocess, tokenize, encode time.Duration
	images                       []preparation

	ids                   []int32 // the prompt's, for its log-probabilities
	tokens, image, cached int
	scores                []float32 // of the choices, if asked for
	answers               []answered
	sum                   answered // of all answers, once they have ended
	refused               error    // the engine's, if it took the request not
}

// answered is what is known of one answer; the goroutine that delivers it writes it.
type answered struct {
	completion int
	finish     pb.FinishReason
	timing     batching.Timing
}

// newRecord begins a request's record and its span, which is in the context that it gives.
func (s *Server) newRecord(ctx context.Context, in *pb.GenerateRequest) (context.Context, *record) {
	now := time.Now()
	rec := &record{server: s, arrived: now, mark: now, id: in.GetRequestId(), operation: operationChat}
	if rec.id == "" || !validID(rec.id) {
		rec.id = rand.Text()
	}
	if validID(in.GetTenant()) {
		rec.tenant = in.GetTenant()
	}
	if in.GetPrompt() != nil {
		rec.operation = operationComplete
	}
	return rec.begin(ctx), rec
}

// refuse is the status for a request that the engine does not take.
func (r *record) refuse(err error) error {
	r.refused = err
	return refusal(err)
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

func (r *record) usage(a answered) *pb.Usage {
	return &pb.Usage{
		PromptTokens: uint32(r.tokens), TextTokens: uint32(r.tokens - r.image), ImageTokens: uint32(r.image),
		CachedImageTokens: uint32(r.cached), CompletionTokens: uint32(a.completion),
		CachedTokens: uint32(a.timing.CachedTokens),
	}
}

// total sums the answers up: the tokens of all, and the times and end of the one that took longest.
func (r *record) total() (sum answered) {
	for _, a := range r.answers {
		n := sum.completion + a.completion
		if sum.timing.Submitted.IsZero() || a.finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED && !a.timing.Finished.Before(sum.timing.Finished) {
			sum = a
		}
		sum.completion = n
	}
	return sum
}

func (r *record) timings(e batching.Timing) *pb.Timings {
	t := &pb.Timings{
		Preprocess: durationpb.New(r.preprocess), Tokenize: durationpb.New(r.tokenize), Encode: durationpb.New(r.encode),
		Total: durationpb.New(time.Since(r.arrived)),
	}
	if !e.FirstScheduled.IsZero() {
		t.Queue = durationpb.New(e.FirstScheduled.Sub(e.Submitted))
	}
	if !e.FirstToken.IsZero() {
		t.Prefill = durationpb.New(e.FirstToken.Sub(e.FirstScheduled))
		t.Ttft = durationpb.New(e.FirstToken.Sub(r.arrived))
		last := e.Finished
		if last.IsZero() { // cut by a stop string: the engine may still be at it
			last = time.Now()
		}
		t.Decode = durationpb.New(last.Sub(e.FirstToken))
	}
	return t
}

// close is the end of every request: it makes what happened a status that is safe to show and writes one line.
// panicked is what recover gave.
func (r *record) close(ctx context.Context, panicked any, err error) error {
	level, attrs := slog.LevelInfo, []slog.Attr{slog.String("id", r.id), slog.String("model", r.server.model.Name)}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause // what the packages below return does not tell a client that left from a shutdown
	}
	r.sum = r.total()
	if errors.Is(err, errCut) {
		r.server.cut.Add(1)
	}
	if panicked != nil {
		err = fmt.Errorf("panic: %s", describePanic(panicked))
		attrs = append(attrs, slog.String("stack", string(debug.Stack())))
	}
	shown := r.status(err)
	if status.Code(shown) == codes.Internal {
		level = slog.LevelError
		attrs = append(attrs, slog.Any("error", err))
	}
	attrs = append(attrs, slog.String("code", status.Code(shown).String()))
	if r.tenant != "" {
		attrs = append(attrs, slog.String("tenant", r.tenant))
	}
	if r.tokens > 0 {
		attrs = append(attrs,
			slog.Int("prompt_tokens", r.tokens), slog.Int("image_tokens", r.image), slog.Int("completion_tokens", r.sum.completion))
	}
	if r.sum.finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED {
		attrs = append(attrs, slog.String("finish", r.sum.finish.String()))
	}
	t := r.timings(r.sum.timing)
	for _, stage := range []struct {
		key string
		d   *durationpb.Duration
	}{
		{"preprocess_ms", t.GetPreprocess()}, {"tokenize_ms", t.GetTokenize()}, {"encode_ms", t.GetEncode()}, {"queue_ms", t.GetQueue()},
		{"prefill_ms", t.GetPrefill()}, {"decode_ms", t.GetDecode()}, {"ttft_ms", t.GetTtft()}, {"total_ms", t.GetTotal()},
	} {
		if d := stage.d.AsDuration(); d > 0 {
			attrs = append(attrs, slog.Float64(stage.key, float64(d.Microseconds())/1000))
		}
	}
	ctx = context.WithoutCancel(ctx)
	r.server.options.Logger.LogAttrs(ctx, level, "request", attrs...)
	r.report(ctx, status.Code(shown))
	return shown
}

// status is err as the client sees it. An error that has no status yet is the server's own fault, and its text
// stays here.
func (r *record) status(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, errCut):
		return errStopping()
	case errors.Is(err, errUnloaded):
		return status.Error(codes.Unavailable, "the model was unloaded before the answer was complete")
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was cancelled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call's deadline passed")
	}
	return status.Errorf(codes.Internal, "the server failed; its log has request %s", r.id)
}

// describePanic leaves out values that could hold content.
func describePanic(p any) string {
	if err, ok := p.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", p)
}
