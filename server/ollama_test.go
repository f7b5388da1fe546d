package server_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/server"
)

// ollamaBody is the golden question as Ollama's clients ask it, with more fields.
func ollamaBody(more string) string {
	return fmt.Sprintf(`{"model":"tiny-vlm:latest","messages":[{"role":"user","content":"Describe the picture.","images":[%q]}]%s}`,
		base64.StdEncoding.EncodeToString(pngFile(64)), more)
}

// ollamaLine is one of an answer, as its readers see it.
type ollamaLine struct {
	Model      string
	CreatedAt  time.Time `json:"created_at"`
	Message    struct{ Role, Content string }
	Done       bool
	DoneReason string `json:"done_reason"`
	Prompt     int    `json:"prompt_eval_count"`
	Completion int    `json:"eval_count"`
	Duration   int64  `json:"total_duration"`
	Error      string
}

func ollamaLines(t *testing.T, resp *http.Response) (list []ollamaLine) {
	t.Helper()
	b := string(read(t, resp))
	for line := range strings.Lines(b) {
		var l ollamaLine
		if err := json.Unmarshal([]byte(line), &l); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%d %v: %s", resp.StatusCode, err, line)
		}
		list = append(list, l)
	}
	return list
}

func TestOllamaChat(t *testing.T) {
	f, g := tinyHTTP(t, server.Options{})
	for more, kind := range map[string]string{
		`,"stream":false`: "application/json",
		``:                "application/x-ndjson", // the default, other than OpenAI's
		`,"stream":true,"keep_alive":"5m","options":{"temperature":0,"num_predict":-1,"stop":["zzz"]},"tools":[]`: "application/x-ndjson",
	} {
		resp := f.post(t, "/api/chat", ollamaBody(more))
		if got := resp.Header.Get("Content-Type"); got != kind {
			t.Errorf("%s: %s; want %s", more, got, kind)
		}
		list := ollamaLines(t, resp)
		text := ""
		for i, l := range list {
			if l.Done != (i == len(list)-1) || l.Message.Role != "assistant" || l.Model != "tiny-vlm:latest" ||
				l.CreatedAt.IsZero() {
				t.Errorf("line %d of %d: %+v", i, len(list), l)
			}
			text += l.Message.Content
		}
		last := list[len(list)-1]
		if text != g.Text || last.DoneReason != "stop" || last.Prompt != len(g.PromptIDs) ||
			last.Completion != len(g.GeneratedIDs) || last.Duration <= 0 || (len(list) > 1) != (kind != "application/json") {
			t.Errorf("%s: %q, %+v; want %q", more, text, last, g.Text)
		}
	}
	list := ollamaLines(t, f.post(t, "/api/chat", ollamaBody(`,"options":{"num_predict":2},"stream":false`)))
	if l := list[0]; l.DoneReason != "length" || l.Completion != 2 {
		t.Errorf("cut at 2 tokens: %+v", l)
	}
}

func TestOllamaErrors(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for _, c := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"/api/chat", `{}`, 400, "messages: none"},
		{"/api/chat", ollamaBody(`,"options":{"temperature":9}`), 400, "options.temperature: 9"},
		{"/api/chat", ollamaBody(`,"options":{"repeat_penalty":-1,"stop":[""]}`), 400, "options.repeat_penalty: -1"},
		{"/api/chat", ollamaBody(`,"options":{"stop":["a",""]}`), 400, "options.stop[1]: "},
		{"/api/chat", ollamaBody(`,"format":"xml"`), 400, "format: not known; want json or a schema"},
		{"/api/chat", ollamaBody(`,"format":7`), 400, "format: a number; want json or a schema"},
		{"/api/chat", `{"model":"other","messages":[]}`, 404, "not served"},
		{"/api/chat", ollamaBody(`,"options":{"temperature":"hot"}`), 400, "options.temperature: a string"},
		{"/api/chat", ollamaBody(`,"options":{"num_predict":100000}`), 400, "options.num_predict: 100000"},
		{"/api/chat", ollamaBody(`,"tools":[{}]`), 400, "tools: not supported"},
		{"/api/chat", `{"model":"other","messages":[{"role":"user","content":"a"}]}`, 404, "not served"},
		{"/api/chat", `{"messages":[{"role":"user","content":"a","images":["####"]}]}`, 400, "messages[0].images[0]: "},
		{"/api/chat", `{"messages":[{"role":"user","content":"a","images":["aGk="]}]}`, 400, "messages[0].images[0]: "},
		{"/api/generate", `{}`, 404, "/api/chat"},
	} {
		resp := f.post(t, c.path, c.body)
		var l struct{ Error string }
		if b := read(t, resp); json.Unmarshal(b, &l) != nil || resp.StatusCode != c.status ||
			!strings.Contains(l.Error, c.says) {
			t.Errorf("%s %.60s: %d %s; want %d %s", c.path, c.body, resp.StatusCode, b, c.status, c.says)
		}
	}
}

