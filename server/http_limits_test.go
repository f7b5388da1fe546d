package server_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"golang.org/x/sync/errgroup"

	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/server"
)

// raw sends bytes on a connection of its own and reads one response; a nil one with an error that says
// why there is none.
func (f *webFixture) raw(t *testing.T, text string) (*http.Response, error) {
	t.Helper()
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	go io.WriteString(conn, text)
	return http.ReadResponse(bufio.NewReader(conn), nil)
}

// rawChat is a request for a chat, with headers of one's own.
func rawChat(headers, body string) string {
	return "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n" + body
}

const plainChat = `{"messages":[{"role":"user","content":"hi"}]}`

// stillServes holds that the server answers others.
func (f *webFixture) stillServes(t *testing.T) {
	t.Helper()
	if resp := f.post(t, "/v1/chat/completions", plainChat); resp.StatusCode != 200 {
		t.Errorf("afterwards: %d %s", resp.StatusCode, read(t, resp))
	} else {
		read(t, resp)
	}
}

// TestHTTPHostile holds that what is malformed is refused by its name, and the server goes on.
func TestHTTPHostile(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{MaxMessageBytes: 1 << 20, ReceiveTimeout: 300 * time.Millisecond})
	json := "Content-Type: application/json\r\n"
	sized := func(body string) string { return rawChat(json+"Content-Length: "+strconv.Itoa(len(body))+"\r\n", body) }
	var zipped strings.Builder
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(make([]byte, racetest.Part(100<<20)))
	z.Close()
	big := `{"messages":[{"role":"user","content":"` + strings.Repeat("a", 1<<20) + `"}]}`
	for _, c := range []struct {
		name, text string
		status     int
		says       string
	}{
		{"gzip bomb",
			rawChat(json+"Content-Encoding: gzip\r\nContent-Length: "+strconv.Itoa(zipped.Len())+"\r\n", zipped.String()),
			415, "compressed"},
		{"no type", rawChat("Content-Length: "+strconv.Itoa(len(plainChat))+"\r\n", plainChat), 415, "application/json"},
		{"form", rawChat("Content-Type: text/plain\r\nContent-Length: "+strconv.Itoa(len(plainChat))+"\r\n", plainChat), 415, "application/json"},
		{"too long", rawChat(json+"Content-Length: 99999999\r\n", "{"), 413, "1048576"},
		{"too long, asks first", rawChat(json+"Content-Length: 99999999\r\nExpect: 100-continue\r\n", ""), 413, "1048576"},
		{"chunks too long", rawChat(json+"Transfer-Encoding: chunked\r\n",
			strings.Repeat("10000\r\n"+strings.Repeat("a", 1<<16)+"\r\n", 32)), 413, "1048576"},
		{"a byte too long", sized(big), 413, "1048576"},
		{"broken chunk", rawChat(json+"Transfer-Encoding: chunked\r\n", "zz\r\n"), 400, "broke off"},
		{"slow body", rawChat(json+"Content-Length: 100\r\n", "{"), 408, "300ms"},
		{"slow chunks", rawChat(json+"Transfer-Encoding: chunked\r\n", "1\r\n{\r\n"), 408, "300ms"},
		{"empty", sized(""), 400, "JSON"},
		{"deep", sized(`{"a":` + strings.Repeat("[", 400000)), 400, "levels"},
		{"many", sized(`{"a":[` + strings.Repeat("1,", 400000)), 400, "values"},
		{"twice", sized(`{"messages":[],"messages":[]}`), 400, "twice"},
		{"not UTF-8", sized("{\"a\":\"\xc3\x28\"}"), 400, "UTF-8"},
		{"huge number", sized(`{"messages":[{"role":"user","content":"a"}],"max_tokens":1` + strings.Repeat("0", 400000) + "}"), 400, "max_tokens"},
		{"surrogate", sized(`{"messages":[{"role":"user","content":"\ud800"}],"temperature":9}`), 400, "temperature"},
		{"header flood", rawChat(json+strings.Repeat("X-A: "+strings.Repeat("b", 100)+"\r\n", 2000), ""), 431, ""},
		{"long line", "GET /" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\n\r\n", 431, ""},
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, "no such endpoint"},
		{"two lengths", rawChat(json+"Content-Length: 1\r\nContent-Length: 2\r\n", "{}"), 400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			resp, err := f.raw(t, c.text)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status {
				t.Errorf("status %d, want %d", resp.StatusCode, c.status)
			}
			if c.says != "" {
				param := ""
				if c.says == "max_tokens" || c.says == "temperature" {
					param = c.says
				}
				if message := wantError(t, resp, c.status, param); !strings.Contains(message, c.says) {
					t.Errorf("it says %q, nothing of %s", message, c.says)
				}
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	f.stillServes(t)
}

// TestHTTPPaths holds that paths that net/http would answer itself are answered as all that are not known.
func TestHTTPPaths(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for name, text := range map[string]string{
		"path up":                       "GET /v1/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"two slashes":                   "GET //v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"two slashes inside":            "POST /v1//responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
		"a dot":                         "GET /v1/./models HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"a slash at the end":            "GET /v1/chat/completions/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"no path":                       "GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"a proxy's request":             "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n",
		"a proxy's request with a path": "CONNECT /v1//models HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"all of the server":             "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"two slashes alone":             "GET // HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := f.raw(t, text)
			if err != nil {
				t.Fatal(err)
			}
			if says := wantError(t, resp, 404, ""); !strings.Contains(says, "no such endpoint") {
				t.Errorf("it says %q", says)
			}
		})
	}
}

