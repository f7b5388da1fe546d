package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/internal/telemetry"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// webFixture is a server with HTTP on a TCP port of its own.
type webFixture struct {
	url, addr string
	grpc      *client.Client // of the same server
	client    *http.Client
	engine    *batching.Engine
	log       *logtest.Buffer
	server    *server.Server
	stop      context.CancelFunc // as SIGTERM does
	served    chan error         // what Serve returned
}

// startHTTP serves model m over runner r until the test ends. nil serves no model.
func startHTTP(t testing.TB, m *serving.Model, r batching.Runner, o server.Options) *webFixture {
	t.Helper()
	f := &webFixture{log: new(logtest.Buffer), served: make(chan error, 1)}
	o.Logger = slog.New(telemetry.TraceIDs(slog.NewTextHandler(f.log, nil)))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.HTTP.Listener = lis
	f.addr = lis.Addr().String()
	f.url = "http://" + f.addr
	f.server = server.Loading(o)
	if m != nil {
		f.engine = newEngine(t, r, batching.Options{})
		f.server.Attach(serving.Single(serving.Run(*m, f.engine)))
	}
	grpcLis := bufconn.Listen(1 << 16)
	conn, err := grpc.NewClient("passthrough:///memory",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return grpcLis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	f.grpc = client.New(conn, client.WithUnavailableRetries(0))
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	f.client = &http.Client{Transport: transport}
	var ctx context.Context
	ctx, f.stop = context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); f.served <- f.server.Serve(ctx, grpcLis) }()
	t.Cleanup(func() {
		conn.Close()
		transport.CloseIdleConnections()
		f.stop()
		<-done
	})
	return f
}

// tinyHTTP is startHTTP of the model that gives the golden answer.
func tinyHTTP(t testing.TB, o server.Options) (*webFixture, golden) {
	t.Helper()
	g, m := readGolden(t.(*testing.T)), tinyVLM(t)
	return startHTTP(t, &m, newChain(2, g.GeneratedIDs...), o), g
}

// post sends a body as JSON.
func (f *webFixture) post(t testing.TB, path, body string, header ...string) *http.Response {
	t.Helper()
	return f.do(t, http.MethodPost, path, strings.NewReader(body), header...)
}

// do asks; header are names and values in turn. The response's body is the caller's to close.
func (f *webFixture) do(t testing.TB, method, path string, body io.Reader, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, f.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := f.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// read gives a response's body.
func read(t testing.TB, resp *http.Response) []byte {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// errorBody is the shape of every error.
type errorBody struct {
	Error *struct {
		Message, Type string
		Param, Code   *string
	}
}

// wantError holds that a response is an error of a status, about a parameter, in OpenAI's shape.
func wantError(t testing.TB, resp *http.Response, status int, param string) (message string) {
	t.Helper()
	b := read(t, resp)
	var e errorBody
	if err := json.Unmarshal(b, &e); err != nil || e.Error == nil || e.Error.Message == "" || e.Error.Type == "" {
		t.Errorf("status %d, no error in OpenAI's shape: %.300s", resp.StatusCode, b)
		return ""
	}
	for _, field := range []string{`"param":`, `"code":`} {
		if !bytes.Contains(b, []byte(field)) {
			t.Errorf("the error lacks %s: %s", field, b)
		}
	}
	got := ""
	if e.Error.Param != nil {
		got = *e.Error.Param
	}
	if resp.StatusCode != status || got != param {
		t.Errorf("status %d about %q: %s; want %d about %q", resp.StatusCode, got, e.Error.Message, status, param)
	}
	if resp.Header.Get("X-Request-Id") == "" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("headers of an error: %v", resp.Header)
	}
	return e.Error.Message
}

// dataURL is an image as chats carry it.
func dataURL(file []byte) string {
	return "data:image/png;base64," + base64.StdEncoding.EncodeToString(file)
}

// chatBody is the golden question, with more fields.
func chatBody(more string) string {
	return fmt.Sprintf(`{"model":"tiny-vlm","messages":[{"role":"user","content":[`+
		`{"type":"image_url","image_url":{"url":%q}},{"type":"text","text":"Describe the picture."}]}]%s}`, dataURL(pngFile(64)), more)
}

func TestHTTPChat(t *testing.T) {
	f, g := tinyHTTP(t, server.Options{})
	resp := f.post(t, "/v1/chat/completions", chatBody(""), "X-Request-Id", "mine-1")
	b := read(t, resp)
	var c openai.ChatCompletion
	if err := json.Unmarshal(b, &c); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d %v: %s", resp.StatusCode, err, b)
	}
	if c.ID != "chatcmpl-mine-1" || c.Object != "chat.completion" || c.Model != "tiny-vlm" || c.Created == 0 ||
		len(c.Choices) != 1 || resp.Header.Get("X-Request-Id") != "mine-1" {
		t.Errorf("%s", b)
	}
	if a := c.Choices[0]; a.Message.Content != g.Text || a.FinishReason != "stop" || a.Message.Role != "assistant" {
		t.Errorf("%s; want the text %q", b, g.Text)
	}
	u := c.Usage
	if u.PromptTokens != len(g.PromptIDs) || u.CompletionTokens != len(g.GeneratedIDs) ||
		u.TotalTokens != u.PromptTokens+u.CompletionTokens || u.PromptDetails == nil ||
		u.PromptDetails.Image != imageTokens || u.PromptDetails.Text != u.PromptTokens-imageTokens {
		t.Errorf("usage %+v, %+v", u, u.PromptDetails)
	}
}

