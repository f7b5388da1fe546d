package server_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/server"
)

func TestHTTPCompletions(t *testing.T) {
	f, g := tinyHTTP(t, server.Options{})
	want := " " + g.Text // no template: the answer keeps its space
	for _, prompt := range []string{`"Once"`, `["Once"]`} {
		b := read(t, f.post(t, "/v1/completions", `{"model":"tiny-vlm","prompt":`+prompt+`,"max_tokens":100}`))
		var c openai.TextCompletion
		if err := json.Unmarshal(b, &c); err != nil || c.Object != "text_completion" || !strings.HasPrefix(c.ID, "cmpl-") ||
			len(c.Choices) != 1 || c.Choices[0].Text != want || c.Choices[0].FinishReason != "stop" ||
			c.Usage.CompletionTokens != len(g.GeneratedIDs) {
			t.Errorf("%v: %s; want %q", err, b, want)
		}
	}
	text, finish := "", ""
	list := events(t, f.post(t, "/v1/completions", `{"prompt":"Once","max_tokens":100,"stream":true,"stream_options":{"include_usage":true}}`))
	for _, data := range list[:len(list)-1] {
		var c struct {
			Object  string
			Choices []struct {
				Text         *string
				FinishReason *string `json:"finish_reason"`
			}
		}
		if err := json.Unmarshal([]byte(data), &c); err != nil || c.Object != "text_completion" {
			t.Fatalf("%v: %s", err, data)
		}
		for _, choice := range c.Choices {
			text += *choice.Text
			if choice.FinishReason != nil {
				finish += *choice.FinishReason
			}
		}
	}
	if text != want || finish != "stop" || list[len(list)-1] != "[DONE]" || strings.Contains(list[0], "delta") {
		t.Errorf("the stream says %q and ends by %q: %s", text, finish, list)
	}
	var c openai.TextCompletion // 16 tokens are OpenAI's default, and the model goes on
	m := tinyVLM(t)
	endless := startHTTP(t, &m, endless(2), server.Options{})
	if b := read(t, endless.post(t, "/v1/completions", `{"prompt":"Once"}`)); json.Unmarshal(b, &c) != nil ||
		c.Usage.CompletionTokens != 16 || c.Choices[0].FinishReason != "length" {
		t.Errorf("%s", b)
	}
}

func TestHTTPCompletionFaults(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for _, c := range []struct {
		body   string
		status int
		param  string
	}{
		{`{}`, 400, "prompt"}, {`{"prompt":null}`, 400, "prompt"},
		{`{"prompt":[]}`, 400, "prompt"}, {`{"prompt":5}`, 400, "prompt"},
		{`{"prompt":["a","b"]}`, 400, "prompt"}, {`{"prompt":[{}]}`, 400, "prompt[0]"}, {`{"prompt":[1,"a"]}`, 400, "prompt"},
		{`{"prompt":[[]]}`, 400, "prompt[0]"}, {`{"prompt":""}`, 400, "prompt"},
		{`{"prompt":"a","suffix":"b"}`, 400, "suffix"}, {`{"prompt":"a","echo":true}`, 400, "echo"},
		{`{"prompt":"a","best_of":2}`, 400, "best_of"}, {`{"prompt":"a","logprobs":21}`, 400, "logprobs"},
		{`{"prompt":"a","logprobs":true}`, 400, "logprobs"},
		{`{"prompt":"` + strings.Repeat("a ", 2000) + `"}`, 400, "prompt"},
	} {
		t.Run(fmt.Sprintf("%.40s", c.body), func(t *testing.T) {
			wantError(t, f.post(t, "/v1/completions", c.body), c.status, c.param)
		})
	}
}

