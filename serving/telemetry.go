package serving

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	nometric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	notrace "go.opentelemetry.io/otel/trace/noop"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/vision"
)

// Telemetry is what a server measures: its traces and instruments. No label says who asked: what callers choose freely
// (tenants, ids) would make a series each. Tenants that the operator names in the quotas are the exception.
type Telemetry struct {
	tracer trace.Tracer
	meter  metric.Meter

	duration, firstToken, outputToken, stage metric.Float64Histogram
	finished, rejected, images, quotas       metric.Int64Counter
	policy, abuse                            metric.Int64Counter
	stepDuration                             metric.Float64Histogram
	stepRows                                 metric.Int64Histogram

	utilization, stalled                metric.Float64ObservableGauge
	info, cacheConfig, nodes, fallbacks metric.Int64ObservableGauge
	observed                            []observed[snapshot]
	ofProcess                           []observed[processSnapshot]

	// every is how many steps that run traced requests there are to one that gets a span; 0 for none.
	every int
}

// observed is an instrument that is read from snapshots.
type observed[S any] struct {
	instrument metric.Int64Observable
	attrs      []attribute.KeyValue
	value      func(S) int64
}

// snapshot is what a model's engine and encoder count.
type snapshot struct {
	batching.Stats
	encoder vision.EncoderStats
	disk    vision.DiskStats
	kvBytes int64 // a position's
}

// processSnapshot is what is counted for all models together.
type processSnapshot struct {
	device DeviceStats
	Traffic
	tenants int // that the quotas remember
	// quarantined are callers that the watch of abuse refuses.
	quarantined int
}

// NewTelemetry makes the instruments. One step in stepSpans that run a traced request gets a span of its own, linked to
// the requests in it; none if it is 0.
func NewTelemetry(tp trace.TracerProvider, mp metric.MeterProvider, stepSpans int) (*Telemetry, error) {
	t := &Telemetry{tracer: tp.Tracer(scope), meter: mp.Meter(scope), every: stepSpans}
	var errs []error
	histogram := func(name, unit, description string, buckets []float64) metric.Float64Histogram {
		h, err := t.meter.Float64Histogram(name, metric.WithUnit(unit), metric.WithDescription(description),
			metric.WithExplicitBucketBoundaries(buckets...))
		errs = append(errs, err)
		return h
	}
	counter := func(name, unit, description string) metric.Int64Counter {
		c, err := t.meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return c
	}
	gauge := func(name, unit, description string) metric.Float64ObservableGauge {
		g, err := t.meter.Float64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return g
	}
	t.duration = histogram(metricRequestDuration, "s", "From a request's arrival to its end.", requestBuckets)
	t.firstToken = histogram(metricFirstToken, "s", "From a request's arrival to its first token.", firstTokenBuckets)
	t.outputToken = histogram(metricOutputToken, "s", "Time for each token after the first, of requests that gave two or more.", outputTokenBuckets)
	t.stage = histogram(metricStageDuration, "s", "Time of a request in one of its stages.", stageBuckets)
	t.stepDuration = histogram(metricStepDuration, "s", "Time of one step of the engine.", stepBuckets)
	var err error
	t.stepRows, err = t.meter.Int64Histogram(metricStepRows, metric.WithUnit("{row}"),
		metric.WithDescription("Sequences in one step of the engine."),
		metric.WithExplicitBucketBoundaries(rowBuckets...))
	errs = append(errs, err)
	t.finished = counter(metricFinished, "{request}", "Requests that ended, each once.")
	t.rejected = counter(metricRejected, "{request}", "Requests that ended before the engine took them.")
	t.images = counter(metricImages, "{image}", "Images decoded and cut into tiles.")
	t.quotas = counter(metricQuotaRefused, "{request}", "Requests that a quota refused; the label tenant is empty for tenants that the quotas do not name.")
	t.policy = counter(metricPolicy, "{finding}", "What the content policy found, by category, place and action.")
	t.abuse = counter(metricAbuse, "{quarantine}", "Quarantines that began, and those that were only flagged, by signal and by what is quarantined.")
	t.utilization = gauge(metricKVUtilization, "1", "Part of the KV budget that running sequences hold, 0 to 1.")
	t.stalled = gauge(metricStalled, "s", "How long the engine has had requests to run and no step has ended; 0 when it has none.")
	return t, errors.Join(append(errs, t.constants(), t.observe())...)
}