// events reads a stream of events: the data of each.
func events(t testing.TB, resp *http.Response) (list []string) {
	t.Helper()
	b := read(t, resp)
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v: %s", resp.StatusCode, resp.Header, b)
	}
	for event := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n\n"), "\n\n") {
		data, ok := strings.CutPrefix(event, "data: ")
		if !ok || strings.Contains(data, "\n") {
			t.Fatalf("not an event of one line: %q", event)
		}
		list = append(list, data)
	}
	return list
}

// chunk is one of a stream, as its readers see it.
type chunk struct {
	ID, Object, Model string
	Created           int64
	Choices           []struct {
		Index        int
		Delta        struct{ Role, Content *string }
		Logprobs     *openai.Logprobs
		FinishReason *string `json:"finish_reason"`
	}
	Usage *openai.Usage
}

func TestHTTPStream(t *testing.T) {
	f, g := tinyHTTP(t, server.Options{})
	for _, usage := range []bool{false, true} {
		list := events(t, f.post(t, "/v1/chat/completions",
			chatBody(fmt.Sprintf(`,"stream":true,"stream_options":{"include_usage":%v}`, usage))))
		if list[len(list)-1] != "[DONE]" {
			t.Errorf("the stream ends with %q", list[len(list)-1])
		}
		text, finish := "", ""
		var last chunk
		for i, data := range list[:len(list)-1] {
			var c chunk
			if err := json.Unmarshal([]byte(data), &c); err != nil {
				t.Fatalf("%v: %s", err, data)
			}
			if c.Object != "chat.completion.chunk" || !strings.HasPrefix(c.ID, "chatcmpl-") ||
				c.Model != "tiny-vlm" || c.Created == 0 {
				t.Errorf("%s", data)
			}
			if strings.Contains(data, `"usage"`) != usage || usage && (c.Usage != nil) != (i == len(list)-2) {
				t.Errorf("chunk %d of %d, usage asked for %v: %s", i, len(list)-1, usage, data)
			}
			if last = c; len(c.Choices) == 0 {
				continue
			}
			choice := c.Choices[0]
			if i == 0 && (choice.Delta.Role == nil || *choice.Delta.Role != "assistant") {
				t.Errorf("the first chunk is %s", data)
			}
			if choice.Delta.Content != nil {
				text += *choice.Delta.Content
			}
			if choice.FinishReason != nil {
				finish += *choice.FinishReason
			}
		}
		if text != g.Text || finish != "stop" {
			t.Errorf("the stream says %q and ends by %q; want %q", text, finish, g.Text)
		}
		if usage && (len(last.Choices) != 0 || last.Usage.CompletionTokens != len(g.GeneratedIDs)) {
			t.Errorf("the last chunk is %+v", last)
		}
	}
}

