package serving

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/*.txt anew from what is served")

// What takes time in a scene, besides a prompt token and a decode step of the engine.
const (
	promptToken, decodeStep = time.Millisecond, 10 * time.Millisecond
	decodeImage, resize     = 3 * time.Millisecond, 2 * time.Millisecond
	compiling, encoding     = 4 * time.Millisecond, 7 * time.Millisecond
)

// pass lets time go by in a bubble.
func pass(d time.Duration) { time.Sleep(d) }

// sceneOptions say what a scene is played on.
type sceneOptions struct {
	slots    int
	batching batching.Options
	service  ServiceOptions
	// steps is how many steps there are to a span of one; untraced records no spans at all.
	steps    int
	untraced bool
}

// scene is a service of the embedded model's tokenizer, template and layout over a decoder that hashes, in a bubble of
// fake time. It writes down what its requests say and what is measured of them.
type scene struct {
	t       *testing.T
	text    strings.Builder
	began   time.Time
	d       *Deployment
	service *Service
	fails   atomic.Bool // whether steps do
	spans   *tracetest.SpanRecorder
	metrics *sdkmetric.ManualReader

	mu  sync.Mutex
	log bytes.Buffer
}

func (s *scene) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

// play plays a scene and compares what it wrote with the file of its name.
func play(t *testing.T, o sceneOptions, acts func(s *scene)) {
	t.Helper()
	var got string
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, o)
		acts(s)
		pass(time.Second) // what was cut leaves the engine
		if n := s.d.Engine.Stats().Accepted; n != 0 {
			t.Errorf("%d tickets are still out", n)
		}
		if err := s.d.Close(t.Context()); err != nil {
			t.Error(err)
		}
		got = s.text.String()
	})
	file := filepath.Join("testdata", strings.TrimPrefix(t.Name(), "Test")+".txt")
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	old, now := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for i := range now {
		if i >= len(old) || old[i] != now[i] {
			wanted := strings.Join(old[min(i, len(old)):min(i+1, len(old))], "")
			t.Fatalf("%s:%d: got\n%s\nwant\n%s\n(-rewrite writes it anew)", file, i+1, now[i], wanted)
		}
	}
	t.Fatalf("%s has more lines than the scene", file)
}

func newScene(t *testing.T, o sceneOptions) *scene {
	t.Helper()
	s := &scene{t: t, began: time.Now(), spans: tracetest.NewSpanRecorder(), metrics: sdkmetric.NewManualReader()}
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s.spans))
	if o.untraced {
		tracer = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
	}
	tel, err := NewTelemetry(tracer, sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.metrics)), o.steps)
	if err != nil {
		t.Fatal(err)
	}
	drop := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "stack" {
			return slog.Attr{}
		}
		return a
	}
	logger := slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{ReplaceAttr: drop}))
	s.deploy(o, tel)
	o.service.Telemetry, o.service.Logger = tel, logger
	s.service = NewService(Single(s.d), o.service)
	return s
}

// deploy runs the model of the scene.
func (s *scene) deploy(o sceneOptions, tel *Telemetry) {
	s.t.Helper()
	d := newDeployment()
	d.config = Config{Batching: o.batching, Observe: tel.Steps}.withDefaults()
	d.config.Batching.PrefillChunk = cmp.Or(o.batching.PrefillChunk, 64)
	var err error
	if d.model, err = model.Open(""); err != nil {
		s.t.Fatal(err)
	}
	d.model.Name = "tiny"
	if d.text, err = d.model.OpenProcessor(); err != nil {
		s.t.Fatal(err)
	}
	d.text.Defaults = decoder.Sampling{Temperature: 0.5, TopK: 40, TopP: 0.9, LogitBias: map[int32]float32{}}
	words := d.text.Tokenizer.Encode(" the a of and to in is on with one two red blue", false)
	for _, id := range slices.Concat(words, d.text.EOS) {
		d.text.Defaults.LogitBias[id] = 50 // readable answers, which end now and then
	}
	runner := decodertest.NewHash(cmp.Or(o.slots, 2), 128, d.model.Decoder.Vocab)
	runner.Fail = func(*decoder.Batch) error {
		if s.fails.Load() {
			return errors.New("the step failed")
		}
		return nil
	}
	d.plan.KV.Tokens = 128 * cmp.Or(o.slots, 2)
	layout, seen := d.model.Layout, sync.Map{}
	encode := func(ctx context.Context, img *vision.Image) ([]float32, bool, error) {
		_, cached := seen.LoadOrStore(fmt.Sprint(img.Tenant, img.Digest), true)
		if !cached {
			pass(encoding)
		}
		return make([]float32, layout.Patches(img.Grid)*d.model.Decoder.Hidden), cached, ctx.Err()
	}
	if err := d.start(decodertest.NewPaced(runner, promptToken, decodeStep), encode); err != nil {
		s.t.Fatal(err)
	}
	d.Model.Digest = "sha256:test"
	d.Model.Prompter.Preprocessor = slowly{d.Model.Prompter.Preprocessor}
	compiler := d.Model.Compiler
	d.Model.Compiler = func() (*constrain.Compiler, error) {
		pass(compiling)
		return compiler()
	}
	s.d = d
}

// slowly is a preprocessor that takes its time, for images that are words.
type slowly struct{ vision.Preprocessor }

func (p slowly) Prepare(ctx context.Context, data []byte, _ vision.Limits, _ bool) (*vision.Image, error) {
	began := time.Now()
	pass(decodeImage)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case string(data) == "broken":
		return nil, fmt.Errorf("%w: not an image", vision.ErrImage)
	case string(data) == "fault":
		return nil, errors.New("the preprocessor failed")
	}
	img := &vision.Image{Digest: sha256.Sum256(data), Width: 64, Height: 32, Size: 64, Started: began, Decoded: time.Now()}
	pass(resize)
	return img, nil
}

// say writes a line of the scene.
func (s *scene) say(format string, args ...any) { fmt.Fprintf(&s.text, format+"\n", args...) }

// at is the scene's time.
func (s *scene) at() time.Duration { return time.Since(s.began) }

// cue is a request on its way, and the sink that writes down what comes of it.
type cue struct {
	s      *scene
	id     string
	events []cueEvent
	err    error
	over   chan struct{}
	fail   string        // the event at which the sink fails
	slow   time.Duration // what each event takes
}

type cueEvent struct {
	at    time.Duration
	index int
	text  string
}

var errGone = &Error{Kind: Unavailable, Message: "the client is gone"}

func (c *cue) note(event string, index int, format string, args ...any) error {
	c.events = append(c.events, cueEvent{c.s.at(), index, fmt.Sprintf(event+" "+format, args...)})
	pass(c.slow)
	if event == c.fail {
		return errGone
	}
	return nil
}

func (c *cue) Start(e *Start) error {
	return c.note("start", -1, "%s %s %s seed %d answers %d %+v",
		e.ID, e.Model, e.ModelDigest, e.Seed, e.Answers, e.Usage)
}

func (c *cue) Delta(e *Delta) error {
	return c.note("delta", e.Index, "%d %q tokens %d%s",
		e.Index, e.Text, e.Tokens, logprobsText(e.Logprobs, e.PromptLogprobs))
}

func (c *cue) Finish(e *Finish) error {
	stop := ""
	if e.Stop != nil {
		stop = fmt.Sprintf(" at %q", *e.Stop)
	}
	if e.StopTokenID != nil {
		stop += fmt.Sprintf(" at token %d", *e.StopTokenID)
	}
	return c.note("finish", e.Index, "%d %v%s %+v %+v%s scores %.4f", e.Index, e.Reason, stop, e.Usage, e.Timings,
		logprobsText(e.Logprobs, e.PromptLogprobs), e.ChoiceScores)
}

func logprobsText(answer, prompt []Logprobs) (text string) {
	for _, list := range []struct {
		name string
		of   []Logprobs
	}{{"logprobs", answer}, {"prompt", prompt}} {
		for _, p := range list.of {
			text += fmt.Sprintf("\n    %s %d %q %.3f", list.name, p.Token.ID, p.Token.Text, p.Token.Logprob)
			for _, o := range p.Top {
				text += fmt.Sprintf(" | %d %q %.3f", o.ID, o.Text, o.Logprob)
			}
		}
	}
	return text
}

// begin sends a request.
func (s *scene) begin(ctx context.Context, c *cue, in *Request) *cue {
	c.s, c.id, c.over = s, in.ID, make(chan struct{})
	go func() {
		defer close(c.over)
		c.err = s.service.Generate(ctx, in, c)
	}()
	return c
}

// end waits for a request and writes down what became of it: events, error, log line and spans. Some time goes by: a
// step that has begun when an answer is cut is over then.
func (s *scene) end(c *cue) {
	<-c.over
	defer pass(2 * decodeStep)
	slices.SortStableFunc(c.events, func(a, b cueEvent) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.index, b.index))
	})
	s.say("request %s", c.id)
	for _, e := range c.events {
		s.say("  %v %s", e.at, e.text)
	}
	var told *Error
	if errors.As(c.err, &told) {
		s.say("  error %v: %v (retry after %v)", told.Kind, told, told.RetryAfter)
	} else if c.err != nil {
		s.say("  an error of no kind: %v", c.err)
	}
	s.mu.Lock()
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, "id="+c.id+" ") {
			s.text.WriteString("  " + line)
		}
	}
	s.mu.Unlock()
	for _, root := range s.spans.Ended() {
		if slices.Contains(root.Attributes(), keyResponseID.String(c.id)) {
			s.span(root, "  ")
		}
	}
}

// ask is begin and end.
func (s *scene) ask(in *Request) { s.end(s.begin(s.t.Context(), new(cue), in)) }

// span writes a span and those under it.
func (s *scene) span(span sdktrace.ReadOnlySpan, indent string) {
	attrs := make([]string, len(span.Attributes()))
	for i, a := range span.Attributes() {
		attrs[i] = string(a.Key) + "=" + a.Value.String()
	}
	slices.Sort(attrs)
	failed := ""
	if span.Status().Code == otelcodes.Error {
		failed = " failed " + span.Status().Description
	}
	began, took := span.StartTime().Sub(s.began), span.EndTime().Sub(span.StartTime())
	s.say("%s%s at %v for %v%s: %s", indent, span.Name(), began, took, failed, strings.Join(attrs, " "))
	children := s.spans.Ended()
	slices.SortStableFunc(children, func(a, b sdktrace.ReadOnlySpan) int {
		return a.StartTime().Compare(b.StartTime())
	})
	for _, c := range children {
		if c.Parent().SpanID() == span.SpanContext().SpanID() {
			s.span(c, indent+"  ")
		}
	}
}

// steps writes the spans of steps.
func (s *scene) steps() {
	for _, span := range s.spans.Ended() {
		if !strings.HasPrefix(span.Name(), "mmserve.step.") {
			continue
		}
		s.span(span, "")
		for _, l := range span.Links() {
			set := attribute.NewSet(l.Attributes...)
			s.say("  link %s", set.Encoded(attribute.DefaultEncoder()))
		}
	}
}

// measured writes the metrics: of all series, or of those that are not 0, whose names have a word in them. What the
// engine counts is not the same each time where answers are cut: the step that follows may have begun by then.
func (s *scene) measured(all bool, word string) {
	s.t.Helper()
	var data metricdata.ResourceMetrics
	if err := s.metrics.Collect(s.t.Context(), &data); err != nil {
		s.t.Fatal(err)
	}
	var lines []string
	add := func(name string, set attribute.Set, value float64, text string) {
		if (all || value != 0) && strings.Contains(name, word) {
			lines = append(lines, fmt.Sprintf("  %s{%s} %s", name, set.Encoded(attribute.DefaultEncoder()), text))
		}
	}
	for _, m := range data.ScopeMetrics[0].Metrics {
		switch d := m.Data.(type) {
		case metricdata.Gauge[int64]:
			points(d.DataPoints, m.Name, add)
		case metricdata.Sum[int64]:
			points(d.DataPoints, m.Name, add)
		case metricdata.Gauge[float64]:
			points(d.DataPoints, m.Name, add)
		case metricdata.Histogram[float64]:
			buckets(d.DataPoints, m.Name, add)
		case metricdata.Histogram[int64]:
			buckets(d.DataPoints, m.Name, add)
		default:
			s.t.Fatalf("%s is %T", m.Name, d)
		}
	}
	slices.Sort(lines)
	s.say("measured at %v\n%s", s.at(), strings.Join(lines, "\n"))
}

type addPoint func(name string, set attribute.Set, value float64, text string)

func points[N int64 | float64](list []metricdata.DataPoint[N], name string, add addPoint) {
	for _, p := range list {
		add(name, p.Attributes, float64(p.Value), fmt.Sprintf("%.6g", float64(p.Value)))
	}
}

func buckets[N int64 | float64](list []metricdata.HistogramDataPoint[N], name string, add addPoint) {
	for _, p := range list {
		add(name, p.Attributes, float64(p.Count), fmt.Sprintf("%d, together %.6g", p.Count, float64(p.Sum)))
	}
}
