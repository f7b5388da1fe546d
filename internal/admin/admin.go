// Package admin is the listener for those who run the server: metrics, probes, profiles, the log level, the models, and
// gRPC's own channelz. Without Options.Access everybody may use it, which belongs on a loopback address.
package admin

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"google.golang.org/grpc"
	grpcadmin "google.golang.org/grpc/admin"
	"google.golang.org/grpc/reflection"

	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/socket"
)

// Options are what the listener shows.
type Options struct {
	// Metrics answers /metrics.
	Metrics http.Handler
	// Ready says why the server takes no requests, nil if it does. It is called concurrently.
	Ready func() error
	// Level is read and changed at /loglevel.
	Level *slog.LevelVar
	// Models answers /models; nil: nothing does.
	Models Models
	// Abuse answers /abuse; nil: nothing does.
	Abuse Abuse
	// Access says who may use the listener; nil: everybody who reaches it, by a name of this machine's own where that is
	// this machine alone. Probes need no credential.
	Access *Access
	// TLS has the listener speak TLS.
	TLS *tls.Config
	// NoProfiles leaves out /debug/pprof.
	NoProfiles bool
	// Audit keeps what operators ask for: what changes something, or shows more than metrics, is not done unless it is
	// kept. Its event is on disk when it returns. nil: nothing is kept.
	Audit func(*audit.Event) error
}

// New returns the HTTP server, without an address, and what frees the rest once it is closed.
func New(o Options) (_ *http.Server, free func(), _ error) {
	g := grpc.NewServer()
	cleanup, err := grpcadmin.Register(g)
	if err != nil {
		return nil, nil, err
	}
	reflection.Register(g)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", o.Metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /loglevel", func(w http.ResponseWriter, _ *http.Request) { writeLevel(w, o.Level) })
	mux.HandleFunc("PUT /loglevel", changes(func(w http.ResponseWriter, r *http.Request) { setLevel(w, r, o.Level) }))
	if o.Models != nil {
		handleModels(mux, o.Models)
	}
	if o.Abuse != nil {
		handleAbuse(mux, o.Abuse)
	}
	if !o.NoProfiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: maxHeaderBytes, Protocols: new(http.Protocols), TLSConfig: o.TLS,
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	s.BaseContext = func(lis net.Listener) context.Context {
		return context.WithValue(context.Background(), nearKey{}, socket.Near(lis.Addr()))
	}
	s.Handler = o.keepPagesOut(o.Access.guard(o.audited(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			g.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})), o.auditRefused()))
	return s, func() { cleanup(); g.Stop() }, nil
}

// Serve answers on lis, through TLS where the server has it.
func Serve(s *http.Server, lis net.Listener) error {
	if s.TLSConfig != nil {
		return s.ServeTLS(lis, "", "")
	}
	return s.Serve(lis)
}

// maxHeaderBytes bounds the headers of a request.
const maxHeaderBytes = 32 << 10

// levelBytes is the longest text of a level, with room for a line's end.
const levelBytes = 16

func setLevel(w http.ResponseWriter, r *http.Request, level *slog.LevelVar) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, levelBytes))
	var l slog.Level
	if err != nil || l.UnmarshalText([]byte(strings.TrimSpace(string(body)))) != nil {
		http.Error(w, "want debug, info, warn or error", http.StatusBadRequest)
		return
	}
	level.Set(l)
	writeLevel(w, level)
}

func writeLevel(w http.ResponseWriter, level *slog.LevelVar) {
	fmt.Fprintln(w, strings.ToLower(level.Level().String()))
}