// TestOllamaAsked holds that an answer names the model as its request does, whose body may be of any type.
func TestOllamaAsked(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for name, want := range map[string]string{
		`"model":"tiny-vlm",`: "tiny-vlm", `"model":"tiny-vlm:latest",`: "tiny-vlm:latest", ``: "tiny-vlm:latest",
	} {
		body := `{` + name + `"stream":false,"messages":[{"role":"user","content":"a"}]}`
		resp := f.post(t, "/api/chat", body, "Content-Type", "application/x-www-form-urlencoded")
		if l := ollamaLines(t, resp)[0]; l.Model != want {
			t.Errorf("%s: %+v; want %s", name, l, want)
		}
		list := ollamaLines(t, f.post(t, "/api/chat", `{`+name+`"messages":[]}`, "Content-Type", ""))
		if l := list[0]; len(list) != 1 || l.Model != want || !l.Done || l.DoneReason != "load" || l.CreatedAt.IsZero() ||
			l.Message.Role != "assistant" || l.Message.Content != "" {
			t.Errorf("%s: %+v; want that the model is loaded", name, list)
		}
	}
}

// TestOllamaCut holds that an answer that is cut says so in its last line.
func TestOllamaCut(t *testing.T) {
	t.Parallel() // it waits
	m, runner := tinyVLM(t), endless(1)
	runner.step = make(chan struct{}, 100)
	f := startHTTP(t, &m, runner, server.Options{Grace: 50 * time.Millisecond})
	runner.step <- struct{}{}
	resp := f.post(t, "/api/chat", ollamaBody(""))
	f.stop()
	list := ollamaLines(t, resp)
	if last := list[len(list)-1]; last.Error != "the server is shutting down" || last.Done {
		t.Errorf("the cut answer ends with %+v", last)
	}
	<-f.served
	close(runner.step)
}

func TestOllamaModels(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{Version: "1.2.3"})
	var tags struct {
		Models []struct {
			Name, Model string
			ModifiedAt  time.Time `json:"modified_at"`
			Details     map[string]any
		}
	}
	b := read(t, f.do(t, "GET", "/api/tags", nil))
	if err := json.Unmarshal(b, &tags); err != nil || len(tags.Models) != 1 || tags.Models[0].Model != "tiny-vlm:latest" ||
		tags.Models[0].Name != "tiny-vlm:latest" || tags.Models[0].ModifiedAt.IsZero() || tags.Models[0].Details == nil {
		t.Errorf("%v: %s", err, b)
	}
	if b := read(t, f.do(t, "GET", "/api/version", nil)); string(b) != `{"version":"0.0.0-1.2.3"}` {
		t.Errorf("%s", b)
	}
}

// TestOllamaAuth holds that a chat wants a user's key, and lists a reader's; errors are Ollama's.
func TestOllamaAuth(t *testing.T) {
	k := newKeyFile(t, entries...)
	f, _ := tinyHTTP(t, server.Options{Auth: k.auth})
	for key, want := range map[string][3]int{
		"": {401, 401, 401}, k.key["monitor"]: {403, 200, 200}, k.key["acme"]: {200, 200, 200},
	} {
		header := []string{"Authorization", "Bearer " + key}
		got := [3]*http.Response{
			f.post(t, "/api/chat", ollamaBody(""), header...),
			f.do(t, "GET", "/api/tags", nil, header...), f.do(t, "GET", "/api/version", nil, header...),
		}
		for i, resp := range got {
			b := read(t, resp)
			var e struct{ Error string }
			if resp.StatusCode != want[i] || want[i] != 200 && (json.Unmarshal(b, &e) != nil || e.Error == "") {
				t.Errorf("endpoint %d: %d %s; want %d", i, resp.StatusCode, b, want[i])
			}
		}
	}
	resp := f.post(t, "/api/chat", `{"messages":[]}`, "Authorization", "Bearer "+k.key["narrow"])
	if b := read(t, resp); resp.StatusCode != 403 {
		t.Errorf("a model of others is loaded: %d %s", resp.StatusCode, b)
	}
}
