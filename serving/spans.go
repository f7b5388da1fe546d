package serving

import (
	"context"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/vision"
)

// progress is what steps did for a request whose trace is recorded. The engine's goroutine adds, the request's reads.
type progress struct {
	span                            trace.SpanContext
	slot, chunks, steps, rows, most atomic.Int64
}

// trace adds a step of a model's engine to its requests' progress and now and then gives it a span. steps counts those
// that ran traced requests.
func (t *Telemetry) trace(s batching.Step, steps *int, model string) {
	traced, tokens, decodes := 0, 0, 0
	for _, r := range s.Rows {
		tokens += r.Tokens
		if !r.Prefill {
			decodes++
		}
	}
	for _, r := range s.Rows {
		if p, ok := r.Tag.(*progress); ok {
			traced++
			p.step(r.Slot, decodes, r.Prefill)
		}
	}
	if traced == 0 || t.every == 0 {
		return
	}
	if *steps++; *steps%t.every != 0 {
		return
	}
	links := make([]trace.Link, 0, traced)
	for _, r := range s.Rows {
		if p, ok := r.Tag.(*progress); ok {
			links = append(links, trace.Link{SpanContext: p.span, Attributes: []attribute.KeyValue{keySlot.Int(r.Slot)}})
		}
	}
	name := spanDecodeStep
	switch {
	case s.Prefill && s.Decode:
		name = spanMixedStep
	case s.Prefill:
		name = spanPrefillStep
	}
	_, span := t.tracer.Start(context.Background(), name, trace.WithNewRoot(), trace.WithTimestamp(s.Began),
		trace.WithLinks(links...),
		trace.WithAttributes(keyRequestModel.String(model), keyStepRows.Int(len(s.Rows)), keyStepTokens.Int(tokens)))
	if s.Err != nil {
		span.SetStatus(otelcodes.Error, "the step failed")
	}
	span.End(trace.WithTimestamp(s.Ended))
}

func (p *progress) step(slot, rows int, prefill bool) {
	p.slot.Store(int64(slot))
	if prefill {
		p.chunks.Add(1)
		return
	}
	p.steps.Add(1)
	p.rows.Add(int64(rows))
	p.most.Store(max(p.most.Load(), int64(rows)))
}

// preparation is when what was done to an image.
type preparation struct {
	began, ended time.Time
	bytes        int
	image        *vision.Image // nil if it was at fault
}

// interval is a part of a request's time.
type interval struct {
	name       string
	began      time.Time
	took       time.Duration
	attributes []attribute.KeyValue
}

// preparing are the stages before the engine's, in order.
var preparing = [...]string{stagePreprocess, stageTokenize, stageEncode}

// stages are those that were completed, or that the engine has, in order. What they are told by is the
// same as in Timings.
func (r *record) stages() []interval {
	var list []interval
	at := r.arrived
	for _, s := range []interval{
		{name: stagePreprocess, took: r.preprocess, attributes: []attribute.KeyValue{keyImages.Int(len(r.images))}},
		{name: stageTokenize, took: r.tokenize, attributes: []attribute.KeyValue{
			keyInputTokens.Int(r.tokens), keyImageInput.Int(r.image),
		}},
		{name: stageEncode, took: r.encode, attributes: []attribute.KeyValue{
			keyEncoderTokens.Int(r.image), keyEncoderCached.Int(r.cached),
		}},
	} {
		if s.took > 0 {
			s.began = at
			list = append(list, s)
			at = at.Add(s.took)
		}
	}
	t := r.sum.timing
	over := t.Finished
	if over.IsZero() {
		over = time.Now()
	}
	add := func(name string, began, ended time.Time, attributes ...attribute.KeyValue) {
		if began.IsZero() {
			return
		}
		if ended.IsZero() {
			ended = over
		}
		list = append(list, interval{name, began, ended.Sub(began), attributes})
	}
	p := r.progress
	if p == nil {
		p = new(progress)
	}
	add(stageQueue, t.Submitted, t.FirstScheduled)
	add(stagePrefill, t.FirstScheduled, t.FirstToken,
		keyPrefillTokens.Int(r.tokens-t.CachedTokens), keyPrefillCached.Int(t.CachedTokens),
		keyPrefillChunks.Int64(p.chunks.Load()), keySlot.Int64(p.slot.Load()))
	steps := p.steps.Load()
	add(stageDecode, t.FirstToken, t.Finished, keyOutputTokens.Int(r.sum.completion), keyDecodeSteps.Int64(steps),
		keyDecodeBatch.Float64(float64(p.rows.Load())/float64(max(1, steps))), keyDecodeBatchMost.Int64(p.most.Load()))
	return list
}

