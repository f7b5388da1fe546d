package openai

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func ptr[T any](v T) *T { return &v }

// with is a chat of one message, and more fields.
func with(more string) string {
	if more != "" {
		more = "," + more
	}
	return `{"messages":[{"role":"user","content":"hi"}]` + more + "}"
}

func limit(c *ChatRequest, n uint32, param string) { c.MaxTokens, c.MaxTokensParam = &n, param }

// TestFields holds what each field becomes, by the documents of OpenAI and vLLM.
func TestFields(t *testing.T) {
	for more, set := range map[string]func(*ChatRequest){
		``:            func(*ChatRequest) {},
		`"model":"m"`: func(c *ChatRequest) { c.Model = "m" },
		`"model":null,"temperature":null,"stop":null,"n":null,"tools":null,"response_format":null,"logit_bias":null`: func(*ChatRequest) {},
		`"max_tokens":5`: func(c *ChatRequest) { limit(c, 5, "max_tokens") },
		`"max_tokens":5,"max_completion_tokens":7`: func(c *ChatRequest) { limit(c, 7, "max_completion_tokens") },
		`"max_tokens":5.0`:                         func(c *ChatRequest) { limit(c, 5, "max_tokens") },
		`"max_tokens":1e2`:                         func(c *ChatRequest) { limit(c, 100, "max_tokens") },
		`"temperature":0.5,"top_p":1,"min_p":0.25,"typical_p":0.75`: func(c *ChatRequest) {
			c.Temperature, c.TopP = ptr[float32](0.5), ptr[float32](1)
			c.MinP, c.TypicalP = ptr[float32](0.25), ptr[float32](0.75)
		},
		`"top_k":-1`: func(c *ChatRequest) { c.TopK = ptr[uint32](0) },
		`"top_k":40`: func(c *ChatRequest) { c.TopK = ptr[uint32](40) },
		`"presence_penalty":1,"frequency_penalty":-0.5,"repetition_penalty":1.5`: func(c *ChatRequest) {
			c.PresencePenalty, c.FrequencyPenalty, c.RepetitionPenalty = ptr[float32](1), ptr[float32](-0.5), ptr[float32](1.5)
		},
		`"logit_bias":{"5":-100,"7":1.5}`:   func(c *ChatRequest) { c.LogitBias = map[uint32]float32{5: -100, 7: 1.5} },
		`"seed":-1`:                         func(c *ChatRequest) { c.Seed = ptr(^uint64(0)) },
		`"seed":9007199254740993`:           func(c *ChatRequest) { c.Seed = ptr[uint64](9007199254740993) },
		`"stop":"x"`:                        func(c *ChatRequest) { c.Stop = []string{"x"} },
		`"stop":["x","\n"]`:                 func(c *ChatRequest) { c.Stop = []string{"x", "\n"} },
		`"stop_token_ids":[1,2]`:            func(c *ChatRequest) { c.StopTokenIDs = []uint32{1, 2} },
		`"include_stop_str_in_output":true`: func(c *ChatRequest) { c.IncludeStop = true },
		`"ignore_eos":true,"min_tokens":3`: func(c *ChatRequest) {
			c.IgnoreEOS, c.MinTokens = true, 3
		},
		`"n":3`:                            func(c *ChatRequest) { c.N = 3 },
		`"logprobs":true`:                  func(c *ChatRequest) { c.Logprobs = true },
		`"logprobs":true,"top_logprobs":2`: func(c *ChatRequest) { c.Logprobs, c.TopLogprobs = true, 2 },
		`"top_logprobs":0`:                 func(*ChatRequest) {},
		`"stream":true`:                    func(c *ChatRequest) { c.Stream = true },
		`"stream":true,"stream_options":{"include_usage":true}`: func(c *ChatRequest) { c.Stream, c.IncludeUsage = true, true },
		`"priority":-1`: func(c *ChatRequest) { c.Priority = -1 },
		`"tools":[],"tool_choice":"none","parallel_tool_calls":false`:                                 func(*ChatRequest) {},
		`"functions":[],"function_call":"auto"`:                                                       func(*ChatRequest) {},
		`"user":"u","safety_identifier":"s","metadata":{"a":"b"},"store":false,"service_tier":"auto"`: func(*ChatRequest) {},
		`"modalities":["text"]`:             func(*ChatRequest) {},
		`"response_format":{"type":"text"}`: func(*ChatRequest) {},
		`"response_format":{"type":"json_object"}`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: JSONObject, Param: "response_format"}
		},
		`"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type": "object"}}}`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: JSONSchema, Text: `{"type": "object"}`, Param: "response_format.json_schema.schema"}
		},
		`"guided_json":"{\"a\":1}"`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: JSONSchema, Text: `{"a":1}`, Param: "guided_json"}
		},
		`"guided_regex":"a+"`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: Regex, Text: "a+", Param: "guided_regex"}
		},
		`"guided_choice":["a","b"]`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: Choices, Choices: []string{"a", "b"}, Param: "guided_choice"}
		},
		`"structured_outputs":{"json":{"type":"object"}}`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: JSONSchema, Text: `{"type":"object"}`, Param: "structured_outputs.json"}
		},
		`"structured_outputs":{"choice":["a"]}`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: Choices, Choices: []string{"a"}, Param: "structured_outputs.choice"}
		},
		`"response_format":{"type":"json_object"},"guided_regex":"a"`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: JSONObject, Param: "response_format"}
		},
		`"add_generation_prompt":true`:                                func(*ChatRequest) {},
		`"add_generation_prompt":false,"continue_final_message":true`: func(c *ChatRequest) { c.Continue = true },
		`"frobnicate":1,"stream":true,"stream_options":{"x":1}`: func(c *ChatRequest) {
			c.Stream = true
			c.Ignored = []string{"stream_options.x", "frobnicate"}
		},
		`"Temperature":1`: func(c *ChatRequest) {
			c.Ignored = []string{"Temperature"}
		},
	} {
		want := &ChatRequest{Messages: []Message{{Role: "user", Parts: []Part{{Text: "hi"}}}}}
		set(want)
		got, err := ParseChat(context.Background(), []byte(with(more)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", more, got, err, want)
		}
	}
}

