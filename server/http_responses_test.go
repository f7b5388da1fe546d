package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/server"
)

// responseBody is the golden question as a request for a response, with more fields.
func responseBody(more string) string {
	return fmt.Sprintf(`{"model":"tiny-vlm","input":[{"role":"user","content":[`+
		`{"type":"input_image","image_url":%q},{"type":"input_text","text":"Describe the picture."}]}]%s}`, dataURL(pngFile(64)), more)
}

func parseResponse(t *testing.T, b []byte) (r openai.Response) {
	t.Helper()
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return r
}

func TestHTTPResponse(t *testing.T) {
	f, g := tinyHTTP(t, server.Options{})
	resp := f.post(t, "/v1/responses", responseBody(`,"metadata":{"a":"b"},"reasoning":{}`), "X-Request-Id", "mine-1")
	b := read(t, resp)
	r := parseResponse(t, b)
	if resp.StatusCode != 200 || r.ID != "resp_mine-1" || r.Object != "response" || r.Status != "completed" || r.Store ||
		r.Model != "tiny-vlm" || string(r.Metadata) != `{"a":"b"}` || r.CompletedAt == nil {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	if len(r.Output) != 1 || r.Output[0].Role != "assistant" || r.Output[0].Status != "completed" ||
		len(r.Output[0].Content) != 1 || r.Output[0].Content[0].Text != g.Text ||
		r.Output[0].Content[0].Type != "output_text" {
		t.Errorf("%s; want the text %q", b, g.Text)
	}
	if u := r.Usage; u == nil || u.InputTokens != len(g.PromptIDs) || u.OutputTokens != len(g.GeneratedIDs) ||
		u.TotalTokens != u.InputTokens+u.OutputTokens || u.InputDetails.Image != imageTokens {
		t.Errorf("usage %+v", u)
	}
	if got := resp.Header.Get("X-Mmserve-Ignored-Fields"); got != "reasoning" {
		t.Errorf("ignored fields %q", got)
	}
	// SDKs in typed languages want these to be there.
	for _, field := range []string{
		`"store":false`, `"previous_response_id":null`, `"error":null`, `"tools":[]`, `"annotations":[]`, `"logprobs":[]`,
	} {
		if !strings.Contains(string(b), field) {
			t.Errorf("%s lacks %s", b, field)
		}
	}
	cut := parseResponse(t, read(t, f.post(t, "/v1/responses", responseBody(`,"max_output_tokens":2`))))
	if cut.Status != "incomplete" || cut.IncompleteDetails == nil || cut.IncompleteDetails.Reason != "max_output_tokens" {
		t.Errorf("a response cut at 2 tokens: %+v", cut)
	}
}

// responseEvent is one of a stream, as its readers see it.
type responseEvent struct {
	Type     string
	Sequence *int `json:"sequence_number"`
	Response *openai.Response
	Item     *openai.ResponseOutput
	ItemID   string `json:"item_id"`
	Delta    string
	Text     string
}

// responseEvents reads a stream of events, whose names have to be those of their types, and which count from 0.
func responseEvents(t *testing.T, resp *http.Response) (list []responseEvent) {
	t.Helper()
	b := read(t, resp)
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v: %s", resp.StatusCode, resp.Header, b)
	}
	for event := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(strings.TrimPrefix(event, "event: "), "\ndata: ")
		var e responseEvent
		if err := json.Unmarshal([]byte(data), &e); !ok || err != nil || e.Type != name ||
			e.Sequence == nil || *e.Sequence != len(list) {
			t.Fatalf("event %d: %v: %q", len(list), err, event)
		}
		list = append(list, e)
	}
	return list
}

func TestHTTPResponseStream(t *testing.T) {
	f, g := tinyHTTP(t, server.Options{})
	for more, status := range map[string]string{`,"stream":true`: "completed", `,"stream":true,"max_output_tokens":2`: "incomplete"} {
		text, names := "", ""
		var last responseEvent
		for _, e := range responseEvents(t, f.post(t, "/v1/responses", responseBody(more))) {
			if name := strings.TrimPrefix(e.Type, "response."); name != last.Type {
				names += name + " "
			}
			text += e.Delta
			last = e
			last.Type = strings.TrimPrefix(e.Type, "response.")
		}
		want := "created in_progress output_item.added content_part.added output_text.delta output_text.done " +
			"content_part.done output_item.done " + status + " "
		if names != want {
			t.Errorf("events %s; want %s", names, want)
		}
		r := last.Response
		if r == nil || r.Status != status || r.Output[0].Content[0].Text != text || r.Usage == nil ||
			!strings.HasPrefix(g.Text, text) || text == "" {
			t.Errorf("the stream says %q, and ends with %+v", text, r)
		}
		if status == "completed" && text != g.Text {
			t.Errorf("the stream says %q; want %q", text, g.Text)
		}
	}
}

// TestHTTPResponseCut holds that a response that is cut says so in an event of its own.
func TestHTTPResponseCut(t *testing.T) {
	t.Parallel() // it waits
	m, runner := tinyVLM(t), endless(1)
	runner.step = make(chan struct{}, 100)
	f := startHTTP(t, &m, runner, server.Options{Grace: 50 * time.Millisecond})
	runner.step <- struct{}{}
	resp := f.post(t, "/v1/responses", responseBody(`,"stream":true`))
	f.stop()
	list := responseEvents(t, resp)
	last := list[len(list)-1]
	if last.Type != "response.failed" || last.Response.Status != "failed" || last.Response.Error == nil ||
		last.Response.Error.Code != "service_unavailable" || last.Response.Error.Message != "the server is shutting down" {
		t.Errorf("the cut stream ends with %+v", last)
	}
	<-f.served
	close(runner.step)
}

