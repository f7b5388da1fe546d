package main

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/telemetry"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// discard takes spans in the form in which they would be sent.
type discard struct{}

func (discard) Start(context.Context) error                                  { return nil }
func (discard) Stop(context.Context) error                                   { return nil }
func (discard) UploadTraces(context.Context, []*tracepb.ResourceSpans) error { return nil }

// benchServer serves the embedded model in memory, watched or not.
func benchServer(b *testing.B, watched bool) *client.Client {
	b.Helper()
	log := slog.New(slog.DiscardHandler)
	o := &observability{}
	var err error
	if o.sdk, err = telemetry.Start(b.Context(), telemetry.Options{Prometheus: true}, log); err != nil {
		b.Fatal(err)
	}
	config := serving.Config{
		Slots: 8, Batching: batching.Options{MaxWaiting: 8}, EncoderCacheBytes: 16 << 20, NoSelfTest: true, Logger: log,
	}
	if watched {
		exporter, err := otlptrace.New(b.Context(), discard{})
		if err != nil {
			b.Fatal(err)
		}
		tp := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithSampler(sdktrace.AlwaysSample()))
		b.Cleanup(func() { tp.Shutdown(context.Background()) })
		o.sdk.Tracer = tp
		if o.server, err = serving.NewTelemetry(tp, o.sdk.Meter, 16); err != nil {
			b.Fatal(err)
		}
		config.Observe = o.server.Steps
	}
	return serveEmbedded(b, config, server.Options{Logger: log, Telemetry: o.server, GRPC: o.grpc()})
}

// serveEmbedded serves the embedded model in memory.
func serveEmbedded(b *testing.B, config serving.Config, o server.Options) *client.Client {
	b.Helper()
	a, err := serving.Open(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	lis := bufconn.Listen(1 << 20)
	ctx, stop := context.WithCancel(context.Background())
	srv := server.New(a.Model, a.Engine, o)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, lis) }()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		conn.Close()
		stop()
		<-done
		a.Close(context.Background())
	})
	return client.New(conn)
}

// processorTime is what the process has used: unlike the clock it does not tell of what else the machine does.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkTelemetry decodes eight streams with everything on (every request traced, one step in 16, metrics) and with
// everything off, in turn.
func BenchmarkTelemetry(b *testing.B) {
	interleave(b, [3]*client.Client{benchServer(b, false), benchServer(b, true), benchServer(b, false)}, "Count.")
}

// interleave has three servers answer eight streams each in turn, of which the second has something on that the others
// have off. on/off is the median of the ratios of their tokens by processor time, off/off the same for the two servers
// with everything off: how much of it is noise. wall-on/off is by the clock.
func interleave(b *testing.B, servers [3]*client.Client, ask string) {
	const streams, tokens = 8, 256
	round := func(c *client.Client) (perToken, wall time.Duration, allocs float64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began, start := processorTime(b), time.Now()
		var wg sync.WaitGroup
		for range streams {
			wg.Go(func() {
				in := client.Chat(client.User(client.Text(ask)))
				n := uint32(tokens)
				in.MaxTokens, in.IgnoreEos = &n, true
				for _, err := range c.Stream(b.Context(), in) {
					if err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
		took, passed := processorTime(b)-began, time.Since(start)
		runtime.ReadMemStats(&after)
		return took / (streams * tokens), passed, float64(after.Mallocs-before.Mallocs) / (streams * tokens)
	}
	for _, c := range servers {
		round(c)
	}
	var ratios, clocks, noise []float64
	var times, allocs [3][]float64
	for i := 0; b.Loop(); i++ {
		var took, clock [3]float64
		for j := range servers {
			k := (i + j) % len(servers)
			perToken, wall, n := round(servers[k])
			took[k], clock[k] = float64(perToken), float64(wall)
			times[k], allocs[k] = append(times[k], took[k]), append(allocs[k], n)
		}
		ratios, noise = append(ratios, (took[0]+took[2])/2/took[1]), append(noise, took[0]/took[2])
		clocks = append(clocks, (clock[0]+clock[2])/2/clock[1])
	}
	median := func(x []float64) float64 { slices.Sort(x); return x[len(x)/2] }
	b.ReportMetric(median(ratios), "on/off")
	b.ReportMetric(median(clocks), "wall-on/off")
	b.ReportMetric(median(noise), "off/off")
	b.ReportMetric(median(append(times[0], times[2]...)), "off-cpu-ns/token")
	b.ReportMetric(median(times[1]), "on-cpu-ns/token")
	b.ReportMetric(median(allocs[0]), "off-allocs/token")
	b.ReportMetric(median(allocs[1]), "on-allocs/token")
	b.ReportMetric(0, "ns/op")
}
