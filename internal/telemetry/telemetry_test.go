package telemetry

import (
	"bytes"
	"context"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func begin(t *testing.T, o Options) *Telemetry {
	t.Helper()
	s, err := Start(t.Context(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func scrape(t *testing.T, s *Telemetry) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.Scrape.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

// Off means that nothing is recorded and no work is done for it.
func TestOff(t *testing.T) {
	s := begin(t, Options{})
	if s.Scrape != nil {
		t.Error("there is something to scrape")
	}
	h := slog.NewTextHandler(new(bytes.Buffer), nil)
	if s.Handler(h) != slog.Handler(h) {
		t.Error("the log handler was wrapped")
	}
	if n := testing.AllocsPerRun(100, func() {
		_, span := s.Tracer.Tracer("x").Start(t.Context(), "x")
		if span.IsRecording() {
			t.Fatal("a span is recorded")
		}
	}); n > 1 {
		t.Errorf("a span that is off allocates %v times, want at most the context", n)
	}
}

func TestPrometheus(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=prod")
	s := begin(t, Options{Version: "v1.2.3", Prometheus: true})
	h, err := s.Meter.Meter("x").Float64Histogram("a.b.duration", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(1, 2))
	if err != nil {
		t.Fatal(err)
	}
	h.Record(t.Context(), 1.5, metric.WithAttributes(attribute.String("k.l", "v")))
	out := scrape(t, s)
	for _, want := range []string{
		`a_b_duration_seconds_bucket{k_l="v",le="2"} 1`,
		`version="v1.2.3"`, `service_name="mmserve"`, `service_namespace="prod"`, "process_resident_memory_bytes ",
		"go_goroutines ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%.3000s", want, out)
		}
	}
	if strings.Contains(out, "otel_scope") {
		t.Error("scopes are labels")
	}
}

// However many attribute sets an instrument gets, it has a bounded number of series.
func TestSeriesAreBounded(t *testing.T) {
	s := begin(t, Options{Prometheus: true})
	c, err := s.Meter.Meter("x").Int64Counter("wild")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * series {
		c.Add(t.Context(), 1, metric.WithAttributes(attribute.Int("i", i)))
	}
	if n := strings.Count(scrape(t, s), "\nwild_total{"); n > series {
		t.Errorf("%d series, want at most %d", n, series)
	}
}

func TestTraceIDs(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(TraceIDs(slog.NewTextHandler(&b, nil))).With("a", 1).WithGroup("g")
	ctx := trace.ContextWithSpanContext(t.Context(),
		trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}}))
	log.InfoContext(ctx, "x")
	log.InfoContext(t.Context(), "y")
	lines := strings.Split(b.String(), "\n")
	if !strings.Contains(lines[0], "trace_id=01000000000000000000000000000000 ") ||
		!strings.Contains(lines[0], "span_id=0200000000000000") {
		t.Errorf("with a span: %s", lines[0])
	}
	if strings.Contains(lines[1], "trace_id") {
		t.Errorf("without: %s", lines[1])
	}
}
