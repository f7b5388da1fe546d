package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/mmserve/mmserve/internal/admin"
	"github.com/mmserve/mmserve/internal/telemetry"
	"github.com/mmserve/mmserve/serving"
)

// telemetryFlags say where the server shows what it does; the standard OTEL_* variables say what is sent elsewhere.
type telemetryFlags struct {
	AdminAddress string `default:"127.0.0.1:9464" env:"MMSERVE_ADMIN_ADDRESS" help:"Address of metrics, probes, profiles and the log level, host:port or unix:///path; off if empty. Outside loopback it wants --tls-cert and --admin-key-file or a key with the role admin."`
	adminAsked   bool
	TraceSteps   int `default:"16" range:"0.." env:"MMSERVE_TRACE_STEPS" help:"Of the engine's steps that run traced requests, one in so many gets a span of its own; 0: none."`
}

// flushTime is how long telemetry has to be sent when the server ends.
const flushTime = 2 * time.Second

// observability is what watches a server.
type observability struct {
	sdk    *telemetry.Telemetry
	server *serving.Telemetry // nil if everything is off
	admin  *http.Server
	free   func()
	done   chan error // the admin listener's end
}

// observe sets telemetry up and opens the admin listener, so that probes are answered while the model loads. a is what
// the listener shows, but for the metrics.
func (f telemetryFlags) observe(ctx context.Context, log *slog.Logger,
	listen func(flag, address string) (net.Listener, error),
	a admin.Options) (o *observability, err error) {
	if f.TraceSteps < 0 {
		return nil, fmt.Errorf("--trace-steps is %d, want 0 or more", f.TraceSteps)
	}
	options := telemetry.Options{
		Version: programVersion(), Prometheus: f.AdminAddress != "",
		Traces: exported("TRACES"), Metrics: exported("METRICS"), Logs: exported("LOGS"),
	}
	o = &observability{}
	if o.sdk, err = telemetry.Start(ctx, options, log); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			o.close(log)
		}
	}()
	if options.Traces || options.Metrics || options.Prometheus {
		if o.server, err = serving.NewTelemetry(o.sdk.Tracer, o.sdk.Meter, f.TraceSteps); err != nil {
			return o, err
		}
	}
	if f.AdminAddress == "" {
		return o, nil
	}
	lis, err := f.listenAdmin(listen, log)
	if err != nil {
		return o, err
	}
	a.Metrics = o.sdk.Scrape
	if o.admin, o.free, err = admin.New(a); err != nil {
		return o, errors.Join(err, lis.Close())
	}
	o.done = make(chan error, 1)
	go func() { o.done <- admin.Serve(o.admin, lis) }()
	log.Info("admin", "address", lis.Addr().String())
	return o, nil
}

// adminPorts is how many ports are tried where the default is taken.
const adminPorts = 64

// listenAdmin opens the admin listener. Where its address was not asked for and is taken, by another server that runs
// here say, the next free port is as good.
func (f telemetryFlags) listenAdmin(
	listen func(flag, address string) (net.Listener, error), log *slog.Logger,
) (net.Listener, error) {
	lis, err := listen(adminFlag, f.AdminAddress)
	if f.adminAsked || !errors.Is(err, syscall.EADDRINUSE) {
		return lis, err
	}
	host, text, splits := net.SplitHostPort(f.AdminAddress)
	port, number := strconv.Atoi(text)
	if splits != nil || number != nil {
		return lis, err
	}
	for next := port + 1; next <= port+adminPorts; next++ {
		other, taken := listen(adminFlag, net.JoinHostPort(host, strconv.Itoa(next)))
		if taken == nil {
			log.Warn("the default admin address is taken: another is used; --admin-address names one",
				"taken", f.AdminAddress, "address", other.Addr().String())
			return other, nil
		}
	}
	return nil, fmt.Errorf("%w; the %d ports after it are taken, too: name one with %s", err, adminPorts, adminFlag)
}

// exported says whether a signal leaves the process: the variables that name an exporter or an endpoint turn it on.
func exported(signal string) bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch os.Getenv("OTEL_" + signal + "_EXPORTER") {
	case "none", "prometheus": // the admin listener answers Prometheus, whatever is exported
		return false
	case "":
		return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
	}
	return true
}

// grpc are the options that have RPCs traced and measured.
func (o *observability) grpc() []grpc.ServerOption {
	if o.server == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(o.sdk.Tracer), otelgrpc.WithMeterProvider(o.sdk.Meter),
		otelgrpc.WithPropagators(o.sdk.Propagator),
		otelgrpc.WithFilter(measured)))}
}

// measured leaves out probes, and methods that nobody declared: their names are the caller's, and each would be a
// series.
func measured(info *stats.RPCTagInfo) bool {
	service, method, ok := strings.Cut(strings.TrimPrefix(info.FullMethodName, "/"), "/")
	if !ok || service == grpc_health_v1.Health_ServiceDesc.ServiceName {
		return false
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	s, ok := d.(protoreflect.ServiceDescriptor)
	return err == nil && ok && s.Methods().ByName(protoreflect.Name(method)) != nil
}

// close sends what is left and ends the admin listener, last of all. What cannot be sent is logged: it says nothing of
// how the server ended.
func (o *observability) close(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := o.sdk.Close(ctx); err != nil {
		log.Warn("telemetry was not sent to the end", "error", err)
	}
	if o.done == nil {
		return
	}
	err := o.admin.Close()
	if serve := <-o.done; !errors.Is(serve, http.ErrServerClosed) {
		err = errors.Join(err, serve)
	}
	if err != nil {
		log.Warn("admin listener", "error", err)
	}
	o.free()
}