// TestFaults holds that a wrong field is named, with a code.
func TestFaults(t *testing.T) {
	message := func(content string) string { return `{"messages":[{"role":"user","content":` + content + `}]}` }
	image := func(url string) string {
		return message(`[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":` + url + `}}]`)
	}
	for _, c := range []struct{ body, param, code string }{
		{``, "", CodeInvalidJSON}, {`[]`, "", CodeInvalidJSON}, {"{\"a\":\"\xff\"}", "", CodeInvalidJSON},
		{`{"messages":[],"messages":[]}`, "", CodeInvalidJSON},
		{`{}`, "messages", CodeMissing},
		{`{"messages":null}`, "messages", CodeMissing}, {`{"messages":[]}`, "messages", CodeMissing},
		{`{"messages":"a"}`, "messages", CodeInvalidType}, {`{"messages":["a"]}`, "messages[0]", CodeInvalidType},
		{`{"messages":[{"content":"a"}]}`, "messages[0].role", CodeMissing},
		{`{"messages":[{"role":null,"content":"a"}]}`, "messages[0].role", CodeMissing},
		{`{"messages":[{"role":"","content":"a"}]}`, "messages[0].role", CodeInvalidValue},
		{message(`[{"text":"a"}]`), "messages[0].content[0].type", CodeMissing},
		{message(`[{"type":"refusal","refusal":"a"}]`), "messages[0].content[0].type", CodeInvalidValue},
		{message(`[{"type":"input_audio","input_audio":{}}]`), "messages[0].content[0].type", CodeUnsupported},
		{message(`[{"type":"file","file":{}}]`), "messages[0].content[0].type", CodeUnsupported},
		{`{"messages":[{"role":"assistant","content":[{"type":"refusal"}]}]}`, "messages[0].content[0].refusal", CodeMissing},
		{`{"messages":[{"role":"assistant","content":[{"refusal":"a"}]}]}`, "messages[0].content[0].type", CodeMissing},
		{`{"messages":[{"role":"function","content":"a"}]}`, "messages[0].role", CodeInvalidValue},
		{`{"messages":[{"role":1,"content":"a"}]}`, "messages[0].role", CodeInvalidType},
		{`{"messages":[{"role":"user"}]}`, "messages[0].content", CodeMissing},
		{message(`1`), "messages[0].content", CodeInvalidType}, {message(`[]`), "messages[0].content", CodeMissing},
		{message(`[1]`), "messages[0].content[0]", CodeInvalidType},
		{message(`[{"type":"video_url"}]`), "messages[0].content[0].type", CodeInvalidValue},
		{message(`[{"type":"text"}]`), "messages[0].content[0].text", CodeMissing},
		{message(`[{"type":"text","text":1}]`), "messages[0].content[0].text", CodeInvalidType},
		{message(`[{"type":"image_url"}]`), "messages[0].content[0].image_url", CodeMissing},
		{message(`[{"type":"image_url","image_url":{}}]`), "messages[0].content[0].image_url.url", CodeMissing},
		{message(`[{"type":"image_url","image_url":7}]`), "messages[0].content[0].image_url", CodeInvalidType},
		{image(`5`), "messages[0].content[1].image_url.url", CodeInvalidType},
		{image(`""`), "messages[0].content[1].image_url.url", CodeInvalidValue},
		{image(`"data:image/png,abc"`), "messages[0].content[1].image_url.url", CodeInvalidValue},
		{image(`"data:image/png;base64,"`), "messages[0].content[1].image_url.url", CodeInvalidValue},
		{image(`"data:image/png;base64,a*b="`), "messages[0].content[1].image_url.url", CodeInvalidValue},
		{image(`"file:///etc/passwd"`), "messages[0].content[1].image_url.url", CodeInvalidValue},
		{image(`"gopher://x/1"`), "messages[0].content[1].image_url.url", CodeInvalidValue},
		{image(`"iVBO","detail":"most"`), "messages[0].content[1].image_url.detail", CodeInvalidValue},
		{with(`"temperature":"hot"`), "temperature", CodeInvalidType},
		{with(`"temperature":1e39`), "temperature", CodeInvalidValue},
		{with(`"temperature":0.` + strings.Repeat("0", 100)), "temperature", CodeInvalidValue},
		{with(`"max_tokens":0`), "max_tokens", CodeInvalidValue}, {with(`"n":-1`), "n", CodeInvalidValue},
		{with(`"max_completion_tokens":0,"max_tokens":5`), "max_completion_tokens", CodeInvalidValue},
		{with(`"max_tokens":-1`), "max_tokens", CodeInvalidValue}, {with(`"max_tokens":1.5`), "max_tokens", CodeInvalidValue},
		{with(`"max_tokens":4294967296`), "max_tokens", CodeInvalidValue},
		{with(`"max_tokens":1e300`), "max_tokens", CodeInvalidValue},
		{with(`"max_tokens":"5"`), "max_tokens", CodeInvalidType},
		{with(`"seed":9223372036854775808`), "seed", CodeInvalidValue}, {with(`"top_k":-2`), "top_k", CodeInvalidValue},
		{with(`"top_k":99999999999`), "top_k", CodeInvalidValue}, {with(`"n":0`), "n", CodeInvalidValue},
		{with(`"stop":5`), "stop", CodeInvalidType}, {with(`"stop":[5]`), "stop[0]", CodeInvalidType},
		{with(`"stop_token_ids":[-1]`), "stop_token_ids[0]", CodeInvalidValue},
		{with(`"logit_bias":[]`), "logit_bias", CodeInvalidType},
		{with(`"logit_bias":{"x":1}`), "logit_bias", CodeInvalidValue},
		{with(`"logit_bias":{"5":"x"}`), "logit_bias[5]", CodeInvalidType},
		{with(`"stream":1`), "stream", CodeInvalidType}, {with(`"stream_options":1`), "stream_options", CodeInvalidType},
		{with(`"tools":[{}]`), "tools[0].type", CodeMissing}, {with(`"tools":[5]`), "tools[0]", CodeInvalidType},
		{with(`"tools":[{"type":"web_search"}]`), "tools[0].type", CodeUnsupported},
		{with(`"tools":[{"type":"function"}]`), "tools[0].function", CodeMissing},
		{with(`"tools":[{"type":"function","function":{}}]`), "tools[0].function.name", CodeMissing},
		{with(`"tools":{}`), "tools", CodeInvalidType},
		{`{"messages":[{"role":"user","content":"a","tool_calls":[{}]}]}`, "messages[0].tool_calls", CodeUnsupported},
		{`{"messages":[{"role":"assistant","content":"a","tool_calls":[{}]}]}`, "messages[0].tool_calls[0].function",
			CodeMissing},
		{with(`"tool_choice":"required"`), "tool_choice", CodeUnsupported},
		{with(`"tool_choice":{}`), "tool_choice", CodeUnsupported}, {with(`"functions":[{}]`), "functions", CodeUnsupported},
		{with(`"modalities":["audio"]`), "modalities[0]", CodeUnsupported}, {with(`"audio":{}`), "audio", CodeUnsupported},
		{with(`"top_logprobs":2`), "top_logprobs", CodeInvalidValue}, {with(`"logprobs":1`), "logprobs", CodeInvalidType},
		{with(`"response_format":"json"`), "response_format", CodeInvalidType},
		{with(`"response_format":{"type":"xml"}`), "response_format.type", CodeInvalidValue},
		{with(`"response_format":{"type":"json_schema"}`), "response_format.json_schema.schema", CodeMissing},
		{with(`"response_format":{"type":"json_schema","json_schema":{"schema":5}}`), "response_format.json_schema.schema", CodeInvalidType},
		{with(`"guided_grammar":"x"`), "guided_grammar", CodeUnsupported},
		{with(`"structured_outputs":{"regex":1}`), "structured_outputs.regex", CodeInvalidType},
		{with(`"stream_options":{"include_usage":true}`), "stream_options", CodeInvalidValue},
		{with(`"stream":false,"stream_options":{}`), "stream_options", CodeInvalidValue},
		{with(`"add_generation_prompt":false`), "add_generation_prompt", CodeInvalidValue},
		{with(`"add_generation_prompt":true,"continue_final_message":true`), "add_generation_prompt", CodeInvalidValue},
	} {
		_, err := ParseChat(context.Background(), []byte(c.body))
		var e *Error
		if !errors.As(err, &e) || e.Field() != c.param || e.Code == nil || *e.Code != c.code || e.Type != InvalidRequest {
			t.Errorf("%.200s: %v, %+v; want %s about %q", c.body, err, e, c.code, c.param)
		}
	}
}

// TestGenerationPrompt holds that a refusal fits what was asked.
func TestGenerationPrompt(t *testing.T) {
	for more, says := range map[string]string{
		`"add_generation_prompt":false`:                              "false; want true, or continue_final_message",
		`"add_generation_prompt":true,"continue_final_message":true`: "true; want false beside continue_final_message",
	} {
		if _, err := ParseChat(context.Background(), []byte(with(more))); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want %s", more, err, says)
		}
	}
}

// TestTopLogprobs holds that the likeliest in a token's place have no others in theirs.
func TestTopLogprobs(t *testing.T) {
	l := NewTokenLogprob([]byte("x"), -1)
	l.Top = append(l.Top, NewTopLogprob([]byte("y"), -2))
	want := `{"token":"x","logprob":-1,"bytes":[120],"top_logprobs":[{"token":"y","logprob":-2,"bytes":[121]}]}`
	if got := string(Marshal(l)); got != want {
		t.Errorf("%s; want %s", got, want)
	}
}

// TestImages holds the ways in which an image comes.
func TestImages(t *testing.T) {
	file := []byte("\x89PNG\xfb\xff\xfe?")
	text := base64.StdEncoding.EncodeToString(file)
	if !strings.ContainsAny(text, "/") || !strings.HasSuffix(text, "=") {
		t.Fatalf("%q tries neither", text)
	}
	for url, want := range map[string]Image{
		`{"url":"data:image/png;base64,` + text + `"}`:                                   {Data: file},
		`{"url":"data:image/png;base64,` + strings.ReplaceAll(text, "/", `\/`) + `"}`:    {Data: file},
		`{"url":"DATA:image/png;charset=x;base64,` + strings.TrimRight(text, "=") + `"}`: {Data: file},
		`{"url":"data:;base64,` + text[:4] + `\n` + text[4:] + `\r\n","detail":"high"}`:  {Data: file, Detail: DetailHigh},
		`{"url":"` + text + `","detail":"low"}`:                                          {Data: file, Detail: DetailLow},
		`{"url":"https://example.com/a.png","detail":"auto"}`:                            {URL: "https://example.com/a.png"},
		`"data:image/png;base64,` + text + `"`:                                           {Data: file},
		`"http://example.com/a.png"`:                                                     {URL: "http://example.com/a.png"},
	} {
		want.Param = "messages[0].content[0].image_url"
		if url[0] == '{' {
			want.Param += ".url"
		}
		c, err := ParseChat(context.Background(),
			[]byte(`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":`+url+`}]}]}`))
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if got := c.Messages[0].Parts[0].Image; got == nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v, want %+v", url, got, want)
		}
	}
}