// zero starts a model's counters of what happens seldom: a rate sees no first event in a series that begins with it.
func (t *Telemetry) zero(model string) {
	ctx, name := context.Background(), keyModel.String(model)
	for _, reason := range []string{
		"busy", "quota", "deadline", "draining", "policy", "quarantined", "invalid", "model", "unsupported", "left", "error",
	} {
		t.rejected.Add(ctx, 0, metric.WithAttributeSet(attribute.NewSet(name, keyReason.String(reason))))
	}
	for _, outcome := range []string{
		"stop", "length", "content_filter", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED",
		"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL",
	} {
		t.finished.Add(ctx, 0, metric.WithAttributeSet(attribute.NewSet(name, keyOutcome.String(outcome))))
	}
	t.images.Add(ctx, 0, metric.WithAttributeSet(attribute.NewSet(name)))
}

// noTelemetry is for servers that are given none.
func noTelemetry() *Telemetry {
	t, err := NewTelemetry(notrace.NewTracerProvider(), nometric.NewMeterProvider(), 0)
	if err != nil {
		panic(err) // these providers give no errors
	}
	return t
}

// observations makes the instruments that are read when somebody asks, one after the other.
type observations struct {
	*Telemetry
	instrument metric.Int64Observable // the newest, whose values are added
	errs       []error
}

// observe makes the instruments that are read when somebody asks.
func (t *Telemetry) observe() error {
	o := &observations{Telemetry: t}
	o.ofEngine()
	o.ofEdges()
	return errors.Join(o.errs...)
}

func (o *observations) gauge(name, unit, description string) {
	g, err := o.meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
	o.instrument, o.errs = g, append(o.errs, err)
}

func (o *observations) counter(name, unit, description string) {
	c, err := o.meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
	o.instrument, o.errs = c, append(o.errs, err)
}

// add has the newest instrument read for each model.
func (o *observations) add(value func(snapshot) int64, attrs ...attribute.KeyValue) {
	o.observed = append(o.observed, observed[snapshot]{o.instrument, attrs, value})
}

// addProcess has it read once for all models.
func (o *observations) addProcess(value func(processSnapshot) int64, attrs ...attribute.KeyValue) {
	o.ofProcess = append(o.ofProcess, observed[processSnapshot]{o.instrument, attrs, value})
}

