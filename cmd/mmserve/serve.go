package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/alecthomas/kong"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/admin"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/socket"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

type serveCmd struct {
	configFlags
	modelFlags
	telemetryFlags
	listenFlags
	mediaFlags
	conversationFlags
	policyFlags
	securityFlags
	auditFlags
	drainFlags
	Listen           string        `default:"127.0.0.1:8080" env:"MMSERVE_LISTEN" help:"Address to serve gRPC on, host:port or unix:///path."`
	HTTPListen       string        `name:"http-listen" placeholder:"ADDR" env:"MMSERVE_HTTP_LISTEN" help:"Address to serve OpenAI's HTTP API on, host:port or unix:///path (default: nowhere)."`
	HTTPAllowOrigin  []string      `name:"http-allow-origin" placeholder:"ORIGIN" env:"MMSERVE_HTTP_ALLOW_ORIGIN" help:"Web pages whose scripts may ask over HTTP, as https://example.com; * for any (default: none)."`
	Web              bool          `default:"true" negatable:"" env:"MMSERVE_WEB" help:"Serve the playground, a web page to try models on, under / of --http-listen."`
	MaxMessageBytes  int           `default:"67108864" env:"MMSERVE_MAX_MESSAGE_BYTES" help:"Largest request message, or HTTP body, accepted."`
	MaxInflightBytes byteSize      `placeholder:"SIZE" env:"MMSERVE_MAX_INFLIGHT_BYTES" help:"Memory of all request messages together, from their first byte until their images are decoded; beyond it those still being received are refused (default: 128MiB, or twice --max-message-bytes)."`
	MaxConnections   int           `default:"0" env:"MMSERVE_MAX_CONNECTIONS" help:"Most connections; one more takes the place of a silent one (default: 1024, or what the process has file descriptors for)."`
	MaxStreams       int           `default:"1024" env:"MMSERVE_MAX_STREAMS" help:"Most calls at once on one connection; a client keeps the others back."`
	CallersByConn    bool          `name:"callers-by-connection" env:"MMSERVE_CALLERS_BY_CONNECTION" help:"Have each connection count as a caller of its own where requests name no tenant: behind a proxy (default: each host, and each connection of this machine)."`
	ReceiveTimeout   time.Duration `default:"30s" env:"MMSERVE_RECEIVE_TIMEOUT" help:"How long a request message may take to come whole."`
	MaxImages        int           `default:"16" env:"MMSERVE_MAX_IMAGES" help:"Most images in one request."`
	ModelsDir        string        `placeholder:"DIR" env:"MMSERVE_MODELS_DIR" help:"Have the admin listener load, swap and unload models, whose folders lie below DIR (default: it cannot)."`
	ModelsHub        bool          `env:"MMSERVE_MODELS_HUB" help:"Have the admin listener load models of a hub, too: POST /models then takes hf://ORG/NAME[@REVISION] as dir (default: it cannot)."`
	Quotas           string        `placeholder:"FILE" env:"MMSERVE_QUOTAS" help:"What each tenant may use, a YAML or JSON file: requests a second, concurrency, tokens and images a minute, weight; read again when it changes."`
}

// Limits of durations and sizes on the command line: far above what helps, far below where arithmetic breaks.
const (
	maxDuration     = 24 * time.Hour
	maxMessageBytes = 1 << 30
	maxRequestCount = 1 << 16
)