func TestHTTPModels(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	var list openai.ModelList
	if err := json.Unmarshal(read(t, f.do(t, "GET", "/v1/models", nil)), &list); err != nil || len(list.Data) != 1 ||
		list.Object != "list" || list.Data[0].ID != "tiny-vlm" || list.Data[0].MaxModelLen != contextLen ||
		list.Data[0].Created == 0 {
		t.Errorf("%+v, %v", list, err)
	}
	var m openai.Model
	if err := json.Unmarshal(read(t, f.do(t, "GET", "/v1/models/tiny-vlm", nil)), &m); err != nil || m.ID != "tiny-vlm" {
		t.Errorf("%+v, %v", m, err)
	}
	wantError(t, f.do(t, "GET", "/v1/models/other", nil), 404, "")
}

// TestHTTPErrors holds status and shape of what is refused, each by its name.
func TestHTTPErrors(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for _, c := range []struct {
		method, path, body string
		status             int
		param              string
	}{
		{"GET", "/v1/nothing", "", 404, ""},
		{"GET", "/", "", 404, ""},
		{"POST", "/v1/embeddings", "{}", 404, ""},
		{"GET", "/v1/chat/completions", "", 405, ""},
		{"DELETE", "/v1/models", "", 405, ""},
		{"POST", "/v1/chat/completions", "", 400, ""},
		{"POST", "/v1/chat/completions", "[]", 400, ""},
		{"POST", "/v1/chat/completions", "{", 400, ""},
		{"POST", "/v1/chat/completions", "{}", 400, "messages"},
		{"POST", "/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"model":"other"}`, 404, "model"},
		{"POST", "/v1/chat/completions", `{"messages":[{"role":"robot","content":"a"}]}`, 400, "messages[0].role"},
		{"POST", "/v1/chat/completions", `{"messages":[{"role":"user"}]}`, 400, "messages[0].content"},
		{"POST", "/v1/chat/completions", chatBody(`,"temperature":3`), 400, "temperature"},
		{"POST", "/v1/chat/completions", chatBody(`,"temperature":"hot"`), 400, "temperature"},
		{"POST", "/v1/chat/completions", chatBody(`,"max_tokens":100000`), 400, "max_tokens"},
		{"POST", "/v1/chat/completions", chatBody(`,"max_completion_tokens":100000`), 400, "max_completion_tokens"},
		{"POST", "/v1/chat/completions", chatBody(`,"max_completion_tokens":500`), 400, "max_completion_tokens"},
		{"POST", "/v1/chat/completions", chatBody(`,"max_completion_tokens":0`), 400, "max_completion_tokens"},
		{"POST", "/v1/completions", `{"prompt":"a","max_tokens":0}`, 400, "max_tokens"},
		{"POST", "/v1/chat/completions", chatBody(`,"tools":[{}]`), 400, "tools[0].type"},
		{"POST", "/v1/chat/completions", chatBody(`,"tools":[{"type":"function","function":{"name":"a"}}]`), 400, "tools"},
		{"POST", "/v1/chat/completions", chatBody(`,"n":17`), 400, "n"},
	} {
		var body io.Reader
		if c.method == "POST" {
			body = strings.NewReader(c.body)
		}
		t.Run(c.method+c.path+c.param, func(t *testing.T) {
			wantError(t, f.do(t, c.method, c.path, body), c.status, c.param)
		})
	}
	loading := startHTTP(t, nil, nil, server.Options{})
	wantError(t, loading.post(t, "/v1/chat/completions", chatBody("")), 503, "")
	wantError(t, loading.do(t, "GET", "/v1/models", nil), 503, "")
	wantError(t, loading.do(t, "GET", "/health", nil), 503, "")
}
