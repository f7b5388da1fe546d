package server_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	otelcodes "go.opentelemetry.io/otel/codes"
	nometric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

const caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" // the example of W3C Trace Context

// startTraced is a server whose spans are recorded, with the steps that the interval says.
func startTraced(t *testing.T, m serving.Model, r *chain, steps int,
	options ...sdktrace.TracerProviderOption) (*fixture, *tracetest.SpanRecorder) {
	t.Helper()
	o, rec := tracedOptions(t, steps, options...)
	return start(t, m, r, o), rec
}

// tracedOptions are those of a server whose spans are recorded.
func tracedOptions(
	t *testing.T, steps int, options ...sdktrace.TracerProviderOption,
) (server.Options, *tracetest.SpanRecorder) {
	t.Helper()
	rec := tracetest.NewSpanRecorder()
	tp := sdktrace.NewTracerProvider(append(options, sdktrace.WithSpanProcessor(rec))...)
	tel, err := serving.NewTelemetry(tp, nometric.NewMeterProvider(), steps)
	if err != nil {
		t.Fatal(err)
	}
	return server.Options{Telemetry: tel, GRPC: []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(tp), otelgrpc.WithMeterProvider(nometric.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{})))}}, rec
}

func traced(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "traceparent", caller)
}

// tree writes a trace out: a line for each span, indented under its parent, in order of their begin.
func tree(spans []sdktrace.ReadOnlySpan, parent string, indent string) string {
	var b strings.Builder
	for _, s := range spans {
		if s.Parent().SpanID().String() == parent {
			b.WriteString(indent + s.Name() + "\n" + tree(spans, s.SpanContext().SpanID().String(), indent+"  "))
		}
	}
	return b.String()
}