func (s serveCmd) check() error {
	if err := checkAddress("--listen", s.Listen); err != nil {
		return err
	}
	if s.AdminAddress != "" {
		if err := checkAddress("--admin-address", s.AdminAddress); err != nil {
			return err
		}
	}
	if s.HTTPListen != "" {
		if err := checkAddress("--http-listen", s.HTTPListen); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		flag               string
		value, least, most int64
	}{
		{"--max-message-bytes", int64(s.MaxMessageBytes), 1, maxMessageBytes},
		{"--max-images", int64(s.MaxImages), 1, maxRequestCount},
		{"--max-connections", int64(s.MaxConnections), 0, 1 << 20},
		{"--max-streams", int64(s.MaxStreams), 1, 1 << 20},
	} {
		if c.value < c.least || c.value > c.most {
			return fmt.Errorf("%s %d: want %d to %d", c.flag, c.value, c.least, c.most)
		}
	}
	if s.ModelsDir != "" {
		if st, err := os.Stat(s.ModelsDir); err != nil || !st.IsDir() {
			return fmt.Errorf("--models-dir %s: want a folder that is there", s.ModelsDir)
		}
	}
	if b := int64(s.MaxInflightBytes); b > 0 && b < int64(s.MaxMessageBytes) {
		return fmt.Errorf("--max-inflight-bytes %d: want at least --max-message-bytes, %d", b, s.MaxMessageBytes)
	}
	if s.ReceiveTimeout < time.Millisecond || s.ReceiveTimeout > maxDuration {
		return fmt.Errorf("--receive-timeout %v: want %v to %v", s.ReceiveTimeout, time.Millisecond, maxDuration)
	}
	return nil
}

// checkAddress refuses what would listen somewhere else than was meant: an empty address is every interface at any
// port.
func checkAddress(flag, address string) error {
	if _, unix, err := socket.Path(address); err != nil {
		return fmt.Errorf("%s %w", flag, err)
	} else if unix {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%s %q: want host:port with a port of 0 to 65535, as 127.0.0.1:8080, or :8080 for all interfaces, or unix:///path", flag, address)
	}
	return nil
}

// checkAll refuses flags that are out of range or do not go together.
func (s serveCmd) checkAll() error {
	return errors.Join(s.check(), s.modelFlags.check(), s.listenFlags.check(), s.mediaFlags.check(),
		s.conversationFlags.check(), s.securityFlags.check(), s.auditFlags.check(), s.drainFlags.check())
}

// Run serves until SIGTERM or an interrupt, then drains. It fails when the device is lost.
func (s serveCmd) Run(ctx context.Context, k *kong.Context, c *cli, out io.Writer, log *slog.Logger,
	level *slog.LevelVar, again rereader) error {
	if err := s.checkAll(); err != nil {
		return usageError{err}
	}
	s.adminAsked = given(k, adminFlag)
	if s.PrintConfig {
		return printConfig(out, k.Flags())
	}
	reload := &reloaders{log: log}
	ctx, stop := serveSignals(ctx, log, reload.reload) // before anything that takes time: SIGHUP would end the process
	defer stop()
	if s.Config != "" {
		if err := reload.watchConfig(k, level, again); err != nil {
			return err
		}
	}
	guard, err := s.secure(log)
	if err != nil {
		return err
	}
	if len(guard.files) > 0 {
		reload.add("keys and certificates", guard.Reload)
	}
	return s.serve(ctx, c, guard, log, level, reload)
}

// serve answers until ctx ends.
func (s serveCmd) serve(
	ctx context.Context, c *cli, guard *security, log *slog.Logger, level *slog.LevelVar, reload *reloaders,
) (err error) {
	lis, web, closeAll, err := s.open(log)
	if err != nil {
		return err
	}
	defer closeAll()
	kept, err := s.openParts(ctx, web, log, reload)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kept.close()) }()
	var ready atomic.Pointer[server.Server] // nil for a moment
	models := &modelAdmin{root: s.ModelsDir}
	if s.ModelsHub {
		models.fetch = func(ctx context.Context, m modelFolder) (modelFolder, error) {
			return s.find(ctx, m, s.wanted(), log)
		}
	}
	shown := admin.Options{Level: level, Models: models, Ready: func() error { return readiness(ready.Load()) }}
	if auditAdmin(&shown, kept.audit); s.PolicyFile != "" {
		s.abuse = newAbuse(kept.audit)
		shown.Abuse = s.abuse
	}
	o, err := s.observe(ctx, log, s.listen, guard.protect(s.AdminAddress, shown))
	if err != nil {
		return err
	}
	defer func() { o.close(log) }()
	log = slog.New(o.sdk.Handler(log.Handler()))
	s.ortLib = c.OrtLib
	srv, err := s.newServer(ctx, o, guard, kept, log, reload)
	if err != nil {
		return err
	}
	ready.Store(srv)

	return s.attend(ctx, c.OrtLib, o, attended{srv, lis, models, guard, kept.audit}, log)
}