// ofEngine makes those of models' engines.
func (o *observations) ofEngine() {
	o.gauge(metricRunning, "{request}", "Sequences in prefill or decode.")
	o.add(func(s snapshot) int64 { return int64(s.Running) })
	o.gauge(metricWaiting, "{request}", "Sequences that are ready and have no slot yet.")
	o.add(func(s snapshot) int64 { return int64(s.Waiting) })
	o.gauge(metricPreparing, "{request}", "Accepted requests that the engine does not have yet.")
	o.add(func(s snapshot) int64 { return int64(max(0, s.Accepted-s.Running-s.Waiting)) })
	o.gauge(metricSlots, "{slot}", "Sequences that can run at once.")
	o.add(func(s snapshot) int64 { return int64(s.Slots) })
	o.gauge(metricCachedSlots, "{slot}", "Slots that hold what ended sequences left.")
	o.add(func(s snapshot) int64 { return int64(s.CachedSlots) })
	o.gauge(metricKVTokens, "{token}", "KV positions that running sequences hold.")
	o.add(func(s snapshot) int64 { return int64(s.KVTokens) })
	o.gauge(metricKVBudget, "{token}", "KV positions that may be held.")
	o.add(func(s snapshot) int64 { return int64(s.KVBudget) })
	o.gauge(metricKVResident, "By", "Memory behind KV positions: of running and cached sequences, and what will be written again.")
	o.add(func(s snapshot) int64 { return int64(s.KVResident) * s.kvBytes })
	o.counter(metricDrafts, "{token}", "Guessed tokens that were checked, by who guessed (lookup in what was said before, or the draft model): right (and so generated without a step), wrong.")
	right, wrong := keyResult.String("right"), keyResult.String("wrong")
	lookup, draft := keySource.String("lookup"), keySource.String("model")
	o.add(func(s snapshot) int64 { return s.RightDrafts - s.RightModelDrafts }, right, lookup)
	o.add(func(s snapshot) int64 {
		return s.DraftedTokens - s.RightDrafts - (s.ModelDrafts - s.RightModelDrafts)
	}, wrong, lookup)
	o.add(func(s snapshot) int64 { return s.RightModelDrafts }, right, draft)
	o.add(func(s snapshot) int64 { return s.ModelDrafts - s.RightModelDrafts }, wrong, draft)
	o.counter(metricTokens, "{token}", "Tokens: prompt (run in prefill), cached (of prompts, found in the prefix cache), generated, wasted (run for nothing).")
	o.add(func(s snapshot) int64 { return s.PromptTokens }, keyKind.String("prompt"))
	o.add(func(s snapshot) int64 { return s.CachedTokens }, keyKind.String("cached"))
	o.add(func(s snapshot) int64 { return s.GeneratedTokens }, keyKind.String("generated"))
	o.add(func(s snapshot) int64 { return s.WastedTokens }, keyKind.String("wasted"))
	o.counter(metricSteps, "{step}", "Steps of the engine.")
	o.add(func(s snapshot) int64 { return s.PrefillSteps - s.MixedSteps }, keyPhase.String("prefill"))
	o.add(func(s snapshot) int64 { return s.MixedSteps }, keyPhase.String("mixed"))
	o.add(func(s snapshot) int64 { return s.Steps - s.PrefillSteps }, keyPhase.String("decode"))
	o.counter(metricFailedSteps, "{step}", "Steps whose sequences ended with an error.")
	o.add(func(s snapshot) int64 { return s.FailedSteps })
	o.counter(metricPreemptions, "{sequence}", "Sequences that lost their KV for a time because memory was short.")
	o.add(func(s snapshot) int64 { return s.Preemptions })
	o.counter(metricGaveWay, "{sequence}", "Sequences that paused for a waiting one of a higher priority, or for the first answer of another call.")
	for i, class := range []string{"batch", "default", "interactive"} {
		o.add(func(s snapshot) int64 { return s.GaveWay[i] }, keyPriority.String(class))
	}
	o.counter(metricEvictions, "{sequence}", "Cached sequences whose slot was needed.")
	o.add(func(s snapshot) int64 { return s.Evictions })
	o.counter(metricMoves, "{token}", "KV positions copied between slots.")
	o.add(func(s snapshot) int64 { return s.MovedTokens })
}

