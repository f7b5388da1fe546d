package server

import (
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/internal/socket"
	"github.com/mmserve/mmserve/server/web"
	"github.com/mmserve/mmserve/serving"
)

// HTTPOptions say where OpenAI's API is served, and to whom. The zero value serves it nowhere.
type HTTPOptions struct {
	// Listener gets the requests; Serve closes it. nil: there is no HTTP.
	Listener net.Listener
	// TLS is what connections are spoken to with. nil: plaintext.
	TLS *tls.Config
	// Propagator finds the trace that a request belongs to in its headers. nil: there is none.
	Propagator propagation.TextMapPropagator
	// AllowOrigins are the web pages whose scripts may ask, as https://example.com; "*" is any. Default: none.
	AllowOrigins []string
	// Playground serves the page of package web under "/".
	Playground bool
}

const (
	// keepAliveTime is how long a connection may stay without a request.
	keepAliveTime = 2 * time.Minute
	// writeTime is how long a client may take to read an event of a stream, or a piece of an answer.
	writeTime = 30 * time.Second
	// maxHTTPHeader bounds a request line with its headers; net/http adds 4 KiB.
	maxHTTPHeader = 28 << 10
)

// httpServer is the HTTP/1.1 listener. A nil one does nothing.
type httpServer struct {
	*Server
	server   *http.Server
	listener *listener
	mux      *http.ServeMux
	served   chan error // what it ended with
	since    int64      // when it was made, in seconds since 1970
	// files are those of the playground by their paths; nil: there is none.
	files map[string]*web.File
	// local says that anybody on this machine may ask and nobody else can: other names than its own are refused.
	local bool
}

// newHTTPServer is nil where there is no listener.
func (s *Server) newHTTPServer() *httpServer {
	o := s.options.HTTP
	if o.Listener == nil {
		return nil
	}
	h := &httpServer{
		Server: s, served: make(chan error, 1), since: time.Now().Unix(), mux: http.NewServeMux(),
		listener: &listener{
			Listener: o.Listener, inflight: s.inflight, most: s.options.MaxConnections, log: s.options.Logger, http: true,
			ready: func() bool { return true }, // it says 503 while there is no model
		},
	}
	h.local = s.options.Auth == nil && o.TLS == nil && socket.Near(o.Listener.Addr())
	h.routes()
	h.server = &http.Server{
		Handler: h, ReadHeaderTimeout: handshakeTime, IdleTimeout: keepAliveTime, MaxHeaderBytes: maxHTTPHeader,
		ErrorLog: slog.NewLogLogger(s.options.Logger.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, underTLS(conn))
		},
		ConnState: h.connState, Protocols: new(http.Protocols),
		DisableGeneralOptionsHandler: true, // which answers with nothing
	}
	h.server.Protocols.SetHTTP1(true)
	return h
}

type connectionKey struct{}

// underTLS is the connection that the listener accepted.
func underTLS(conn net.Conn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return conn
}

// connState takes note of a connection's first request.
func (h *httpServer) connState(conn net.Conn, state http.ConnState) {
	if c, ok := underTLS(conn).(*connection); ok && state == http.StateActive {
		h.inflight.mu.Lock()
		c.asked = true
		h.inflight.mu.Unlock()
	}
}

// unreadTime is how long a drain leaves connections that asked nothing: a request may be on its way. nginx cannot give
// one that it has sent to another server.
const unreadTime = 200 * time.Millisecond

// start serves; what comes of the channel ended it.
func (h *httpServer) start() <-chan error {
	if h == nil {
		return nil
	}
	var lis net.Listener = h.listener
	if t := h.options.HTTP.TLS; t != nil {
		lis = tls.NewListener(lis, t)
	}
	ended := make(chan error, 1)
	go func() {
		err := h.server.Serve(lis)
		h.served <- err
		if !errors.Is(err, http.ErrServerClosed) {
			ended <- err
		}
	}()
	return ended
}

// drain closes the listener and the idle connections; the channel is closed once the last request is over.
func (h *httpServer) drain() <-chan struct{} {
	done := make(chan struct{})
	if h == nil {
		close(done)
		return done
	}
	time.AfterFunc(unreadTime, h.listener.closeMute)
	go func() {
		defer close(done)
		_ = h.server.Shutdown(context.Background()) // of the listener, which may be closed already
	}()
	return done
}

// close cuts what is left.
func (h *httpServer) close() {
	if h != nil {
		_ = h.server.Close()
		_ = h.listener.Close()
	}
}

// wait returns once nothing accepts.
func (h *httpServer) wait() {
	if h != nil {
		<-h.served
	}
}