// TestConversation holds the roles, and texts as a string or as parts.
func TestConversation(t *testing.T) {
	c, err := ParseChat(context.Background(), []byte(
		`{"messages":[{"role":"system","content":"a"},{"role":"developer","content":["b",{"type":"text","text":"c"}]},`+
			`{"role":"user","name":"n","content":""},{"role":"assistant","content":"e","refusal":null,"tool_calls":[]},`+
			`{"role":"assistant","content":[{"type":"text","text":"f"},{"type":"refusal","refusal":"g"}]}]}`))
	said := func(role string, parts ...Part) Message { return Message{Role: role, Parts: parts} }
	want := []Message{
		said("system", Part{Text: "a"}), said("system", Part{Text: "b"}, Part{Text: "c"}), said("user", Part{}),
		said("assistant", Part{Text: "e"}), said("assistant", Part{Text: "f"}, Part{Text: "g"}),
	}
	if err != nil || !reflect.DeepEqual(c.Messages, want) || c.Ignored != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestImageIsCopiedOnce holds that reading a body takes little more memory than its images do.
func TestImageIsCopiedOnce(t *testing.T) {
	const size = 8 << 20
	body := []byte(`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` +
		base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1, 2, 3}, size/3)) + `"}}]}]}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ParseChat(context.Background(), body); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > size+size/4 {
		t.Errorf("%d bytes for an image of %d", took, size)
	}
}

// TestIgnoredIsBounded holds that unknown fields do not take memory of their own without a bound.
func TestIgnoredIsBounded(t *testing.T) {
	var b strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&b, `,"%s%d":1`, strings.Repeat("é", 100), i)
	}
	c, err := ParseChat(context.Background(), []byte(with("\"x\":1"+b.String())))
	if err != nil || len(c.Ignored) != mostIgnored {
		t.Fatalf("%d, %v", len(c.Ignored), err)
	}
	for _, name := range c.Ignored {
		if len(name) > longestIgnored {
			t.Errorf("%d bytes of a name", len(name))
		}
	}
}

// TestChunks holds the shape of chunks: fields, and which are there.
func TestChunks(t *testing.T) {
	c := NewChunks("chatcmpl-1", "m \"x\"", "fp", 7, true)
	head := `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m \"x\"","system_fingerprint":"fp","choices":[`
	logprobs := &Logprobs{Content: []TokenLogprob{NewTokenLogprob([]byte("a\xff"), -0.5)}}
	usage := NewUsage(10, 4, 3, 2)
	for _, x := range []struct {
		got  []byte
		want string
	}{
		{bytes.Clone(c.Role(0)), `{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}`},
		{bytes.Clone(c.Text(1, "", "a\n\"", nil)), `{"index":1,"delta":{"content":"a\n\""},"logprobs":null,"finish_reason":null}],"usage":null}`},
		{bytes.Clone(c.Text(0, "", "", logprobs)), `{"index":0,"delta":{"content":""},"logprobs":{"content":[{"token":"a\ufffd","logprob":-0.5,` +
			`"bytes":[97,255],"top_logprobs":[]}],"refusal":null},"finish_reason":null}],"usage":null}`},
		{bytes.Clone(c.Finish(0, "stop", "x", nil)),
			`{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":"x"}],"usage":null}`},
		{bytes.Clone(c.Last(&usage, Extras{})), `],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12,` +
			`"prompt_tokens_details":{"cached_tokens":3,"image_tokens":4,"text_tokens":6}}}`},
		{bytes.Clone(c.Last(nil, Extras{Timings: &Timings{Queue: 1.5, Total: 2}, ChoiceScores: []float32{0.25, 0.75}})),
			`],"timings":{"preprocess_ms":0,"tokenize_ms":0,"encode_ms":0,"queue_ms":1.5,"prefill_ms":0,"decode_ms":0,` +
				`"ttft_ms":0,"total_ms":2},"choice_scores":[0.25,0.75]}`},
	} {
		var got, want any
		if err := errors.Join(json.Unmarshal(x.got, &got), json.Unmarshal([]byte(head+x.want), &want)); err != nil {
			t.Fatalf("%v: %s", err, x.got)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %s\nwant %s", x.got, head+x.want)
		}
	}
	chunks := NewChunks("i", "m", "", 7, false)
	for texts, want := range map[[2]string]string{
		{"a", ""}: `"delta":{"reasoning_content":"a"}`, {"\n", "b"}: `"delta":{"reasoning_content":"\n","content":"b"}`,
	} {
		if got := string(chunks.Text(0, texts[0], texts[1], nil)); !strings.Contains(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
	got := NewChunks("i", "m", "", 7, false).Text(0, "", "a", nil)
	if bytes.Contains(got, []byte("usage")) || bytes.Contains(got, []byte("fingerprint")) {
		t.Errorf("%s", got)
	}
}

// TestLeastLogprob holds that a probability of 0 is JSON.
func TestLeastLogprob(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, l := range []float32{-inf, inf - inf} {
		if got := NewTokenLogprob(nil, l); got.Logprob != leastLogprob {
			t.Errorf("%v becomes %v", l, got.Logprob)
		}
	}
}

func FuzzParseChat(f *testing.F) {
	f.Add([]byte(with(`"stop":["x"],"logit_bias":{"1":2},"response_format":{"type":"json_schema","json_schema":{"schema":{}}}`)))
	f.Add([]byte(`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBO"}},"a"]}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseChat(context.Background(), in)
		var e *Error
		switch {
		case err != nil && (!errors.As(err, &e) || e.Message == "" || c != nil):
			t.Errorf("%v, %v", c, err)
		case err == nil && len(c.Messages) == 0:
			t.Error("no messages")
		}
		if err != nil {
			return
		}
		for _, m := range c.Messages {
			for _, p := range m.Parts {
				if p.Image != nil && len(p.Image.Data) == 0 && p.Image.URL == "" {
					t.Error("an image without data")
				}
			}
		}
	})
}

// TestTools: tools, what an assistant called, and what came back, as they stand in the body.
func TestTools(t *testing.T) {
	tools := `[{"type":"function","function":{"name":"look","parameters":{"b":1,"a":[2.5,null]}}}]`
	calls := `[{"id":"c1","type":"function","function":{"name":"look","arguments":"{\"x\": 1}"}}]`
	body := `{"tools":` + tools + `,"tool_choice":%s,"messages":[{"role":"user","content":"a"},` +
		`{"role":"assistant","content":null,"tool_calls":` + calls + `},` +
		`{"role":"tool","tool_call_id":"c1","name":"look","content":"b"}]}`
	for choice, want := range map[string]string{`"auto"`: tools, `null`: tools, `"none"`: ""} {
		c, err := ParseChat(context.Background(), fmt.Appendf(nil, body, choice))
		if err != nil || string(c.Tools) != want || c.Ignored != nil {
			t.Fatalf("%s: %+v %v", choice, c, err)
		}
		if got := c.Messages[1]; string(got.ToolCalls) != calls || !reflect.DeepEqual(got.Parts, []Part{{}}) {
			t.Errorf("calls %s in %+v", got.ToolCalls, got)
		}
		want := Message{Role: "tool", Parts: []Part{{Text: "b"}}, ToolCallID: "c1", Name: "look"}
		if got := c.Messages[2]; !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