// ofEdges makes those of encoders, devices and the messages of edges.
func (o *observations) ofEdges() {
	o.counter(metricEncoderCalls, "{image}", "Images that needed patch embeddings: hit (cached or under way), disk (read from --encoder-cache-dir), miss.")
	o.add(func(s snapshot) int64 { return s.encoder.Hits - s.encoder.DiskHits }, keyResult.String("hit"))
	o.add(func(s snapshot) int64 { return s.encoder.DiskHits }, keyResult.String("disk"))
	o.add(func(s snapshot) int64 { return s.encoder.Misses }, keyResult.String("miss"))
	o.counter(metricEncoderRuns, "{run}", "Runs of the vision tower.")
	o.add(func(s snapshot) int64 { return s.encoder.Runs })
	o.counter(metricEncoderTiles, "{tile}", "Tiles in the runs of the vision tower.")
	o.add(func(s snapshot) int64 { return s.encoder.Tiles })
	o.gauge(metricEncoderSize, "By", "Patch embeddings in the encoder cache.")
	o.add(func(s snapshot) int64 { return s.encoder.CacheBytes })
	o.gauge(metricEncoderEntries, "{image}", "Images in the encoder cache.")
	o.add(func(s snapshot) int64 { return int64(s.encoder.CacheEntries) })
	o.gauge(metricDiskSize, "By", "Patch embeddings in --encoder-cache-dir, which models share.")
	o.add(func(s snapshot) int64 { return s.disk.Bytes })
	o.gauge(metricDiskEntries, "{image}", "Images in --encoder-cache-dir.")
	o.add(func(s snapshot) int64 { return int64(s.disk.Entries) })
	o.counter(metricDiskFailures, "{image}", "Patch embeddings that could not be written to --encoder-cache-dir, in time or at all, or were damaged there; the images were encoded.")
	o.add(func(s snapshot) int64 { return s.disk.Failures + s.disk.Dropped })
	o.counter(metricDeviceCopied, "By", "Copied between the process's memory and devices': to a device, from one.")
	o.addProcess(func(s processSnapshot) int64 { return s.device.To }, keyDirection.String("to"))
	o.addProcess(func(s processSnapshot) int64 { return s.device.From }, keyDirection.String("from"))
	o.gauge(metricDeviceMemory, "By", "Memory of devices that KV cache and values between runs take; weights and what runs take for themselves are not in it.")
	o.addProcess(func(s processSnapshot) int64 { return s.device.Held })
	o.gauge(metricInflight, "By", "Request messages from their first byte until their images are decoded, with what it takes to receive them.")
	o.addProcess(func(s processSnapshot) int64 { return s.InflightBytes })
	o.counter(metricEvicted, "{message}", "Messages that were refused while they came, because all together took more than the budget.")
	o.addProcess(func(s processSnapshot) int64 { return s.Evicted })
	o.gauge(metricQuotaTenants, "{tenant}", "Tenants and hosts whose use is remembered for the quotas.")
	o.addProcess(func(s processSnapshot) int64 { return int64(s.tenants) })
	o.gauge(metricQuarantined, "{caller}", "Keys, tenants and hosts in quarantine.")
	o.addProcess(func(s processSnapshot) int64 { return int64(s.quarantined) })
	o.gauge(metricConnections, "{connection}", "Clients' connections.")
	o.addProcess(func(s processSnapshot) int64 { return s.Connections })
}

// block is the number of positions that the gateway protocol's cache metric counts as one. mmserve's KV has no blocks:
// a prefix is shared to the position, memory comes in pages.
const block = 16

// point is a value that does not change.
type point struct {
	value int64
	attrs []attribute.KeyValue
}

// placement counts the nodes of the model's graphs by where they run, and those that fell back to the processor.
func placement(m *Model) (nodes, fallbacks []point) {
	for _, at := range m.Sessions {
		graph := keyGraph.String(at.Graph)
		for place, n := range at.Nodes {
			nodes = append(nodes, point{int64(n), []attribute.KeyValue{graph, keyPlace.String(place)}})
		}
		fell := point{attrs: []attribute.KeyValue{graph, keyPlace.String(at.Provider)}}
		for _, n := range at.Fallbacks {
			fell.value += int64(n)
		}
		fallbacks = append(fallbacks, fell)
	}
	return nodes, fallbacks
}

// constants are the gauges of what does not change while a model is served.
func (t *Telemetry) constants() error {
	var errs []error
	for _, g := range []struct {
		to                      *metric.Int64ObservableGauge
		name, unit, description string
	}{
		{&t.nodes, metricSessionNodes, "{node}", "Nodes of a graph by the execution provider that runs them."},
		{&t.fallbacks, metricFallbackNodes, "{node}", "Nodes of a graph that the processor runs for want of a kernel."},
		{&t.info, metricModelInfo, "", "Always 1; the labels say which models are served."},
		{&t.cacheConfig, metricCacheConfig, "", "Always 1; the labels give the KV budget in blocks, as the gateway protocol asks for it."},
	} {
		var err error
		*g.to, err = t.meter.Int64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.description))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Traffic is what edges count of the messages that they receive.
type Traffic struct {
	// InflightBytes are held for messages that are on their way or not put to use yet, Evicted messages were refused
	// because there was no room, Connections are clients'.
	InflightBytes, Evicted, Connections int64
}

// watch has the instruments read from the service's models and quotas and from the edges' traffic from now on.
func (t *Telemetry) watch(s *Service) {
	models, traffic, quotas := s.models, s.options.Traffic, s.options.Quotas
	instruments := []metric.Observable{t.utilization, t.stalled, t.info, t.cacheConfig, t.nodes, t.fallbacks}
	for _, o := range t.observed {
		instruments = append(instruments, o.instrument)
	}
	for _, o := range t.ofProcess {
		instruments = append(instruments, o.instrument)
	}
	_, err := t.meter.RegisterCallback(func(_ context.Context, to metric.Observer) error {
		var process processSnapshot
		if traffic != nil {
			process.Traffic = traffic()
		}
		process.tenants, process.quarantined = quotas.Tenants(), len(s.watch().List())
		models.Each(func(d *Deployment) {
			t.observeModel(to, d)
			if d.Model.DeviceStats != nil { // of all devices
				process.device = d.Model.DeviceStats()
			}
		})
		for _, o := range t.ofProcess {
			to.ObserveInt64(o.instrument, o.value(process), metric.WithAttributes(o.attrs...))
		}
		return nil
	}, instruments...)
	if err != nil {
		otel.Handle(err)
	}
	for _, name := range models.Names() {
		t.zero(name)
	}
	for _, quota := range quotaNames {
		t.quotaRefused(context.Background(), &QuotaError{Quota: quota}, 0)
	}
}

// observeModel reads the instruments that have a series for each model.
func (t *Telemetry) observeModel(to metric.Observer, d *Deployment) {
	model := keyModel.String(d.Model.Name)
	labels := func(attrs ...attribute.KeyValue) metric.MeasurementOption {
		return metric.WithAttributes(append(attrs, model)...)
	}
	now := snapshot{Stats: d.Engine.Stats(), kvBytes: d.Model.KVBytesPerToken}
	if d.Model.EncoderStats != nil {
		now.encoder = d.Model.EncoderStats()
	}
	if d.Model.DiskStats != nil {
		now.disk = d.Model.DiskStats()
	}
	to.ObserveFloat64(t.utilization, float64(now.KVTokens)/float64(max(1, now.KVBudget)), labels())
	to.ObserveFloat64(t.stalled, d.Engine.Stalled().Seconds(), labels())
	for _, o := range t.observed {
		to.ObserveInt64(o.instrument, o.value(now), labels(slices.Clone(o.attrs)...))
	}
	to.ObserveInt64(t.info, 1, labels(keyDigest.String(d.Model.Digest)))
	to.ObserveInt64(t.cacheConfig, 1,
		labels(keyBlockSize.String(strconv.Itoa(block)), keyBlocks.String(strconv.Itoa(now.KVBudget/block))))
	nodes, fallbacks := placement(&d.Model)
	for _, p := range nodes {
		to.ObserveInt64(t.nodes, p.value, labels(p.attrs...))
	}
	for _, p := range fallbacks {
		to.ObserveInt64(t.fallbacks, p.value, labels(p.attrs...))
	}
}

// Steps gives what measures the steps of a model's engine; it is for serving.Config.Observe.
func (t *Telemetry) Steps(model string) func(batching.Step) {
	t.zero(model)
	phase := func(name string) []metric.RecordOption {
		return []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(keyModel.String(model), keyPhase.String(name)))}
	}
	decode, prefill, mixed := phase("decode"), phase("prefill"), phase("mixed")
	traced := 0 // of the engine's goroutine
	return func(s batching.Step) {
		ctx, attrs := context.Background(), decode
		switch {
		case s.Prefill && s.Decode:
			attrs = mixed
		case s.Prefill:
			attrs = prefill
		}
		t.stepDuration.Record(ctx, s.Ended.Sub(s.Began).Seconds(), attrs...)
		t.stepRows.Record(ctx, int64(len(s.Rows)), attrs...)
		t.trace(s, &traced, model)
	}
}