// attended is a server without models yet, and what it stands on.
type attended struct {
	*server.Server
	lis    net.Listener
	models *modelAdmin
	guard  *security
	audit  *audit.Log
}

// attend has a server answer, loads its models, and waits for its end.
func (s serveCmd) attend(ctx context.Context, ortLib string, o *observability, srv attended, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	srv.guard.run(ctx)
	served, lis := make(chan error, 1), srv.lis
	go func() {
		err := srv.Serve(ctx, lis)
		cancel(err)
		served <- err
	}()
	log.Info("listening", "address", lis.Addr().String())
	registry, err := s.load(ctx, ortLib, o, log)
	if registry == nil {
		cancel(err)
		err = errors.Join(err, <-served)
		log.Info("stopped before the model was ready", "error", err)
		return err
	}
	go func() { // a model that ends by itself has lost its device: the server then stops too
		select {
		case err := <-registry.Lost():
			cancel(err)
		case <-ctx.Done():
		}
	}()
	auditModels(srv.audit, registry)
	srv.Attach(registry)
	srv.models.models.Store(registry)
	log.Info("serving", "address", lis.Addr().String(), "models", registry.Names())
	err = <-served
	log.Info("stopped", "error", err)
	return errors.Join(err, closeWithin(closeTime, func() error { return registry.Close(ctx) }, log))
}

// closeTime is how long the process waits for its models to be closed: a node of a graph under way cannot be cut, and
// on a huge image takes a minute.
const closeTime = 5 * time.Second

// closeWithin runs shut, and leaves it behind after the time given: the system frees what it would have.
func closeWithin(limit time.Duration, shut func() error, log *slog.Logger) error {
	closed := make(chan error, 1)
	go func() { closed <- shut() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(limit):
		log.Warn("a model is still at work on what nobody waits for: ending without it", "waited", limit)
		return nil
	}
}

// readiness says why a server takes no requests, nil if it does.
func readiness(s *server.Server) error {
	if s == nil {
		return errors.New("starting")
	}
	return s.Ready()
}

// open opens the listeners; web is nil where there is to be no HTTP.
func (s serveCmd) open(log *slog.Logger) (lis, web net.Listener, closeAll func(), err error) {
	if lis, err = s.listen("--listen", s.Listen); err != nil {
		return nil, nil, nil, err
	}
	if s.HTTPListen == "" {
		return lis, nil, func() { _ = lis.Close() }, nil
	}
	if web, err = s.listen("--http-listen", s.HTTPListen); err != nil {
		_ = lis.Close()
		return nil, nil, nil, err
	}
	log.Info("http", "address", web.Addr().String())
	return lis, web, func() { _, _ = lis.Close(), web.Close() }, nil
}

// parts are what a server has beside its models: the listener of HTTP, the store of conversations and the audit log.
// Each may be nil.
type parts struct {
	web           net.Listener
	conversations conversation.Store
	audit         *audit.Log
}

// openParts opens what outlives requests.
func (s serveCmd) openParts(ctx context.Context, web net.Listener, log *slog.Logger,
	reload *reloaders) (p parts, err error) {
	p.web = web
	if p.audit, err = s.auditFlags.open(log); err != nil {
		return p, err
	}
	reload.keep(p.audit)
	if p.conversations, err = s.conversationFlags.open(ctx, log, reload); err != nil {
		return p, errors.Join(err, p.close())
	}
	if p.conversations != nil {
		j := &serving.Janitor{Store: p.conversations, Audit: auditor(p.audit), Logger: log}
		go j.Run(ctx)
	}
	return p, nil
}

// close lets go of all but the listener.
func (p parts) close() (err error) {
	if p.conversations != nil {
		err = p.conversations.Close()
	}
	return errors.Join(err, closeAudit(p.audit))
}