// TestHTTPContinue holds that a client that asks before it sends its body is told to.
func TestHTTPContinue(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	resp := f.post(t, "/v1/chat/completions", plainChat, "Expect", "100-continue")
	if b := read(t, resp); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

// TestHTTPOverload holds that clients are told when to come again.
func TestHTTPOverload(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	release := holdAll(t, &fixture{engine: f.engine})
	for _, more := range []string{"", `,"stream":true`} {
		resp := f.post(t, "/v1/chat/completions", chatBody(more))
		seconds, err1 := strconv.Atoi(resp.Header.Get("Retry-After"))
		ms, err2 := strconv.Atoi(resp.Header.Get("Retry-After-Ms"))
		if err := errors.Join(err1, err2); err != nil || seconds < 1 || ms < 1 || ms > 1000*seconds {
			t.Errorf("headers %v", resp.Header)
		}
		wantError(t, resp, 429, "")
	}
	release()
	f.stillServes(t)
}

// TestHTTPEarlyAnswer holds that a client that is refused before its large body is read can read why, and when to come
// again.
func TestHTTPEarlyAnswer(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	defer holdAll(t, &fixture{engine: f.engine})()
	for _, header := range []string{"Content-Length: 6000000\r\n", "Transfer-Encoding: chunked\r\n"} {
		conn, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		piece := strings.Repeat("a", 60000)
		if strings.Contains(header, "chunked") {
			piece = fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
		}
		if _, err = io.WriteString(conn, rawChat("Content-Type: application/json\r\n"+header, "")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the refusal", func() bool { return strings.Contains(f.log.String(), "code=ResourceExhausted") })
		for i := range 100 {
			if _, err := io.WriteString(conn, piece); err != nil {
				t.Fatalf("piece %d: %v", i, err)
			}
		}
		if strings.Contains(header, "chunked") {
			_, _ = io.WriteString(conn, "0\r\n\r\n")
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.Get("Retry-After-Ms") == "" || !resp.Close {
			t.Errorf("headers %v", resp.Header)
		}
		wantError(t, resp, 429, "")
	}
}

// TestHTTPBudget holds that bodies share the byte budget: of those on their way the largest is refused.
func TestHTTPBudget(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{MaxMessageBytes: 8 << 20, MaxInflightBytes: 16 << 20})
	type answer struct {
		resp *http.Response
		err  error
	}
	answers := make(chan answer, 3)
	most := strings.Repeat("a", 5<<20)
	for i := range 3 { // each promises more than the one before, and sends more than half of it
		conn, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		head := fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", 8<<20-3+i)
		go io.WriteString(conn, rawChat(head, most))
		go func() {
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			answers <- answer{resp, err}
		}()
	}
	a := <-answers
	if a.err != nil {
		t.Fatal(a.err)
	}
	if a.resp.Header.Get("Retry-After-Ms") == "" {
		t.Errorf("headers %v", a.resp.Header)
	}
	wantError(t, a.resp, 429, "")
	f.stillServes(t)
}

// TestHTTPPromises holds that bodies that were only promised take nothing of the byte budget, unless one is larger than
// all of it.
func TestHTTPPromises(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{MaxMessageBytes: 8 << 20, MaxInflightBytes: 16 << 20})
	for range 16 {
		conn, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n",
			"Content-Type: application/json\r\nContent-Length: 1020000\r\n\r\n")
	}
	eventually(t, "all are being received", func() bool { return f.server.Open() == 16 })
	image := strings.Repeat("AAAA", 1<<19)
	resp := f.post(t, "/tokenize", `{"messages":[{"role":"user","content":"hi"}],"x":"`+image+`"}`)
	if b := read(t, resp); resp.StatusCode != 200 {
		t.Errorf("an honest body of 2 MiB: %d %s", resp.StatusCode, b)
	}
	resp = f.post(t, "/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"x":"`+image+`"}`)
	if b := read(t, resp); resp.StatusCode != 200 {
		t.Errorf("an honest chat of 2 MiB: %d %s", resp.StatusCode, b)
	}
	f, _ = tinyHTTP(t, server.Options{MaxMessageBytes: 8 << 20, MaxInflightBytes: 4 << 20})
	resp, err := f.raw(t, rawChat("Content-Type: application/json\r\nContent-Length: 5000000\r\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, resp, 413, "")
}

// TestHTTPClientGone holds that a client that leaves has its request dropped at once, streaming or not.
func TestHTTPClientGone(t *testing.T) {
	m, runner := tinyVLM(t), endless(1)
	runner.step = make(chan struct{}, 1)
	f := startHTTP(t, &m, runner, server.Options{})
	for _, stream := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "POST", f.url+"/v1/chat/completions",
			strings.NewReader(chatBody(fmt.Sprintf(`,"max_tokens":400,"stream":%v`, stream))))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		done := make(chan error, 1)
		go func() {
			resp, err := f.client.Do(r)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			done <- err
		}()
		runner.step <- struct{}{}
		eventually(t, "the request runs", func() bool { return f.engine.Stats().Running == 1 })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		eventually(t, "nothing runs", func() bool {
			select { // the engine looks between steps
			case runner.step <- struct{}{}:
			default:
			}
			return f.engine.Stats().Running == 0
		})
	}
	eventually(t, "two cancelled requests in the log", func() bool { return strings.Count(f.log.String(), "code=Canceled") == 2 })
	close(runner.step)
}

// TestHTTPDrain holds that a running answer is finished, that new requests go elsewhere, and that keep-alive ends.
func TestHTTPDrain(t *testing.T) {
	g, m := readGolden(t), tinyVLM(t)
	runner := newChain(2, g.GeneratedIDs...)
	runner.step = make(chan struct{}, 100)
	f := startHTTP(t, &m, runner, server.Options{Grace: time.Hour})
	idle, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	runner.step <- struct{}{} // the prefill, and no more
	resp := f.post(t, "/v1/chat/completions", chatBody(`,"stream":true`))
	f.stop()
	eventually(t, "new connections are refused", func() bool {
		conn, err := net.Dial("tcp", f.addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	close(runner.step)
	text := read(t, resp)
	if !strings.HasSuffix(string(text), "data: [DONE]\n\n") {
		t.Errorf("the running answer ends with %.200q", text[max(0, len(text)-200):])
	}
	if err := <-f.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestHTTPDrainRefuses holds what a request gets that comes on an open connection while the server stops.
func TestHTTPDrainRefuses(t *testing.T) {
	m, runner := tinyVLM(t), endless(2)
	runner.step = make(chan struct{}, 3)
	for range cap(runner.step) { // the prompt and some text: the headers come with that
		runner.step <- struct{}{}
	}
	f := startHTTP(t, &m, runner, server.Options{Grace: time.Hour})
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := bufio.NewReader(conn)
	running := f.post(t, "/v1/chat/completions", chatBody(`,"stream":true,"max_tokens":400`))
	// The first request of the connection is on its way while the server begins to stop.
	fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", len(plainChat))
	eventually(t, "the request has begun", func() bool { return f.server.Open() == 2 })
	f.stop()
	eventually(t, "the server stops", func() bool { return f.server.Ready() != nil })
	head := fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(plainChat))
	if _, err := io.WriteString(conn, plainChat[1:]+rawChat(head, plainChat)); err != nil {
		t.Fatal(err)
	}
	close(runner.step)
	resp, err := http.ReadResponse(body, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b := read(t, resp); resp.StatusCode != 200 && resp.StatusCode != 503 {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	if !resp.Close {
		t.Error("the connection stays open")
	}
	read(t, running)
	if err := <-f.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestHTTPDrainCuts holds that a stream that is cut says so before it ends.
func TestHTTPDrainCuts(t *testing.T) {
	t.Parallel() // it waits
	m, runner := tinyVLM(t), endless(1)
	runner.step = make(chan struct{}, 100)
	f := startHTTP(t, &m, runner, server.Options{Grace: 50 * time.Millisecond})
	runner.step <- struct{}{}
	resp := f.post(t, "/v1/chat/completions", chatBody(`,"stream":true`))
	f.stop()
	list := events(t, resp)
	if last := list[len(list)-1]; !strings.Contains(last, `{"error":{"message":"the server is shutting down","type":"server_error","param":null,"code":"service_unavailable"}}`) {
		t.Errorf("the cut stream ends with %s", last)
	}
	var cut *server.CutError
	if err := <-f.served; !errors.As(err, &cut) || cut.Requests != 1 {
		t.Errorf("Serve: %v, want one request cut", err)
	}
	close(runner.step)
}

// slowTrace is a propagator that takes its time over a request's headers.
type slowTrace struct {
	propagation.TextMapPropagator
	began, end chan struct{}
}

func (s slowTrace) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context {
	close(s.began)
	<-s.end
	return ctx
}

// TestHTTPStopFirst holds that a stop has the first request of a connection answered, which no handler has yet, and
// does not wait for connections that ask nothing.
func TestHTTPStopFirst(t *testing.T) {
	slow := slowTrace{began: make(chan struct{}), end: make(chan struct{})}
	f, _ := tinyHTTP(t, server.Options{HTTP: server.HTTPOptions{Propagator: slow}})
	silent, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	answered := make(chan *http.Response, 1)
	go func() {
		defer close(answered)
		if resp, err := f.raw(t, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"); err == nil {
			answered <- resp
		}
	}()
	<-slow.began
	f.stop()
	_ = silent.SetReadDeadline(time.Now().Add(4 * time.Second)) // net/http closes it after 5 s
	if _, err := silent.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the silent connection: %v", err)
	}
	time.Sleep(50 * time.Millisecond) // what else it closes is closed by then
	close(slow.end)
	if resp := <-answered; resp == nil || resp.StatusCode != 200 {
		t.Errorf("the first request is answered with %v", resp)
	}
	if err := <-f.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestHTTPSlowReader holds that a client that does not read its stream keeps nobody else waiting.
func TestHTTPSlowReader(t *testing.T) {
	m := tinyVLM(t)
	f := startHTTP(t, &m, endless(1), server.Options{})
	for range 4 {
		conn, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetReadBuffer(1)
		body := chatBody(`,"stream":true,"max_tokens":400,"n":2`)
		fmt.Fprint(conn, rawChat(fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body)), body))
	}
	f.stillServes(t)
}

// TestHTTPOrigins holds that pages that are not allowed may not ask, and what the others are told.
func TestHTTPOrigins(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{HTTP: server.HTTPOptions{AllowOrigins: []string{"https://ok.example"}}})
	for _, method := range []string{"POST", "OPTIONS"} {
		header := []string{"Origin", "https://bad.example", "Access-Control-Request-Method", "POST"}
		wantError(t, f.do(t, method, "/v1/chat/completions", strings.NewReader(plainChat), header...), 403, "")
	}
	wantError(t, f.do(t, "GET", "/v1/models", nil, "Origin", "null"), 403, "")
	resp := f.do(t, "OPTIONS", "/v1/chat/completions", nil, "Origin", "https://ok.example", "Access-Control-Request-Method", "POST")
	if read(t, resp); resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Origin") != "https://ok.example" ||
		!strings.Contains(resp.Header.Get("Access-Control-Allow-Headers"), "Authorization") || resp.Header.Get("Vary") != "Origin" {
		t.Errorf("preflight: %d %v", resp.StatusCode, resp.Header)
	}
	resp = f.do(t, "OPTIONS", "/v1/chat/completions", nil, "Origin", "https://ok.example",
		"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers",
		"authorization,x-evil, X-Stainless-Poll-Helper,x-stainless-new thing,x-stainless-a:b,x-stainless-\u00e9,x-stainless-"+
			strings.Repeat("a", 100)+strings.Repeat(",x-stainless-os", 100))
	read(t, resp)
	allowed := resp.Header.Get("Access-Control-Allow-Headers")
	want := "OpenAI-Project, x-stainless-poll-helper" + strings.Repeat(", x-stainless-os", 31)
	if !strings.Contains(allowed, "OpenAI-Beta") || !strings.HasSuffix(allowed, want) ||
		strings.Contains(allowed, "evil") {
		t.Errorf("preflight allows %q", allowed)
	}
	resp = f.post(t, "/v1/chat/completions", plainChat, "Origin", "https://ok.example")
	if read(t, resp); resp.StatusCode != 200 || resp.Header.Get("Access-Control-Allow-Origin") != "https://ok.example" {
		t.Errorf("allowed: %d %v", resp.StatusCode, resp.Header)
	}
}

// TestHTTPHosts holds that on loopback, without credentials, a name that a page may have is refused unless that page is
// allowed.
func TestHTTPHosts(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{HTTP: server.HTTPOptions{AllowOrigins: []string{"https://ok.example:8443"}}})
	ask := func(f *webFixture, path, host string) *http.Response {
		t.Helper()
		resp, err := f.raw(t, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	for host, status := range map[string]int{
		"": 200, "localhost": 200, "a.localhost:80": 200, "127.0.0.1:80": 200, "[::1]:80": 200, "ok.example": 200,
		"evil.example": 403, "evil.example:80": 403, "127.0.0.1.evil.example": 403,
	} {
		if resp := ask(f, "/v1/models", host); resp.StatusCode != status {
			t.Errorf("Host %q: %d, want %d", host, resp.StatusCode, status)
		}
	}
	body := chatBody("")
	resp, err := f.raw(t, strings.Replace(rawChat("Content-Type: application/json\r\nContent-Length: "+
		strconv.Itoa(len(body))+"\r\n", body), "localhost", "evil.example", 1))
	if err != nil || resp.StatusCode != 403 {
		t.Errorf("a chat: %v, %v", resp, err)
	}
	any, _ := tinyHTTP(t, server.Options{HTTP: server.HTTPOptions{AllowOrigins: []string{"*"}}})
	if resp := ask(any, "/v1/models", "evil.example"); resp.StatusCode != 200 {
		t.Errorf("every page is allowed: %d", resp.StatusCode)
	}
	keyed, _ := tinyHTTP(t, server.Options{Auth: newKeyFile(t, entries...).auth})
	if resp := ask(keyed, "/health", "mm.example"); resp.StatusCode != 200 {
		t.Errorf("with credentials: %d", resp.StatusCode)
	}
}

// TestHTTPIgnored holds that fields that nothing reads are taken, and named in a header that cannot be abused.
func TestHTTPIgnored(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	resp := f.post(t, "/v1/chat/completions", chatBody(`,"frobnicate":1,"reasoning_effort":"low","bad name":1,"a\r\nSet-Cookie: x":1,"user":"u"`))
	if got := resp.Header.Get("X-Mmserve-Ignored-Fields"); resp.StatusCode != 200 ||
		got != "frobnicate, reasoning_effort" || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("%d %q, %v", resp.StatusCode, got, resp.Header)
	}
	read(t, resp)
	long := ""
	for i := range 100 {
		long += fmt.Sprintf(`,"%s%d":1`, strings.Repeat("x", 50), i)
	}
	resp = f.post(t, "/v1/chat/completions", chatBody(long))
	if got := resp.Header.Get("X-Mmserve-Ignored-Fields"); resp.StatusCode != 200 || len(got) == 0 || len(got) > 600 {
		t.Errorf("%d, %d bytes", resp.StatusCode, len(got))
	}
	read(t, resp)
}

// TestHTTPRequestID holds which names of requests are kept, and that one is made for the others.
func TestHTTPRequestID(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for _, c := range []struct {
		id   string
		kept bool
	}{{"abc-1", true}, {strings.Repeat("a", 128), true}, {strings.Repeat("a", 129), false}, {"a b", false}, {"", false}} {
		resp := f.do(t, "GET", "/health", nil, "X-Request-Id", c.id)
		if got := resp.Header.Get("X-Request-Id"); (got == c.id) != c.kept || got == "" {
			t.Errorf("%q becomes %q", c.id, got)
		}
		read(t, resp)
	}
}

// TestHTTPPanic holds that a panic is that request's error, in the middle of a stream, too.
func TestHTTPPanic(t *testing.T) {
	f := &webFixture{client: http.DefaultClient, log: new(logtest.Buffer)}
	web := httptest.NewServer(server.Panicking(server.Options{Logger: slog.New(slog.NewTextHandler(f.log, nil))}, canary))
	defer web.Close()
	defer f.client.CloseIdleConnections()
	f.url = web.URL
	wantError(t, f.do(t, "GET", "/early", nil), 500, "")
	b := string(read(t, f.do(t, "GET", "/late", nil)))
	if !strings.HasPrefix(b, "data: x\n\ndata: {\"error\":{") || !strings.HasSuffix(b, "}\n\n") {
		t.Errorf("a stream that breaks: %q", b)
	}
	if log := f.log.String(); strings.Count(log, "msg=panic") != 2 || strings.Contains(log, canary) {
		t.Errorf("the log: %s", log)
	}
}

// TestHTTPConnections holds that connections are bounded: one more takes the place of one that is silent.
func TestHTTPConnections(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{MaxConnections: 4})
	for range 20 {
		conn, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	f.stillServes(t)
}

// TestHTTPConnectionAge holds that an old connection ends after its request, and a young one does not.
func TestHTTPConnectionAge(t *testing.T) {
	for age, closes := range map[time.Duration]bool{time.Nanosecond: true, time.Hour: false, 0: false} {
		f, _ := tinyHTTP(t, server.Options{MaxConnectionAge: age})
		resp := f.post(t, "/v1/chat/completions", plainChat)
		if read(t, resp); resp.StatusCode != 200 || resp.Close != closes {
			t.Errorf("%v: status %d, the connection closes: %v", age, resp.StatusCode, resp.Close)
		}
	}
}

// TestHTTPHalfClosed holds that a client that closes its side after a request gets an answer that is none of success.
func TestHTTPHalfClosed(t *testing.T) {
	m, runner := tinyVLM(t), endless(1)
	runner.step = make(chan struct{}, 1)
	f := startHTTP(t, &m, runner, server.Options{})
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, rawChat(fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(plainChat)), plainChat))
	runner.step <- struct{}{}
	eventually(t, "the request runs", func() bool { return f.engine.Stats().Running == 1 })
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, resp, 499, "")
	close(runner.step)
}

// TestHTTPFlood holds that hundreds of requests that are refused leave nothing behind, and that a good one
// between them is answered.
func TestHTTPFlood(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{MaxMessageBytes: 4 << 20, MaxInflightBytes: 16 << 20})
	text := strings.Repeat("x", 1<<20)
	bad := []string{
		"", "[", `{"messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 10000) + `{}]}`,
		`{"messages":[{"role":"user","content":[` + strings.Repeat(`{"type":"text","text":"a"},`, 10000) + `"a"]}]}`,
		`{"messages":[{"role":"user","content":"` + text + text + `"}]}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":"` + text + `"}]}]}`,
		`{"messages":[{"role":"user","content":"a"}],"logit_bias":{` + strings.Repeat(`"1":1,`, 1000) + `"2":1}}`,
		`{"messages":[{"role":"user","content":"a"}],"stop":[` + strings.Repeat(`"a",`, 50000) + `"a"]}`,
		`{"messages":[{"role":"user","content":"a"}],"guided_choice":[` + strings.Repeat(`"a",`, 50000) + `"a"]}`,
		`{"a":` + strings.Repeat(`[`, 1<<20), `{` + strings.Repeat(`"a":1,`, 1<<18) + `"b":1}`, "\xff\xfe" + text,
	}
	measure := func() (heap uint64, goroutines int) {
		f.client.CloseIdleConnections()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	f.stillServes(t)
	heap, goroutines := measure()
	var g errgroup.Group
	g.SetLimit(8)
	for i := range racetest.Part(20) * len(bad) {
		g.Go(func() error {
			resp := f.post(t, "/v1/chat/completions", bad[i%len(bad)])
			if b := read(t, resp); resp.StatusCode != 400 && resp.StatusCode != 429 {
				t.Errorf("%.40q: %d %.300s", bad[i%len(bad)], resp.StatusCode, b)
			}
			if i%50 == 0 {
				f.stillServes(t)
			}
			return nil
		})
	}
	_ = g.Wait()
	f.stillServes(t)
	eventually(t, "memory and goroutines are as before", func() bool {
		h, n := measure()
		return h < heap+4<<20 && n <= goroutines+4
	})
}