// TestHTTPTokenize holds that a prompt's tokens are those that its answer reports, and that they can be
// sent in its place.
func TestHTTPTokenize(t *testing.T) {
	f := startHash(t, server.Options{})
	tokenize := func(body string) (out openai.Tokenized) {
		b := read(t, f.post(t, "/tokenize", body))
		if err := json.Unmarshal(b, &out); err != nil || out.Count == 0 || len(out.Tokens) != out.Count ||
			out.MaxModelLen != contextLen {
			t.Fatalf("%s: %v, %s", body, err, b)
		}
		return out
	}
	var chat openai.ChatCompletion
	if b := read(t, f.post(t, "/v1/chat/completions", chatBody(`,"max_tokens":1`))); json.Unmarshal(b, &chat) != nil {
		t.Fatalf("%s", b)
	}
	if got := tokenize(chatBody("")); got.Count != chat.Usage.PromptTokens {
		t.Errorf("a chat has %d tokens, its answer reports %d", got.Count, chat.Usage.PromptTokens)
	} else if d := chat.Usage.PromptDetails; got.ImageTokens != d.Image || got.TextTokens != d.Text || !got.Fits ||
		got.MaxTokens == 0 || len(got.Images) != 1 || got.Images[0].Tokens != d.Image || got.Images[0].Format != "png" ||
		got.Images[0].Width != 64 || got.Images[0].EffectiveWidth == 0 || got.Images[0].Tiles != 1 {
		t.Errorf("the parts are %+v, the answer reports %+v", got, d)
	}
	complete := func(prompt any) string {
		quoted, err := json.Marshal(prompt)
		if err != nil {
			t.Fatal(err)
		}
		var c openai.TextCompletion
		b := read(t, f.post(t, "/v1/completions", fmt.Sprintf(`{"prompt":%s,"max_tokens":20,"logprobs":2}`, quoted)))
		if err := json.Unmarshal(b, &c); err != nil || len(c.Choices) != 1 {
			t.Fatalf("%v: %s", err, b)
		}
		l := c.Choices[0].Logprobs
		if n := c.Usage.CompletionTokens; l == nil || len(l.Tokens) != n || len(l.Logprobs) != n ||
			len(l.Offsets) != n || len(l.Top) != n || l.Offsets[0] != 0 {
			t.Errorf("log-probabilities of %d tokens: %+v", n, l)
		}
		return c.Choices[0].Text
	}
	ids := tokenize(`{"model":"tiny-vlm","prompt":"Once upon a time"}`).Tokens
	want := complete("Once upon a time")
	if got := complete(ids); got != want {
		t.Errorf("ids get %q, their text %q", got, want)
	}
	if got := complete([][]int32{ids}); got != want {
		t.Errorf("ids in a list get %q, their text %q", got, want)
	}
	for body, param := range map[string]string{
		`{}`: "prompt", `{"prompt":"a","messages":[]}`: "prompt", `{"prompt":5}`: "prompt",
		`{"messages":[]}`: "messages", `{"prompt":""}`: "prompt",
		`{"prompt":"a","add_special_tokens":false}`: "add_special_tokens", `{"prompt":"a","return_token_strs":true}`: "return_token_strs",
		`{"messages":[{"role":"assistant","content":"a"}]}`: "messages[0].role",
	} {
		wantError(t, f.post(t, "/tokenize", body), 400, param)
	}
	wantError(t, f.post(t, "/v1/completions", `{"prompt":[99999]}`), 400, "prompt")
	holdAll(t, &fixture{engine: f.engine}) // counting takes no place
	tokenize(`{"prompt":"a"}`)
}

// TestHTTPStopReason holds that an answer tells what of its request ended it.
func TestHTTPStopReason(t *testing.T) {
	m := tinyVLM(t)
	f := startHTTP(t, &m, endless(4), server.Options{}) // tokens 430 and 529 in turn
	for more, want := range map[string]any{
		`,"stop_token_ids":[529]`:              float64(529),
		`,"max_tokens":3`:                      nil,
		`,"stop_token_ids":[7],"max_tokens":3`: nil,
	} {
		var c openai.ChatCompletion
		b := read(t, f.post(t, "/v1/chat/completions", chatBody(more)))
		if json.Unmarshal(b, &c) != nil || c.Choices[0].StopReason != want {
			t.Errorf("%s: %s, want stop_reason %v", more, b, want)
		}
		list := events(t, f.post(t, "/v1/chat/completions", chatBody(more+`,"stream":true`)))
		var last struct {
			Choices []struct {
				StopReason any `json:"stop_reason"`
			}
		}
		if err := json.Unmarshal([]byte(list[len(list)-2]), &last); err != nil || last.Choices[0].StopReason != want {
			t.Errorf("%s: the stream ends with %s, want stop_reason %v", more, list[len(list)-2], want)
		}
	}
}
