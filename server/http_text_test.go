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
			len(c.Choices) != 1 || c.Choices[0].Text != want || c.Choices[0].FinishReason != "stop" || c.Usage.CompletionTokens != len(g.GeneratedIDs) {
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
		{`{}`, 400, "prompt"}, {`{"prompt":null}`, 400, "prompt"}, {`{"prompt":[]}`, 400, "prompt"}, {`{"prompt":5}`, 400, "prompt"},
		{`{"prompt":["a","b"]}`, 400, "prompt"}, {`{"prompt":[{}]}`, 400, "prompt[0]"}, {`{"prompt":[1,"a"]}`, 400, "prompt"},
		{`{"prompt":[[]]}`, 400, "prompt[0]"}, {`{"prompt":""}`, 400, "prompt"},
		{`{"prompt":"a","suffix":"b"}`, 400, "suffix"}, {`{"prompt":"a","echo":true}`, 400, "echo"},
		{`{"prompt":"a","best_of":2}`, 400, "best_of"}, {`{"prompt":"a","logprobs":21}`, 400, "logprobs"},
		{`{"prompt":"a","logprobs":true}`, 400, "logprobs"},
		{`{"prompt":"` + strings.Repeat("a ", 2000) + `"}`, 400, "prompt"},
	} {
		t.Run(fmt.Sprintf("%.40s", c.body), func(t *testing.T) { wantError(t, f.post(t, "/v1/completions", c.body), c.status, c.param) })
	}
}