// newServer is a server without a model yet, and follows the file of its quotas until ctx ends.
func (s serveCmd) newServer(
	ctx context.Context, o *observability, guard *security, p parts, log *slog.Logger, reload *reloaders,
) (*server.Server, error) {
	options := s.options(o, guard, p.web, log)
	options.Audit, options.AuditRequired = auditor(p.audit), s.AuditRequired
	s.mediaFlags.apply(&options)
	s.conversationFlags.apply(&options, p.conversations)
	if s.Quotas != "" {
		q, file, err := serving.OpenQuotas(s.Quotas, log)
		if err != nil {
			return nil, fmt.Errorf("--quotas: %w", err)
		}
		go file.Run(ctx)
		reload.add("quotas", file.Reload)
		options.Quotas = q
	}
	if err := s.policyFlags.apply(ctx, &options, s.ortLib, s.MaxPixels, log, reload); err != nil {
		return nil, err
	}
	return server.Loading(options), nil
}

// load opens the models. It gives nil without an error when ctx ends first: what cannot be interrupted then goes on by
// itself, and ends with the process.
func (s serveCmd) load(ctx context.Context, ortLib string, o *observability,
	log *slog.Logger) (*serving.Registry, error) {
	config := s.config(ortLib, log)
	s.mediaFlags.limit(&config.Images)
	if o.server != nil {
		config.Observe = o.server.Steps
	}
	registry := serving.NewRegistry(serving.RegistryOptions{Config: config})
	done := make(chan error, 1)
	go func() { done <- s.loadAll(ctx, registry, log) }()
	select {
	case err := <-done:
		if err == nil {
			return registry, nil
		}
		if ctx.Err() != nil {
			return nil, registry.Close(ctx)
		}
		return nil, errors.Join(err, registry.Close(ctx))
	case <-ctx.Done():
		return nil, nil
	}
}

// loadAll opens the models of the command line one after the other; the embedded one where it names none.
func (s serveCmd) loadAll(ctx context.Context, registry *serving.Registry, log *slog.Logger) error {
	list := s.Model
	if len(list) == 0 {
		list = []modelFolder{{}}
	}
	for i, m := range list {
		m, err := s.find(ctx, m, s.wanted(), log)
		if err != nil {
			return err
		}
		before := registry.Names()
		d, err := registry.Load(ctx, m.Name, m.Dir)
		if err != nil {
			return err
		}
		if slices.Contains(before, d.Model.Name) {
			return fmt.Errorf("--model: two are called %q; name one of them otherwise, as NAME=%s", d.Model.Name, list[i].Dir)
		}
	}
	return nil
}

// secure checks all flags, refuses listeners that anybody would reach, and opens what decides who may ask.
func (s serveCmd) secure(log *slog.Logger) (*security, error) {
	err := s.expose(log, []listenerFlag{
		{flag: "--listen", address: s.Listen},
		{flag: "--http-listen", address: s.HTTPListen},
		{flag: adminFlag, address: s.AdminAddress, credential: s.AdminKeyFile != ""},
	})
	if err != nil {
		return nil, err
	}
	return s.securityFlags.open(log)
}

func (s serveCmd) options(o *observability, guard *security, web net.Listener, log *slog.Logger) server.Options {
	connections := s.MaxConnections
	if connections == 0 {
		connections = connectionLimit(1024)
	}
	drain := s.drainFlags.times(log)
	return server.Options{
		MaxMessageBytes: s.MaxMessageBytes, MaxInflightBytes: int64(s.MaxInflightBytes), MaxConnections: connections,
		MaxStreams: s.MaxStreams, ReceiveTimeout: s.ReceiveTimeout, MaxImages: s.MaxImages, Version: programVersion(),
		CallersByConnection: s.CallersByConn,
		NoDrafts:            !s.Speculative, SharePrefixes: s.SharePrefixes, DrainDelay: drain.delay, Grace: drain.grace,
		Logger: log, Telemetry: o.server, GRPC: o.grpc(),
		MaxConnectionAge: s.MaxConnectionAge, MaxConnectionAgeGrace: s.MaxConnectionAgeGrace,
		Credentials: guard.credentials(), Auth: guard.auth, AuthHealth: s.AuthHealth,
		HTTP: server.HTTPOptions{
			Listener: web, TLS: guard.http(), AllowOrigins: s.HTTPAllowOrigin, Propagator: o.sdk.Propagator,
			Playground: s.Web,
		},
	}
}
