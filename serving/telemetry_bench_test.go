package serving

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/mmserve/mmserve/batching"
)

// BenchmarkStep is what a decode step of eight sequences costs the engine's goroutine beyond the step.
func BenchmarkStep(b *testing.B) {
	tp := sdktrace.NewTracerProvider()
	defer tp.Shutdown(context.Background())
	t, err := NewTelemetry(tp, metric.NewMeterProvider(metric.WithReader(metric.NewManualReader())), 16)
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	s := batching.Step{Began: now, Ended: now.Add(time.Millisecond), Rows: make([]batching.StepRow, 8)}
	step := t.Steps("model")
	b.Run("metrics", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			step(s)
		}
	})
	b.Run("traced", func(b *testing.B) {
		for i := range s.Rows {
			s.Rows[i].Tag = new(progress)
		}
		b.ReportAllocs()
		for b.Loop() {
			step(s)
		}
	})
}
