package admin

import (
	"net/http"
	"strings"

	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/socket"
)

// auditable says whether a request changes something or shows what metrics do not: profiles, channels of gRPC.
func auditable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return strings.HasPrefix(r.URL.Path, "/debug/")
	}
	return true
}

// actions are the paths that the audit log names, by what they begin with: others are a caller's text.
var actions = []string{
	"/models", "/loglevel", "/debug/pprof", "/abuse", "/subjects", "/grpc.channelz", "/envoy.service", "/grpc.reflection",
}

// action is what a request asks for, in the words of this package.
func action(r *http.Request) string {
	method := r.Method
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete:
	default:
		method = "other"
	}
	for _, a := range actions {
		if strings.HasPrefix(r.URL.Path, a) {
			return method + " " + a
		}
	}
	return method + " other"
}

// maxObject bounds the name of what an action is done to, in bytes.
const maxObject = 256

// event is what is kept of a request.
func event(r *http.Request) audit.Event {
	e := audit.Event{Kind: audit.KindAdmin, Action: action(r), Peer: socket.Host(r.RemoteAddr)}
	e.Credential, _ = r.Context().Value(operatorKey{}).(string)
	if _, name, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); ok && len(name) <= maxObject {
		e.Object = name
	}
	return e
}

// audited keeps each request before it is done, and how it ended. One that cannot be kept is not done.
func (o Options) audited(next http.Handler) http.Handler {
	if o.Audit == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !auditable(r) {
			next.ServeHTTP(w, r)
			return
		}
		before := event(r)
		before.Decision = "allowed"
		if err := o.Audit(&before); err != nil {
			http.Error(w, "the audit log cannot be written: nothing was done", http.StatusServiceUnavailable)
			return
		}
		noted := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			after := event(r)
			after.Decision = http.StatusText(noted.status)
			_ = o.Audit(&after) // the line before says that it was begun
		}()
		next.ServeHTTP(noted, r)
	})
}

// refusedLines and refusedBurst bound the lines that callers make who may ask for nothing: a second, and at once.
const refusedLines, refusedBurst = 5, 50

// auditRefused keeps who was refused.
func (o Options) auditRefused() func(r *http.Request, id string, status int) {
	flood := audit.NewFlood(refusedLines, refusedBurst)
	return func(r *http.Request, id string, status int) {
		if o.Audit == nil {
			return
		}
		e := event(r)
		e.Kind, e.Credential, e.Object, e.Decision = audit.KindCredential, id, "", http.StatusText(status)
		flood.Add(func(n int) {
			e.Count = n
			_ = o.Audit(&e) // the caller is refused anyhow
		})
	}
}

// statusWriter notes the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush is for gRPC, which wants it of a writer itself.
func (w *statusWriter) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }
