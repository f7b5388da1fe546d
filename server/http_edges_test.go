package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// asked is the exchange of a request with headers, names and values in turn.
func asked(o Options, headers ...string) (*exchange, *httptest.ResponseRecorder) {
	r, w := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", nil), httptest.NewRecorder()
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	h := &httpServer{Server: Loading(o)}
	return &exchange{httpServer: h, w: w, r: r, rc: http.NewResponseController(w)}, w
}

// Paths that net/http would redirect with HTML are none.
func TestCleanPath(t *testing.T) {
	for p, clean := range map[string]bool{
		"/": true, "/a": true, "/a/": true, "/a/b": true, "/a..b": true,
		"": false, "//": false, "/a//": false, "//a": false, "/a/../b": false, "/.": false, "/a/./b": false, "a": false,
	} {
		if got := cleanPath(p); got != clean {
			t.Errorf("%q is clean: %t", p, got)
		}
	}
}

// Of the headers that a page asks for those of SDKs are allowed, so many, of so many letters, if they are headers.
func TestSDKHeaders(t *testing.T) {
	const prefix = "x-stainless-"
	name := func(n int) string { return prefix + strings.Repeat("x", n-len(prefix)) }
	for asked, want := range map[string]string{
		"":                               "",
		"authorization, X-Stainless-Os ": ", x-stainless-os",
		"x-stainless":                    "",
		prefix:                           ", " + prefix,
		"y" + prefix + "a":               "",
		name(64) + "," + name(65):        ", " + name(64),
		prefix + "az09!#$%&'*+-.^_`|~":   ", " + prefix + "az09!#$%&'*+-.^_`|~",
		prefix + "a b":                   "", prefix + "{": "", prefix + "/": "", prefix + ":": "", prefix + "é": "",
		prefix + "a\x00": "", prefix + "@": "",
	} {
		if got := sdkHeaders(asked); got != want {
			t.Errorf("of %q are allowed %q, want %q", asked, got, want)
		}
	}
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprint(prefix, i))
	}
	if got := strings.Count(sdkHeaders(strings.Join(many, ",")), prefix); got != 32 {
		t.Errorf("of 40 headers %d are allowed, want 32", got)
	}
}

// The rest of a body is read after an answer where net/http would not read it and there is not too much of it.
func TestLingers(t *testing.T) {
	for _, c := range []struct {
		name                   string
		length                 int64
		spent, closes, expects bool
		want                   bool
	}{
		{"nothing", 0, false, false, false, false}, {"nothing, and it closes", 0, false, true, false, false},
		{"what net/http reads", consumed, false, false, false, false},
		{"a byte more", consumed + 1, false, false, false, true},
		{"a byte, and it closes", 1, false, true, false, true},
		{"chunks", -1, false, false, false, true},
		{"the most", lingerBytes, false, false, false, true},
		{"more than that", lingerBytes + 1, false, false, false, false},
		{"read already", consumed + 1, true, true, false, false},
		{"not sent yet", consumed + 1, false, true, true, false},
	} {
		x, w := asked(Options{})
		x.r.ContentLength, x.spent = c.length, c.spent
		if c.closes {
			w.Header().Set("Connection", "close")
		}
		if c.expects {
			x.r.Header.Set("Expect", "100-continue")
		}
		if got := x.lingers(); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

// A connection is old from nine to eleven tenths of its most on, at random between them.
func TestAged(t *testing.T) {
	const most = 1000 * time.Hour
	aged := func(most, age time.Duration) bool {
		x, _ := asked(Options{MaxConnectionAge: most})
		x.r = x.r.WithContext(context.WithValue(x.r.Context(), connectionKey{}, &connection{born: time.Now().Add(-age)}))
		return x.aged()
	}
	count := 0
	for range 400 {
		if aged(most, most*89/100) || !aged(most, most*111/100) || aged(0, most) {
			t.Fatal("a connection is old too early, or late")
		}
		if aged(most, most) {
			count++
		}
	}
	if count < 100 || count > 300 {
		t.Errorf("%d of 400 connections of the age itself are old, want about half", count)
	}
	if x, _ := asked(Options{MaxConnectionAge: 1}); x.aged() {
		t.Error("a connection that is not known is old")
	}
}

// Fields that nothing read are named as long as there is room, those with names that a header takes.
func TestTellIgnored(t *testing.T) {
	n := func(n int) string { return strings.Repeat("n", n) }
	for _, c := range []struct {
		names []string
		want  string
	}{
		{nil, ""}, {[]string{"a"}, "a"}, {[]string{"a", "b c", "d"}, "a, d"}, {[]string{"é"}, ""},
		{[]string{n(128), n(128), n(128), n(124), "z"}, n(128) + ", " + n(128) + ", " + n(128) + ", " + n(124)},
		{[]string{n(128), n(128), n(128), n(125), "z"}, n(128) + ", " + n(128) + ", " + n(128) + ", z"},
	} {
		x, w := asked(Options{})
		x.tellIgnored(&openai.Request{Ignored: c.names})
		if got, ok := w.Header()[ignoredHeader]; ok != (c.want != "") || ok && got[0] != c.want {
			t.Errorf("of %d names: %q, want %q", len(c.names), got, c.want)
		}
	}
}

// A header is refused alone: what is compressed, no JSON, or larger than a message or than the budget can be.
func TestCheckBody(t *testing.T) {
	o := Options{MaxMessageBytes: 1000, MaxInflightBytes: 2000 + streamCost}
	for _, c := range []struct {
		headers []string
		length  int64
		path    string
		status  int
	}{
		{[]string{"Content-Type", "application/json"}, 1000, "/v1/chat/completions", 0},
		{[]string{"Content-Type", "application/json; charset=utf-8", "Content-Encoding", "identity"}, -1, "/v1/x", 0},
		{[]string{"Content-Type", "application/json"}, 1001, "/v1/chat/completions", http.StatusRequestEntityTooLarge},
		{[]string{"Content-Type", "application/json", "Content-Encoding", "gzip"}, 1, "/v1/x",
			http.StatusUnsupportedMediaType},
		{[]string{"Content-Type", "text/plain"}, 1, "/v1/x", http.StatusUnsupportedMediaType},
		{nil, 1, "/v1/x", http.StatusUnsupportedMediaType}, {nil, 1, "/api/chat", 0},
	} {
		x, _ := asked(o, c.headers...)
		x.r.ContentLength, x.r.URL.Path = c.length, c.path
		var e *httpError
		if err := x.checkBody(); errors.As(err, &e) != (c.status != 0) || e != nil && e.status != c.status {
			t.Errorf("%v, %d bytes: %v, want %d", c.headers, c.length, err, c.status)
		}
	}
	o.MaxInflightBytes = 500 + streamCost
	x, _ := asked(o, "Content-Type", "application/json")
	if x.r.ContentLength = 500; x.checkBody() != nil {
		t.Error("a body as large as the budget is refused")
	}
	if x.r.ContentLength = 501; x.checkBody() == nil {
		t.Error("a body larger than the budget is read")
	}
}

// What a method or a path needs: health nothing, unless it is to want a credential; what is not listed a user.
func TestNeededRoles(t *testing.T) {
	open, closed := Loading(Options{}), Loading(Options{AuthHealth: true})
	for path, roles := range map[string][2]auth.Role{
		"/health": {noRole, auth.ReadOnly}, "/health/x": {auth.User, auth.User}, "/healthz": {auth.User, auth.User},
		"/v1/models": {auth.ReadOnly, auth.ReadOnly}, "/v1/models/a": {auth.ReadOnly, auth.ReadOnly},
		"/web/server.json": {auth.ReadOnly, auth.ReadOnly}, "/web/engine": {auth.Admin, auth.Admin},
		"/v1/modelsx": {auth.User, auth.User}, "/v1/completions": {auth.User, auth.User},
		"/api/tags": {auth.ReadOnly, auth.ReadOnly}, "/api/chat": {auth.User, auth.User},
	} {
		if got := [2]auth.Role{open.roleOfPath(path), closed.roleOfPath(path)}; got != roles {
			t.Errorf("%s needs %v, want %v", path, got, roles)
		}
	}
	for method, roles := range map[string][2]auth.Role{
		"/grpc.health.v1.Health/Check":               {noRole, auth.ReadOnly},
		"/mmserve.v1.ModelService/ListModels":        {auth.ReadOnly, auth.ReadOnly},
		"/mmserve.v1.MMServe/GetServerInfo":          {auth.ReadOnly, auth.ReadOnly},
		"/mmserve.v1.MMServe/Generate":               {auth.User, auth.User},
		"/inference.GRPCInferenceService/ServerLive": {noRole, auth.ReadOnly}, "/x/y": {auth.User, auth.User},
	} {
		if got := [2]auth.Role{open.roleOf(method), closed.roleOf(method)}; got != roles {
			t.Errorf("%s needs %v, want %v", method, got, roles)
		}
	}
}

// Refused callers are logged once in a while, with how many there were.
func TestRefusalsAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logtest.Buffer
		var r refusals
		logger := slog.New(slog.NewTextHandler(&log, nil))
		lines := func(n int, last string) {
			t.Helper()
			if got := log.String(); strings.Count(got, "\n") != n || !strings.Contains(got, last) {
				t.Errorf("the log has\n%s\nwant %d lines, the last with %q", got, n, last)
			}
		}
		r.add(logger, "a", errors.New("x"))
		lines(1, "count=1 last_peer=a last_error=x")
		for range 3 {
			r.add(logger, "b", errors.New("y"))
		}
		time.Sleep(refusalsEvery - 1)
		r.add(logger, "c", errors.New("y"))
		lines(1, "")
		time.Sleep(time.Nanosecond)
		r.add(logger, "d", errors.New("z"))
		lines(2, "count=5 last_peer=d last_error=z")
	})
}