// exchange is one request with its answer. One goroutine has it.
type exchange struct {
	*httpServer
	w  http.ResponseWriter
	r  *http.Request
	rc *http.ResponseController
	id string // x-request-id
	// input is what the field of the prompt is called, "messages" where it is empty; constraint that of what the answer
	// is held to.
	input, constraint string
	limit             string   // that of the most tokens, "max_tokens" where it is empty
	named             []uint32 // the request's stop tokens
	// began says that the answer has: there is no other status any more; streams that it is a stream of events.
	began, streams bool
	spent          bool // nothing can be read of the body any more
	admitted       bool // a handler has the request
	// last, unless nil, ends a stream that breaks; nil: as chat completions do.
	last func(*httpError)
}

// handler answers a request; an error of it is the answer, unless that has begun.
type handler func(*exchange) error

// ServeHTTP answers every request.
func (h *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{httpServer: h, w: w, r: r, rc: http.NewResponseController(w), id: requestID(r)}
	defer func() {
		if p := recover(); p != nil {
			h.options.Logger.LogAttrs(context.Background(), slog.LevelError, "panic", slog.String("path", x.r.Pattern),
				slog.String("error", serving.DescribePanic(p)), slog.String("stack", string(debug.Stack())))
			x.fail(errBroken())
		}
	}()
	// Of what a handler does not read of the body, and of what net/http writes itself. Handlers set their own.
	_ = x.rc.SetReadDeadline(time.Now().Add(h.options.ReceiveTimeout))
	_ = x.rc.SetWriteDeadline(time.Now().Add(writeTime))
	w.Header().Set("X-Request-Id", x.id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := x.admit(); err != nil {
		_ = x.rc.SetReadDeadline(time.Now().Add(strangerTime)) // of what net/http reads of the body
		x.fail(err)
		return
	}
	x.admitted = true
	if x.asksFirst() {
		x.preflight()
		return
	}
	if !cleanPath(x.r.URL.EscapedPath()) {
		x.fail(errUnknownPath())
		return
	}
	h.mux.ServeHTTP(w, x.r.WithContext(context.WithValue(x.r.Context(), exchangeKey{}, x)))
}

// cleanPath says that a path has no dots and no double slashes: net/http answers others itself, with HTML.
func cleanPath(p string) bool {
	short := strings.TrimSuffix(p, "/")
	return p == "/" || short != "/" && short == path.Clean("/"+short)
}

type exchangeKey struct{}

// admit refuses what no handler has to see.
func (x *exchange) admit() (err error) {
	if err := x.checkHost(); err != nil {
		return err
	}
	if err := x.checkOrigin(); err != nil {
		return err
	}
	if x.stopping.Load() {
		x.w.Header().Set("Connection", "close")
		return serving.Stopping()
	}
	if x.aged() {
		x.w.Header().Set("Connection", "close")
	}
	if x.asksFirst() { // browsers send no credentials then
		return nil
	}
	if x.files[x.r.URL.Path] != nil { // nor do they with a page, which tells nothing
		return nil
	}
	if p := x.options.HTTP.Propagator; p != nil {
		x.r = x.r.WithContext(p.Extract(x.r.Context(), propagation.HeaderCarrier(x.r.Header)))
	}
	if x.r, err = x.identifyHTTP(x.r); err != nil && x.r.ContentLength != 0 {
		x.w.Header().Set("Connection", "close") // net/http would wait for the body
	}
	return err
}

// aged says that the connection is older than connections get, give or take a tenth: its client makes another, maybe to
// another server.
func (x *exchange) aged() bool {
	conn, _ := x.r.Context().Value(connectionKey{}).(*connection)
	most := x.options.MaxConnectionAge
	return most > 0 && conn != nil && float64(time.Since(conn.born)) > float64(most)*(0.9+rand.Float64()/5)
}

// checkHost refuses foreign names where no credential and no certificate tells who asks whom: a page's own name may
// have been made to resolve to this machine, and its reader's browser then takes the two for one site. Names of pages
// that are allowed count, those of a proxy for instance.
func (x *exchange) checkHost() error {
	if !x.local || socket.OwnHost(x.r.Host) {
		return nil
	}
	name := socket.HostName(x.r.Host)
	if slices.ContainsFunc(x.options.HTTP.AllowOrigins, func(allowed string) bool {
		_, host, _ := strings.Cut(allowed, "://")
		return allowed == "*" || socket.HostName(host) == name
	}) {
		return nil
	}
	return errHost()
}

// checkOrigin refuses scripts of web pages that are not allowed: a page could ask a server that only its reader
// reaches.
func (x *exchange) checkOrigin() error {
	origin := x.r.Header.Get("Origin")
	if origin == "" {
		return nil
	}
	x.w.Header().Add("Vary", "Origin")
	allowed := x.options.HTTP.AllowOrigins
	if x.ownPage(origin) {
		return nil
	}
	if !slices.Contains(allowed, origin) && !slices.Contains(allowed, "*") {
		return errOrigin()
	}
	x.w.Header().Set("Access-Control-Allow-Origin", origin)
	x.w.Header().Set("Access-Control-Expose-Headers", "X-Request-Id, Retry-After, Retry-After-Ms, "+ignoredHeader)
	return nil
}

// asksFirst says that a browser asks what a page may send.
func (x *exchange) asksFirst() bool {
	return x.r.Method == http.MethodOptions && x.r.Header.Get("Access-Control-Request-Method") != ""
}

// preflight tells a browser what an allowed page may send.
func (x *exchange) preflight() {
	h := x.w.Header()
	h.Set("Access-Control-Allow-Methods", "GET, POST")
	h.Set("Access-Control-Allow-Headers", "Authorization, Api-Key, X-Api-Key, Content-Type, X-Request-Id, "+
		"OpenAI-Beta, OpenAI-Organization, OpenAI-Project"+sdkHeaders(x.r.Header.Get("Access-Control-Request-Headers")))
	h.Set("Access-Control-Max-Age", "600")
	x.w.WriteHeader(http.StatusNoContent)
}

// maxSDKHeaders bounds the headers of SDKs that a preflight allows, and maxSDKHeader each of their names.
const maxSDKHeaders, maxSDKHeader = 32, 64

// sdkHeaders are those of the headers asked for that OpenAI's SDKs describe themselves in, each after a comma: every
// release may have others, and nothing here reads them.
func sdkHeaders(asked string) (list string) {
	left := maxSDKHeaders
	for name := range strings.SplitSeq(asked, ",") {
		name = strings.ToLower(strings.TrimSpace(name))
		if left == 0 || len(name) > maxSDKHeader || !strings.HasPrefix(name, "x-stainless-") ||
			strings.ContainsFunc(name, notInToken) {
			continue
		}
		list += ", " + name
		left--
	}
	return list
}

// notInToken says that a header's name, in small letters, may not have c.
func notInToken(c rune) bool {
	return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
}

// requestID is the caller's name for the request, or a new one.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); id != "" && serving.ValidID(id) {
		return id
	}
	return "req_" + crand.Text()
}