// begin starts the span of a request under the RPC's.
func (r *record) begin(ctx context.Context) context.Context {
	model := r.model
	ctx, r.span = r.telemetry.tracer.Start(ctx, r.operation+" "+model, trace.WithTimestamp(r.arrived),
		trace.WithAttributes( // what samplers go by
			keyOperation.String(r.operation), keyProvider.String(provider), keyRequestModel.String(model)))
	if r.span.IsRecording() {
		r.progress = &progress{span: r.span.SpanContext()}
	}
	return ctx
}

// asked notes what the request asks for. Stop strings, schemas and other words of the caller's are left out.
func (r *record) asked(req *checked, stream bool) {
	if !r.span.IsRecording() {
		return
	}
	s := req.sampling
	attrs := []attribute.KeyValue{
		keyStream.Bool(stream), keyTemperature.Float64(float64(s.Temperature)), keyTopP.Float64(float64(s.TopP)),
		keyTopK.Int(s.TopK), keySeed.Int64(int64(s.Seed)), keyFrequency.Float64(float64(s.FrequencyPenalty)),
		keyPresence.Float64(float64(s.PresencePenalty)),
	}
	if req.maxTokens > 0 {
		attrs = append(attrs, keyMaxTokens.Int(req.maxTokens))
	}
	if req.tenant != "" {
		attrs = append(attrs, keyTenant.String(req.tenant))
	}
	r.span.SetAttributes(attrs...)
}

// spans ends the request's span, with those of its stages under it.
func (r *record) spans(ctx context.Context, failure Kind, stages []interval) {
	if !r.span.IsRecording() {
		return
	}
	if n := len(stages); failure != OK && r.sum.timing.Submitted.IsZero() &&
		(n > 0 || len(r.images) > 0) && n < len(preparing) {
		stages = append(stages, interval{name: preparing[n], began: r.mark, took: time.Since(r.mark)}) // it ended in this one
	}
	for _, s := range stages {
		sctx, span := r.telemetry.tracer.Start(ctx, "mmserve."+s.name,
			trace.WithTimestamp(s.began), trace.WithAttributes(s.attributes...))
		if s.name == stagePreprocess {
			r.imageSpans(sctx)
		}
		span.End(trace.WithTimestamp(s.began.Add(s.took)))
	}
	r.span.SetAttributes(
		keyResponseModel.String(r.model), keyResponseID.String(r.id), keyInputTokens.Int(r.tokens),
		keyTextInput.Int(r.tokens-r.image), keyImageInput.Int(r.image),
		keyCacheRead.Int(r.sum.timing.CachedTokens), keyOutputTokens.Int(r.sum.completion),
	)
	if reason := r.sum.finish; reason != Unfinished {
		r.span.SetAttributes(keyFinishReasons.StringSlice([]string{reason.String()}))
	}
	if !r.sum.timing.FirstToken.IsZero() {
		r.span.SetAttributes(keyFirstChunk.Float64(r.sum.timing.FirstToken.Sub(r.arrived).Seconds()))
	}
	if failure != OK {
		r.span.SetAttributes(keyErrorType.String(failure.label()))
		if failure.ours() {
			r.span.SetStatus(otelcodes.Error, "")
		}
	}
	r.span.End()
}

func (r *record) imageSpans(ctx context.Context) {
	t := r.telemetry.tracer
	for _, p := range r.images {
		attrs := []attribute.KeyValue{keyImageBytes.Int(p.bytes)}
		decoded := p.ended
		if p.image != nil {
			attrs = append(attrs, keyImageWidth.Int(p.image.Width), keyImageHeight.Int(p.image.Height),
				keyImageTiles.Int(p.image.Grid.Tiles()))
			if !p.image.Decoded.IsZero() {
				decoded = p.image.Decoded
			}
		}
		_, span := t.Start(ctx, spanImageDecode, trace.WithTimestamp(p.began), trace.WithAttributes(attrs...))
		span.End(trace.WithTimestamp(decoded))
		if p.image != nil {
			_, span = t.Start(ctx, spanImageResize, trace.WithTimestamp(decoded), trace.WithAttributes(attrs...))
			span.End(trace.WithTimestamp(p.ended))
		}
	}
}