// report gives the metrics and the spans of a request that has ended; where both are off it does nothing.
func (r *record) report(ctx context.Context, failure Kind) {
	if !r.span.IsRecording() && !r.telemetry.duration.Enabled(ctx) {
		return
	}
	stages := r.stages()
	r.measure(ctx, failure, stages)
	r.spans(ctx, failure, stages)
}

// measure counts a request, once.
func (r *record) measure(ctx context.Context, failure Kind, stages []interval) {
	t, model := r.telemetry, r.model
	attrs := []attribute.KeyValue{
		keyOperation.String(r.operation), keyProvider.String(provider),
		keyRequestModel.String(model), keyResponseModel.String(model),
	}
	set, name := metric.WithAttributeSet(attribute.NewSet(attrs...)), keyModel.String(model)
	if e := r.sum.timing; !e.FirstToken.IsZero() {
		t.firstToken.Record(ctx, e.FirstToken.Sub(r.arrived).Seconds(), set)
	}
	for _, s := range stages {
		t.stage.Record(ctx, s.took.Seconds(), metric.WithAttributeSet(attribute.NewSet(name, keyStage.String(s.name))))
	}
	for _, a := range r.answers {
		last := a.timing.Finished
		if last.IsZero() { // cut by a stop string: the engine may still be at it
			last = time.Now()
		}
		if a.completion > 1 {
			t.outputToken.Record(ctx, last.Sub(a.timing.FirstToken).Seconds()/float64(a.completion-1), set)
		}
	}
	for _, p := range r.images {
		if p.image != nil {
			t.images.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(name)))
		}
	}
	outcome := r.sum.finish.String()
	if failure != OK {
		outcome = failure.label()
		attrs = append(attrs, keyErrorType.String(outcome))
	}
	t.duration.Record(ctx, time.Since(r.arrived).Seconds(), metric.WithAttributeSet(attribute.NewSet(attrs...)))
	if !r.generates() { // many that cost little would hide how the others end
		return
	}
	t.finished.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(name, keyOutcome.String(outcome))))
	t.countQuota(ctx, r.refused)
	if failure != OK && r.sum.timing.Submitted.IsZero() {
		t.rejected.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(name, keyReason.String(r.reason(failure)))))
	}
}

// countQuota counts a request that is refused with err, if a quota did.
func (t *Telemetry) countQuota(ctx context.Context, err error) {
	if e := (*QuotaError)(nil); errors.As(err, &e) {
		t.quotaRefused(ctx, e, 1)
	}
}

// quotaRefused counts requests that a quota refused.
func (t *Telemetry) quotaRefused(ctx context.Context, e *QuotaError, n int64) {
	set := attribute.NewSet(keyQuota.String(e.Quota), keyNamedTenant.String(e.Tenant))
	t.quotas.Add(ctx, n, metric.WithAttributeSet(set))
}

// countPolicy counts what a policy found.
func (t *Telemetry) countPolicy(ctx context.Context, counts []safety.Count) {
	for _, c := range counts {
		set := attribute.NewSet(keyCategory.String(c.Category.String()), keyFoundIn.String(c.Place.String()),
			keyAction.String(c.Action.String()))
		t.policy.Add(ctx, int64(c.N), metric.WithAttributeSet(set))
	}
}

// reason says in one word why a request was not taken.
func (r *record) reason(failure Kind) string {
	var late *batching.DeadlineError
	switch {
	case errors.As(r.refused, new(*QuotaError)):
		return "quota"
	case errors.As(r.refused, &late):
		return "deadline"
	case errors.As(r.refused, new(*QuarantineError)):
		return "quarantined"
	case errors.Is(r.refused, ErrPolicy):
		return "policy"
	case errors.Is(r.refused, batching.ErrBusy):
		return "busy"
	case errors.Is(r.refused, batching.ErrDraining), failure == Unavailable:
		return "draining"
	}
	switch failure {
	case Invalid:
		return "invalid"
	case NotFound:
		return "model"
	case FailedPrecondition:
		return "unsupported"
	case Canceled, DeadlineExceeded:
		return "left"
	}
	return "error"
}