// ended waits for the RPC's span, which ends after the answer has left, and gives all in order of their begin.
func ended(t *testing.T, rec *tracetest.SpanRecorder, rpcs int) []sdktrace.ReadOnlySpan {
	t.Helper()
	var spans []sdktrace.ReadOnlySpan
	eventually(t, "the RPC's span ends", func() bool {
		spans = rec.Ended()
		n := 0
		for _, s := range spans {
			if strings.HasPrefix(s.Name(), "mmserve.v1.MMServe/") {
				n++
			}
		}
		return n == rpcs
	})
	slices.SortStableFunc(spans, func(a, b sdktrace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	return spans
}

func find(t *testing.T, spans []sdktrace.ReadOnlySpan, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	i := slices.IndexFunc(spans, func(s sdktrace.ReadOnlySpan) bool { return s.Name() == name })
	if i < 0 {
		t.Fatalf("no span %s", name)
	}
	return spans[i]
}

func attr(s sdktrace.ReadOnlySpan, key string) string {
	for _, a := range s.Attributes() {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return "none"
}

func TestSpans(t *testing.T) {
	g := readGolden(t)
	m := tinyVLM(t)
	prepare := m.Prompter.Preprocessor.Prepare
	m.Prompter.Preprocessor = prepares{prepare: func(ctx context.Context, data []byte, l vision.Limits,
		d bool) (*vision.Image, error) {
		img, err := prepare(ctx, data, l, d)
		if err == nil {
			img.Decoded = time.Now()
		}
		return img, err
	}}
	f, rec := startTraced(t, m, newChain(2, g.GeneratedIDs...), 1)
	in := question()
	in.RequestId, in.Tenant = "r-1", "acme"
	in.Sampling = &pb.Sampling{Temperature: proto.Float32(0), Seed: proto.Uint64(7)}
	in.Stop = []string{"a secret of the caller's"}
	_, _, finish, err := collect(traced(t.Context()), f.Client, in)
	if err != nil {
		t.Fatal(err)
	}
	spans := ended(t, rec, 1)
	want := `mmserve.v1.MMServe/GenerateStream
  chat tiny-vlm
    mmserve.preprocess
      mmserve.image.decode
      mmserve.image.resize
    mmserve.tokenize
    mmserve.encode
    mmserve.queue
    mmserve.prefill
    mmserve.decode
`
	if got := tree(spans, "b7ad6b7169203331", ""); got != want {
		t.Errorf("the trace is\n%swant\n%s", got, want)
	}
	request := find(t, spans, "chat tiny-vlm")
	prompt, tokens := fmt.Sprint(len(g.PromptIDs)), fmt.Sprint(len(g.GeneratedIDs))
	for _, a := range []struct{ span, key, value string }{
		{"chat tiny-vlm", "gen_ai.operation.name", "chat"},
		{"chat tiny-vlm", "gen_ai.provider.name", "mmserve"},
		{"chat tiny-vlm", "gen_ai.request.model", "tiny-vlm"},
		{"chat tiny-vlm", "gen_ai.request.stream", "true"},
		{"chat tiny-vlm", "gen_ai.request.seed", "7"},
		{"chat tiny-vlm", "gen_ai.request.max_tokens", "none"},
		{"chat tiny-vlm", "gen_ai.response.id", "r-1"},
		{"chat tiny-vlm", "gen_ai.response.finish_reasons", `["stop"]`},
		{"chat tiny-vlm", "gen_ai.usage.input_tokens", prompt},
		{"chat tiny-vlm", "gen_ai.usage.image.input_tokens", fmt.Sprint(imageTokens)},
		{"chat tiny-vlm", "gen_ai.usage.output_tokens", tokens},
		{"chat tiny-vlm", "mmserve.tenant", "acme"},
		{"chat tiny-vlm", "error.type", "none"},
		{"mmserve.preprocess", "mmserve.images", "1"},
		{"mmserve.image.decode", "mmserve.image.width", "64"},
		{"mmserve.encode", "mmserve.encoder.cached_tokens", "0"},
		{"mmserve.prefill", "mmserve.prefill.tokens", prompt},
		{"mmserve.prefill", "mmserve.prefill.chunks", "1"},
		{"mmserve.prefill", "mmserve.slot", "0"},
		{"mmserve.decode", "mmserve.decode.steps", fmt.Sprint(len(g.GeneratedIDs) - 1)},
		{"mmserve.decode", "mmserve.decode.batch_size.mean", "1"},
		{"mmserve.decode", "mmserve.decode.batch_size.max", "1"},
	} {
		if got := attr(find(t, spans, a.span), a.key); got != a.value {
			t.Errorf("%s: %s is %s, want %s", a.span, a.key, got, a.value)
		}
	}
	// The stages are the timings of the answer.
	prefill := find(t, spans, "mmserve.prefill")
	if d := prefill.EndTime().Sub(prefill.StartTime()); d != finish.GetTimings().GetPrefill().AsDuration() {
		t.Errorf("the prefill span took %v, the answer says %v", d, finish.GetTimings().GetPrefill().AsDuration())
	}
	// Each step has its own trace, linked to the request.
	steps := 0
	for _, s := range spans {
		if s.Name() != "mmserve.step.decode" && s.Name() != "mmserve.step.prefill" {
			continue
		}
		steps++
		links := s.Links()
		if s.Parent().IsValid() || len(links) != 1 ||
			links[0].SpanContext.SpanID() != request.SpanContext().SpanID() || attr(s, "mmserve.step.rows") != "1" {
			t.Errorf("%s has parent %v and links %v", s.Name(), s.Parent(), links)
		}
	}
	if steps != len(g.GeneratedIDs) {
		t.Errorf("%d steps have spans, want %d", steps, len(g.GeneratedIDs))
	}
	for _, s := range spans {
		text := fmt.Sprint(s.Attributes(), s.Events(), s.Status())
		if strings.Contains(text, "secret") || strings.Contains(text, "Describe") || strings.Contains(text, g.Text) {
			t.Errorf("%s holds content: %s", s.Name(), text)
		}
	}
}

// Requests that end early have the stages that they reached.
func TestSpansOfUnfinishedRequests(t *testing.T) {
	runner := endless(1)
	runner.step = make(chan struct{})
	f, rec := startTraced(t, tinyVLM(t), runner, 0)
	bad := client.Chat(client.User(client.ImageBytes([]byte("nothing")), client.Text("x")))
	if _, err := f.Generate(traced(t.Context()), bad); err == nil {
		t.Fatal("a bad image was taken")
	}
	spans := ended(t, rec, 1)
	if got, want := tree(spans, "b7ad6b7169203331", ""), "mmserve.v1.MMServe/Generate\n  chat tiny-vlm\n    mmserve.preprocess\n      mmserve.image.decode\n"; got != want {
		t.Errorf("a bad image's trace is\n%swant\n%s", got, want)
	}
	chat := find(t, spans, "chat tiny-vlm")
	if attr(chat, "error.type") != "INVALID_ARGUMENT" || chat.Status().Code != otelcodes.Unset {
		t.Errorf("a bad request has %s, %v; it is no error of the server's", attr(chat, "error.type"), chat.Status())
	}
	ctx, cancel := context.WithCancel(traced(t.Context()))
	defer close(runner.step)
	go func() {
		runner.step <- struct{}{}
		runner.step <- struct{}{}
		eventually(t, "two steps have run", func() bool { return f.engine.Stats().Steps == 2 })
		cancel()
	}()
	if _, err := f.Generate(ctx, client.Prompt(client.Text("a"))); err == nil {
		t.Fatal("an endless answer ended")
	}
	spans = ended(t, rec, 2)
	if attr(find(t, spans, "text_completion tiny-vlm"), "error.type") != "CANCELLED" ||
		attr(find(t, spans, "mmserve.decode"), "mmserve.decode.steps") != "1" {
		t.Errorf("a caller that left has %s", tree(spans, "b7ad6b7169203331", ""))
	}
}

// What is not sampled is not recorded, and the engine is told of nobody.
func TestUnsampled(t *testing.T) {
	f, rec := startTraced(t, tinyVLM(t), newChain(1, 430, 4), 1, sdktrace.WithSampler(sdktrace.NeverSample()))
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("a"))); err != nil {
		t.Fatal(err)
	}
	if n := len(rec.Started()); n != 0 {
		t.Errorf("%d spans are recorded", n)
	}
}

// The line of the log names the trace and on whose behalf the request came.
func TestLogNamesTrace(t *testing.T) {
	f, _ := startTraced(t, tinyVLM(t), newChain(1, 430, 4), 0)
	in := client.Prompt(client.Text("a"))
	in.Tenant = "acme"
	if _, err := f.Generate(traced(t.Context()), in); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the line is written", func() bool {
		line := f.log.String()
		return strings.Contains(line, "tenant=acme") && strings.Contains(line, "trace_id=0af7651916cd43dd8448eb211c80319c span_id=")
	})
}
