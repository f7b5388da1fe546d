// Package telemetry sets OpenTelemetry up. What is exported, how and to where, is said by the standard OTEL_*
// variables, which the SDK itself reads; Prometheus is served from the same instruments.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/contrib/propagators/autoprop"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	nometric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
	notrace "go.opentelemetry.io/otel/trace/noop"
)

// scope names this package among the instrumentations of its process.
const scope = "github.com/mmserve/mmserve/internal/telemetry"

// series bounds the attribute sets of one instrument; what is beyond it is counted as one.
const series = 1000

// Options say which signals there are. The zero value is all off.
type Options struct {
	// Version is the program's.
	Version string
	// Traces, Metrics and Logs are exported as OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER and OTEL_LOGS_EXPORTER say, by
	// OTLP where they say nothing.
	Traces, Metrics, Logs bool
	// Prometheus has Telemetry.Scrape give the metrics.
	Prometheus bool
}

// Telemetry is where measurements go. Of a signal that is off the provider does nothing.
type Telemetry struct {
	Tracer     trace.TracerProvider
	Meter      metric.MeterProvider
	Propagator propagation.TextMapPropagator
	// Scrape answers Prometheus; nil without Options.Prometheus.
	Scrape http.Handler

	logs    *sdklog.LoggerProvider
	closers []func(context.Context) error
}

// Start sets up what o asks for. Failures of exporters go to log from then on.
func Start(ctx context.Context, o Options, log *slog.Logger) (_ *Telemetry, err error) {
	t := &Telemetry{Tracer: notrace.NewTracerProvider(), Meter: nometric.NewMeterProvider(),
		Propagator: autoprop.NewTextMapPropagator()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("OpenTelemetry: %w", err), t.Close(ctx))
		}
	}()
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry", "error", err) }))
	res, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("mmserve"),
		semconv.ServiceVersion(o.Version)),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID(), resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	if o.Traces {
		if err := t.traces(ctx, res); err != nil {
			return nil, err
		}
	}
	if o.Metrics || o.Prometheus {
		if err := t.metrics(ctx, res, o); err != nil {
			return nil, err
		}
	}
	if o.Logs {
		exporter, err := autoexport.NewLogExporter(ctx)
		if err != nil {
			return nil, err
		}
		t.logs = sdklog.NewLoggerProvider(sdklog.WithResource(res), sdklog.WithProcessor(sdklog.NewBatchProcessor(exporter)))
		t.closers = append(t.closers, t.logs.Shutdown)
	}
	return t, nil
}

func (t *Telemetry) traces(ctx context.Context, res *resource.Resource) error {
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return err
	}
	if autoexport.IsNoneSpanExporter(exporter) {
		return nil
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(exporter))
	t.Tracer, t.closers = p, append(t.closers, p.Shutdown)
	return nil
}

func (t *Telemetry) metrics(ctx context.Context, res *resource.Resource, o Options) error {
	opts := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithCardinalityLimit(series)}
	if o.Metrics {
		reader, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return err
		}
		opts = append(opts, sdkmetric.WithReader(reader))
	}
	if o.Prometheus {
		registry := prometheus.NewRegistry()
		reader, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo(),
			otelprometheus.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes))
		if err != nil {
			return err
		}
		opts = append(opts, sdkmetric.WithReader(reader))
		// The default gatherer has the Go runtime and the process. OpenMetrics is the format that carries exemplars.
		t.Scrape = promhttp.HandlerFor(prometheus.Gatherers{registry, prometheus.DefaultGatherer},
			promhttp.HandlerOpts{EnableOpenMetrics: true})
	}
	p := sdkmetric.NewMeterProvider(opts...)
	t.Meter, t.closers = p, append(t.closers, p.Shutdown)
	return t.buildInfo(o.Version)
}

func (t *Telemetry) buildInfo(version string) error {
	attrs := metric.WithAttributes(attribute.String("version", version), attribute.String("go_version", runtime.Version()))
	_, err := t.Meter.Meter(scope).Int64ObservableGauge("mmserve.build.info",
		metric.WithDescription("Always 1; the labels say which build runs."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(1, attrs)
			return nil
		}))
	return err
}

// Handler is h, and the export of log records if there is one.
func (t *Telemetry) Handler(h slog.Handler) slog.Handler {
	if t.logs == nil {
		return h
	}
	return slog.NewMultiHandler(h, leveled{otelslog.NewHandler(scope, otelslog.WithLoggerProvider(t.logs)), h})
}

// Close sends what has not been sent, as far as ctx allows.
func (t *Telemetry) Close(ctx context.Context) error {
	var err error
	for _, c := range t.closers {
		err = errors.Join(err, c(ctx))
	}
	return err
}