// An error goes out by its kind, and says when to come again in whole seconds and in milliseconds.
func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		after       time.Duration
		status      int
		seconds, ms string
	}{
		{0, http.StatusRequestEntityTooLarge, "", ""}, {1, http.StatusTooManyRequests, "1", "1"},
		{time.Second, http.StatusTooManyRequests, "1", "1000"},
		{1001 * time.Millisecond, http.StatusTooManyRequests, "2", "1001"},
	} {
		x, w := asked(Options{})
		x.fail(&serving.Error{Kind: serving.Exhausted, Message: "later", RetryAfter: c.after})
		h := w.Header()
		if w.Code != c.status || h.Get("Retry-After") != c.seconds || h.Get("Retry-After-Ms") != c.ms {
			t.Errorf("after %v: %d, %q and %q ms", c.after, w.Code, h.Get("Retry-After"), h.Get("Retry-After-Ms"))
		}
	}
	x, w := asked(Options{})
	if x.fail(&serving.Error{Kind: serving.Unauthenticated, Message: "who"}); w.Code != http.StatusUnauthorized ||
		!strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Bearer ") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	x.fail(errors.New("again")) // the answer has begun
	if strings.Count(w.Body.String(), `"error"`) != 1 {
		t.Errorf("two answers: %s", w.Body)
	}
	for status, kind := range map[int]serving.Kind{
		statusClientGone: serving.Canceled, http.StatusRequestTimeout: serving.DeadlineExceeded,
		http.StatusRequestEntityTooLarge: serving.Exhausted, http.StatusTooManyRequests: serving.Exhausted,
		http.StatusInternalServerError: serving.Internal, http.StatusUnsupportedMediaType: serving.Invalid,
	} {
		if got := refusalKind(status); got != kind {
			t.Errorf("%d is %v, want %v", status, got, kind)
		}
	}
	for status, want := range map[int]string{
		429: openai.RateLimit, 428: openai.InvalidRequest, 400: openai.InvalidRequest, 499: openai.InvalidRequest,
		500: openai.ServerError, 503: openai.ServerError,
	} {
		if got := errorType(status); got != want {
			t.Errorf("%d is %s, want %s", status, got, want)
		}
	}
}
