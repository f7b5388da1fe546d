package openai

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// ask is a request for a response, with more fields.
func ask(more string) string {
	if more != "" {
		more = "," + more
	}
	return `{"input":"hi"` + more + "}"
}

// TestResponseFields holds what each field becomes, by OpenAI's documents.
func TestResponseFields(t *testing.T) {
	for more, set := range map[string]func(*ResponseRequest){
		``: func(*ResponseRequest) {},
		`"model":"m","stream":true,"max_output_tokens":5,"temperature":0.5,"top_p":0.25`: func(c *ResponseRequest) {
			c.Model, c.Stream, c.MaxTokens = "m", true, ptr[uint32](5)
			c.Temperature, c.TopP = ptr[float32](0.5), ptr[float32](0.25)
			c.Echo.MaxOutputTokens, c.Echo.Temperature, c.Echo.TopP = c.MaxTokens, c.Temperature, c.TopP
		},
		`"instructions":"be brief"`: func(c *ResponseRequest) {
			c.Instructed, c.Echo.Instructions = true, ptr("be brief")
			c.Messages = append([]Message{{Role: "system", Parts: []Part{{Text: "be brief"}}}}, c.Messages...)
		},
		`"store":false,"background":false,"previous_response_id":null,"conversation":null,"tools":[],"tool_choice":"auto",` +
			`"truncation":"auto","include":["reasoning.encrypted_content"],"user":"u","stream_options":{},"parallel_tool_calls":true`: func(c *ResponseRequest) {
			c.Store, c.Subject = new(bool), "u"
		},
		`"store":true,"previous_response_id":"resp_1","user":"u","safety_identifier":"s"`: func(c *ResponseRequest) {
			yes := true
			c.Store, c.Previous, c.Subject = &yes, "resp_1", "s"
		},
		`"metadata":{"a": "b"}`: func(c *ResponseRequest) { c.Echo.Metadata = json.RawMessage(`{"a":"b"}`) },
		`"include":["message.output_text.logprobs"],"top_logprobs":2`: func(c *ResponseRequest) {
			c.Logprobs, c.TopLogprobs = true, 2
		},
		`"text":{"format":{"type":"text"},"verbosity":"low"}`: func(c *ResponseRequest) { c.Ignored = []string{"text.verbosity"} },
		`"text":{"format":{"type":"json_object"}}`: func(c *ResponseRequest) {
			c.Constraint = &Constraint{Kind: JSONObject, Param: "text.format"}
			c.Echo.Text.Format = json.RawMessage(`{"type":"json_object"}`)
		},
		`"text":{"format":{"type":"json_schema","name":"n","strict":true,"schema":{"type": "object"}}}`: func(c *ResponseRequest) {
			c.Constraint = &Constraint{Kind: JSONSchema, Text: `{"type": "object"}`, Param: "text.format.schema"}
			c.Echo.Text.Format = json.RawMessage(`{"type":"json_schema","name":"n","strict":true,"schema":{"type":"object"}}`)
		},
		`"reasoning":{"effort":"low"},"max_tokens":3`: func(c *ResponseRequest) { c.Ignored = []string{"reasoning", "max_tokens"} },
	} {
		want := &ResponseRequest{
			InputIsText: true, Messages: []Message{{Role: "user", Parts: []Part{{Text: "hi"}}}},
			Echo: ResponseEcho{Metadata: json.RawMessage("{}"), Text: ResponseText{Format: json.RawMessage(`{"type":"text"}`)}},
		}
		set(want)
		got, err := ParseResponse(context.Background(), []byte(ask(more)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", more, got, err, want)
		}
	}
}

// TestResponseInput holds what items become: those that callers write, and answers that they send back.
func TestResponseInput(t *testing.T) {
	got, err := ParseResponse(context.Background(), []byte(`{"input":[
		{"role":"developer","content":"d"},
		{"type":"message","role":"user","content":[{"type":"input_text","text":"a"},
			{"type":"input_image","image_url":"data:image/png;base64,aGk=","detail":"low","file_id":null}]},
		{"type":"message","id":"msg_1","status":"completed","role":"assistant","content":[
			{"type":"output_text","text":"b","annotations":[],"logprobs":[]},{"type":"refusal","refusal":"c"}]},
		{"role":"user","content":"e"}]}`))
	want := []Message{
		{Role: "system", Parts: []Part{{Text: "d"}}},
		{Role: "user", Parts: []Part{
			{Text: "a"}, {Image: &Image{Data: []byte("hi"), Detail: DetailLow, Param: "input[1].content[1].image_url"}},
		}},
		{Role: "assistant", Parts: []Part{{Text: "b"}, {Text: "c"}}},
		{Role: "user", Parts: []Part{{Text: "e"}}},
	}
	if err != nil || !reflect.DeepEqual(got.Messages, want) || got.Ignored != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestResponseFaults holds that a wrong field is named, with a code.
func TestResponseFaults(t *testing.T) {
	part := func(p string) string { return `{"input":[{"role":"user","content":[` + p + `]}]}` }
	for _, c := range []struct{ body, param, code string }{
		{``, "", CodeInvalidJSON},
		{`{}`, "input", CodeMissing}, {`{"input":[]}`, "input", CodeMissing}, {`{"input":1}`, "input", CodeInvalidType},
		{`{"input":["a"]}`, "input[0]", CodeInvalidType},
		{`{"input":[{"type":"function_call_output","call_id":"c","output":"o"}]}`, "input[0].type", CodeUnsupported},
		{`{"input":[{"type":"item_reference","id":"i"}]}`, "input[0].type", CodeUnsupported},
		{`{"input":[{"role":"robot","content":"a"}]}`, "input[0].role", CodeInvalidValue},
		{`{"input":[{"role":"user"}]}`, "input[0].content", CodeMissing},
		{part(`{"type":"text","text":"a"}`), "input[0].content[0].type", CodeInvalidValue},
		{part(`{"text":"a"}`), "input[0].content[0].type", CodeMissing},
		{`{"input":[{"content":"a"}]}`, "input[0].role", CodeMissing},
		{part(`{"type":"input_text"}`), "input[0].content[0].text", CodeMissing},
		{part(`{"type":"input_file","file_data":"x"}`), "input[0].content[0].type", CodeUnsupported},
		{part(`{"type":"input_image"}`), "input[0].content[0].image_url", CodeMissing},
		{part(`{"type":"input_image","image_url":{"url":"x"}}`), "input[0].content[0].image_url", CodeInvalidType},
		{part(`{"type":"input_image","file_id":"f"}`), "input[0].content[0].file_id", CodeUnsupported},
		{part(`{"type":"input_image","image_url":"data:image/png;base64,####"}`), "input[0].content[0].image_url", CodeInvalidValue},
		{part(`{"type":"input_image","image_url":"data:image/png;base64,aGk=","detail":"tiny"}`), "input[0].content[0].detail", CodeInvalidValue},
		{`{"instructions":"a","input":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}`,
			"input[1].role", CodeInvalidValue},
		{ask(`"instructions":["a"]`), "instructions", CodeInvalidType},
		{ask(`"store":1`), "store", CodeInvalidType}, {ask(`"background":true`), "background", CodeUnsupported},
		{ask(`"previous_response_id":"x"`), "previous_response_id", CodeInvalidValue},
		{ask(`"conversation":"conv_1"`), "conversation", CodeUnsupported},
		{ask(`"conversation":{"id":"c"}`), "conversation", CodeUnsupported}, {ask(`"prompt":{"id":"p"}`), "prompt", CodeUnsupported},
		{ask(`"tools":[{"type":"web_search"}]`), "tools", CodeUnsupported}, {ask(`"tool_choice":"required"`), "tool_choice", CodeUnsupported},
		{ask(`"top_logprobs":2`), "top_logprobs", CodeInvalidValue}, {ask(`"include":"x"`), "include", CodeInvalidType},
		{ask(`"max_output_tokens":-1`), "max_output_tokens", CodeInvalidValue},
		{ask(`"metadata":{"a":1}`), "metadata", CodeInvalidValue}, {ask(`"metadata":"a"`), "metadata", CodeInvalidValue},
		{ask(`"metadata":{"a":"` + strings.Repeat("b", 513) + `"}`), "metadata", CodeInvalidValue},
		{ask(`"metadata":{"a":` + strings.Repeat(" ", mostEcho) + `"b"}`), "metadata", CodeInvalidValue},
		{ask(`"text":{"format":{"type":"json_object"` + strings.Repeat(" ", mostEcho) + `}}`), "text.format", CodeInvalidValue},
		{ask(`"text":{"format":{"type":"xml"}}`), "text.format.type", CodeInvalidValue},
		{ask(`"text":{"format":{"type":"json_schema","name":"n"}}`), "text.format.schema", CodeMissing},
		{ask(`"text":{"format":{"type":"json_schema","schema":7}}`), "text.format.schema", CodeInvalidType},
	} {
		_, err := ParseResponse(context.Background(), []byte(c.body))
		var e *Error
		if !errors.As(err, &e) || e.Field() != c.param || e.Code == nil || *e.Code != c.code || e.Type != InvalidRequest {
			t.Errorf("%.200s: %+v; want %s about %q", c.body, err, c.code, c.param)
		}
	}
}

// TestResponseParam holds how fields of the contract are called here.
func TestResponseParam(t *testing.T) {
	for body, names := range map[string]map[string]string{
		`{"input":"a","instructions":"b"}`: {
			"chat.messages[0].parts[0]": "instructions", "chat.messages[1].parts[0]": "input", "chat.messages": "input", "input": "input",
			"max_tokens": "max_output_tokens", "sampling.temperature": "temperature", "top_logprobs": "top_logprobs",
		},
		`{"input":[{"role":"user","content":"a"}],"text":{"format":{"type":"json_schema","schema":{}}}}`: {
			"chat.messages[0].parts[2].image.data": "input[0].content[2].image_url", "chat.messages[0].role": "input[0].role",
			"constraint.json_schema": "text.format.schema",
		},
		`{"input":[{"role":"user","content":"a"}],"instructions":"b"}`: {
			"chat.messages[1].parts": "input[0].content", "chat.messages[12].parts[0]": "input[11].content[0]",
		},
	} {
		c, err := ParseResponse(context.Background(), []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range names {
			if got := c.Param(name); got != want {
				t.Errorf("%s: %s is called %q; want %q", body, name, got, want)
			}
		}
	}
}

// TestResponseLogprobs holds that log-probabilities are in the deltas and again at the end.
func TestResponseLogprobs(t *testing.T) {
	c, err := ParseResponse(context.Background(), []byte(ask(`"include":["message.output_text.logprobs"]`)))
	if err != nil {
		t.Fatal(err)
	}
	e := ResponseEvents{Response: NewResponse(c, "i", "m", "f", 1)}
	e.Begin()
	l := []TokenLogprob{NewTokenLogprob([]byte("x"), -1)}
	events := e.Text(ModelText{Text: "x"}, l)
	if got := string(events[len(events)-1].Data); !strings.Contains(got, `"logprobs":[{"token":"x","logprob":-1,"bytes":[120],"top_logprobs":[]}]`) {
		t.Errorf("delta %s", got)
	}
	last := []TokenLogprob{NewTokenLogprob([]byte("y"), -2)}
	e.Finish(last, FinishStop, NewUsage(1, 0, 0, 2), 2)
	if got := e.Response.Output[0].Content[0].Logprobs; !reflect.DeepEqual(got, append(l, last...)) {
		t.Errorf("the response has %+v", got)
	}
}

// TestResponseThoughts: thoughts are an item of their own before the message, whose events do not mix.
func TestResponseThoughts(t *testing.T) {
	c, err := ParseResponse(context.Background(), []byte(ask("")))
	if err != nil {
		t.Fatal(err)
	}
	e := ResponseEvents{Response: NewResponse(c, "i", "m", "f", 1)}
	list := append(e.Begin(), e.Text(ModelText{Reasoning: "a"}, nil)...)
	list = append(list, e.Text(ModelText{}, nil)...)
	list = append(list, e.Text(ModelText{Reasoning: "b", Text: "c"}, nil)...)
	list = append(list, e.Finish(nil, FinishStop, NewUsage(1, 0, 0, 3).WithReasoning(2), 2)...)
	var names []string
	for i, one := range list {
		var got struct {
			Sequence int    `json:"sequence_number"`
			Index    int    `json:"output_index"`
			ItemID   string `json:"item_id"`
		}
		if err := json.Unmarshal(one.Data, &got); err != nil || got.Sequence != i {
			t.Fatalf("event %d: %v: %s", i, err, one.Data)
		}
		if want := map[string]int{"rs_i": 0, "msg_i": 1}[got.ItemID]; got.Index != want && got.ItemID != "" {
			t.Errorf("%s: the item's index is %d, want %d", one.Data, got.Index, want)
		}
		names = append(names, strings.TrimPrefix(one.Name, "response."))
	}
	want := strings.Fields(`created in_progress output_item.added content_part.added reasoning_text.delta
		reasoning_text.delta reasoning_text.done content_part.done output_item.done
		output_item.added content_part.added output_text.delta
		output_text.done content_part.done output_item.done completed`)
	if !slices.Equal(names, want) {
		t.Errorf("events %q, want %q", names, want)
	}
	got := string(Marshal(e.Response.Output))
	if want := `[{"id":"rs_i","type":"reasoning","status":"completed","summary":[],"content":[{"text":"ab","type":` +
		`"reasoning_text"}]},{"id":"msg_i","type":"message","status":"completed","role":"assistant","content":` +
		`[{"type":"output_text","annotations":[],"logprobs":[],"text":"c"}]}]`; got != want {
		t.Errorf("output %s, want %s", got, want)
	}
	if n := e.Response.Usage.OutputDetails.Reasoning; n != 2 {
		t.Errorf("%d tokens of thoughts, want 2", n)
	}
}

// FuzzParseResponse holds that whatever comes is parsed or refused with a name, within the bounds.
func FuzzParseResponse(f *testing.F) {
	f.Add([]byte(ask(`"text":{"format":{"type":"json_schema","schema":{}}},"metadata":{"a":"b"}`)))
	f.Add([]byte(`{"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,aGk="}]}],"instructions":"x"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseResponse(context.Background(), in)
		var e *Error
		if err != nil {
			if !errors.As(err, &e) || e.Message == "" {
				t.Fatalf("%v", err)
			}
			return
		}
		if len(c.Messages) == 0 || len(c.Ignored) > mostIgnored {
			t.Fatalf("%+v", c)
		}
		r := NewResponse(c, "i", "m", "f", 1)
		events := ResponseEvents{Response: r}
		list := append(events.Begin(), events.Text(ModelText{Reasoning: "y"}, nil)...)
		list = append(list, events.Text(ModelText{Reasoning: "y", Text: "x"}, nil)...)
		for i, one := range append(list, events.Finish(nil, FinishStop, NewUsage(1, 0, 0, 1), 2)...) {
			var got struct {
				Type     string
				Sequence int `json:"sequence_number"`
			}
			if err := json.Unmarshal(one.Data, &got); err != nil || got.Type != one.Name || got.Sequence != i {
				t.Fatalf("event %d: %v: %s", i, err, one.Data)
			}
		}
	})
}

// TestStateless holds which requests a server that keeps nothing refuses.
func TestStateless(t *testing.T) {
	yes, no := true, false
	for param, c := range map[string]ResponseRequest{"previous_response_id": {Previous: "resp_1"}, "store": {Store: &yes}} {
		var e *Error
		if err := c.Stateless(); !errors.As(err, &e) || e.Param == nil || *e.Param != param {
			t.Errorf("%+v: %v, want an error about %s", c, err, param)
		}
	}
	for _, c := range []ResponseRequest{{}, {Store: &no}} {
		if err := c.Stateless(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