// TestHTTPResponseErrors holds that what serving refuses has the names that the request has.
func TestHTTPResponseErrors(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for _, c := range []struct {
		body   string
		status int
		param  string
	}{
		{`{}`, 400, "input"},
		{responseBody(`,"temperature":9`), 400, "temperature"},
		{responseBody(`,"max_output_tokens":0`), 400, "max_output_tokens"},
		{responseBody(`,"max_output_tokens":100000`), 400, "max_output_tokens"},
		{responseBody(`,"previous_response_id":"resp_1"`), 400, "previous_response_id"},
		{`{"input":"a","model":"other"}`, 404, "model"},
		{`{"input":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}`, 400, "input[1].role"},
		{`{"instructions":"x","input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,aGk="}]}]}`,
			400, "input[0].content[0].image_url"},
		{`{"input":[{"role":"user","content":[{"type":"input_image","image_url":"https://example.com/a.png"}]}]}`,
			400, "input[0].content[0].image_url"},
		{`{"input":"` + strings.Repeat("word ", 2000) + `"}`, 400, "input"},
	} {
		for _, stream := range []string{"", `,"stream":true}`} {
			body := c.body
			if stream != "" {
				body = strings.TrimSuffix(body, "}") + strings.TrimPrefix(stream, map[bool]string{true: ","}[body == "{}"])
			}
			t.Run(c.param, func(t *testing.T) { wantError(t, f.post(t, "/v1/responses", body), c.status, c.param) })
		}
	}
}

// TestHTTPResponseConstraint holds that schemas are kept to, and that a wrong one has the name that the request has.
func TestHTTPResponseConstraint(t *testing.T) {
	f := startHash(t, server.Options{})
	schema := `{"type":"object","properties":{"color":{"enum":["red","blue"]}},"required":["color"],"additionalProperties":false}`
	r := parseResponse(t, read(t, f.post(t, "/v1/responses",
		`{"input":"a","max_output_tokens":200,"text":{"format":{"type":"json_schema","name":"n","schema":`+schema+`}}}`)))
	var got struct{ Color string }
	if err := json.Unmarshal([]byte(r.Output[0].Content[0].Text), &got); err != nil ||
		got.Color != "red" && got.Color != "blue" {
		t.Errorf("%v: %+v", err, r.Output)
	}
	wantError(t, f.post(t, "/v1/responses", `{"input":"a","text":{"format":{"type":"json_schema","schema":{"type":"wrong"}}}}`),
		400, "text.format.schema")
	lines := ollamaLines(t, f.post(t, "/api/chat",
		`{"messages":[{"role":"user","content":"a"}],"stream":false,"options":{"num_predict":200},"format":`+schema+`}`))
	if err := json.Unmarshal([]byte(lines[0].Message.Content), &got); err != nil || got.Color == "" {
		t.Errorf("%v: %+v", err, lines)
	}
	if b := read(t, f.post(t, "/api/chat", `{"messages":[{"role":"user","content":"a"}],"format":{"type":"wrong"}}`)); !strings.Contains(string(b), `{"error":"format: `) {
		t.Errorf("%s", b)
	}
}

// TestHTTPCanaryElsewhere holds that what callers write occurs in no error and no log line of these endpoints either.
func TestHTTPCanaryElsewhere(t *testing.T) {
	f := startHash(t, server.Options{})
	for _, text := range canaries {
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		for path, bodies := range map[string][]string{
			"/v1/responses": {
				`%s`, `{%s:1,%[1]s:1}`, `{"input":%s,"temperature":9}`, `{"input":[{"type":%s}]}`, `{"input":[{"role":%s,"content":"a"}]}`,
				`{"input":[{"role":"user","content":[{"type":%s}]}]}`, `{"input":"a","instructions":%s,"top_p":9}`,
				`{"input":[{"role":"user","content":[{"type":"input_image","image_url":%s}]}]}`,
				`{"input":[{"role":"user","content":[{"type":"input_image","image_url":"aGk=","detail":%s}]}]}`,
				`{"input":"a","metadata":{%s:1}}`, `{"input":"a","previous_response_id":%s}`, `{"input":"a","tools":[%s]}`,
				`{"input":"a","text":{"format":{"type":%s}}}`, `{"input":"a","text":{"format":{"type":"json_schema","schema":%s}}}`,
				`{"input":"a","text":{"format":{"type":"json_schema","schema":{"type":%s}}}}`, `{"input":"a","include":[%s],"temperature":9}`,
			},
			"/api/chat": {
				`%s`, `{"model":%s,"messages":[{"role":"user","content":"a"}]}`, `{"messages":[{"role":%s,"content":"a"}]}`,
				`{"messages":[{"role":"user","content":%s}],"options":{"top_p":9}}`, `{"messages":[{"role":"user","images":[%s]}]}`,
				`{"messages":[{"role":"user","content":"a"}],"format":%s}`, `{"messages":[{"role":"user","content":"a"}],"format":{"type":%s}}`,
				`{"messages":[{"role":"user","content":"a"}],"options":{"num_predict":%s}}`,
			},
		} {
			for _, body := range bodies {
				body = fmt.Sprintf(body, quoted)
				resp := f.post(t, path, body)
				if b := string(read(t, resp)); resp.StatusCode != 200 && strings.Contains(b, canary) {
					t.Errorf("%s %.150s: the error quotes it: %.300s", path, body, b)
				}
			}
		}
	}
	if log := f.log.String(); strings.Contains(log, canary) || !strings.Contains(log, "msg=request") {
		t.Error("the log quotes it, or there is none")
	}
}