// endpoints are the paths of routes, in words.
const endpoints = "/v1/chat/completions, /v1/completions, /v1/responses, /v1/models, /tokenize, /health, " +
	"and of Ollama's /api/chat, /api/tags and /api/version"

// routes are the API, all of it.
func (h *httpServer) routes() {
	h.handle(http.MethodPost, "/v1/chat/completions", (*exchange).chatCompletions)
	h.handle(http.MethodPost, "/v1/completions", (*exchange).textCompletions)
	h.handle(http.MethodPost, "/v1/responses", (*exchange).responses)
	h.handle(http.MethodPost, "/tokenize", (*exchange).tokenize)
	h.handle(http.MethodGet, "/v1/models", (*exchange).listModels)
	h.handle(http.MethodGet, "/v1/models/{model...}", (*exchange).getModel)
	h.handle(http.MethodGet, "/health", (*exchange).health)
	h.ollamaRoutes()
	h.webRoutes()
	h.handle("", "/", func(*exchange) error { return errUnknownPath() })
}

// handle has requests for a path handled; method is the one that it wants, "" is any.
func (h *httpServer) handle(method, path string, do handler) {
	h.mux.HandleFunc(path, func(_ http.ResponseWriter, r *http.Request) {
		x := r.Context().Value(exchangeKey{}).(*exchange)
		x.r = r
		if err := x.route(method, do); err != nil {
			x.fail(err)
		}
	})
}

// route has a request of the method handled. GET is HEAD, too.
func (x *exchange) route(method string, handle handler) error {
	got := x.r.Method
	if got == http.MethodHead {
		got = http.MethodGet
	}
	if method != "" && got != method {
		x.w.Header().Set("Allow", method)
		return errMethod(method)
	}
	return handle(x)
}

// health says whether requests are taken.
func (x *exchange) health() error {
	if err := x.Ready(); err != nil {
		return &serving.Error{Kind: serving.Unavailable, Message: err.Error()}
	}
	return x.write(struct {
		Status string `json:"status"`
	}{"ok"})
}

// ignoredHeader names the fields of a body that nothing read.
const ignoredHeader = "X-Mmserve-Ignored-Fields"

// tellIgnored names fields in a header, those that are printable.
func (x *exchange) tellIgnored(r *openai.Request) {
	list := ""
	for _, name := range r.Ignored {
		if !serving.ValidID(name) || len(list)+len(name) > maxIgnored {
			continue
		}
		if list != "" {
			list += ", "
		}
		list += name
	}
	if list != "" {
		x.w.Header().Set(ignoredHeader, list)
	}
}

// maxIgnored bounds that header, in bytes.
const maxIgnored = 512
