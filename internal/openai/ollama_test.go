package openai

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// TestOllama holds what the fields of Ollama's chat become, by its documents.
func TestOllama(t *testing.T) {
	message := `"messages":[{"role":"user","content":"hi"}]`
	for more, set := range map[string]func(*ChatRequest){
		``:                 func(*ChatRequest) {},
		`,"stream":false`:  func(c *ChatRequest) { c.Stream = false },
		`,"model":"m:1b"`:  func(c *ChatRequest) { c.Model, c.Named = "m:1b", "m:1b" },
		`,"model":"m"`:     func(c *ChatRequest) { c.Model, c.Named = "m", "m" },
		`,"format":""`:     func(*ChatRequest) {},
		`,"format":"json"`: func(c *ChatRequest) { c.Constraint = &Constraint{Kind: JSONObject, Param: "format"} },
		`,"format":{"type":"object"}`: func(c *ChatRequest) {
			c.Constraint = &Constraint{Kind: JSONSchema, Text: `{"type":"object"}`, Param: "format"}
		},
		`,"model":"m:latest","options":{"temperature":0.5,"top_p":0.25,"top_k":3,"min_p":0.75,"seed":7,"num_predict":9,` +
			`"repeat_penalty":1.5,"stop":["x"],"num_ctx":2048},"think":true`: func(c *ChatRequest) {
			c.Model, c.Temperature, c.TopP, c.MinP = "m", ptr[float32](0.5), ptr[float32](0.25), ptr[float32](0.75)
			c.TopK, c.Seed, c.MaxTokens, c.Stop = ptr[uint32](3), ptr[uint64](7), ptr[uint32](9), []string{"x"}
			c.Named = "m:latest"
			c.RepetitionPenalty, c.Ignored = ptr[float32](1.5), []string{"options.num_ctx", "think"}
		},
		`,"options":{"num_predict":0}`:  func(*ChatRequest) {},
		`,"options":{"num_predict":-1}`: func(*ChatRequest) {},
		`,"options":{"num_predict":-2}`: func(*ChatRequest) {},
	} {
		want := &ChatRequest{Request: Request{Stream: true}, Messages: []Message{{Role: "user", Parts: []Part{{Text: "hi"}}}}}
		set(want)
		got, err := ParseOllamaChat(context.Background(), []byte("{"+message+more+"}"))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", more, got, err, want)
		}
	}
	got, err := ParseOllamaChat(context.Background(),
		[]byte(`{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a","images":["aGk="]}]}`))
	want := []Message{
		{Role: "system", Parts: []Part{{Text: "s"}}},
		{Role: "user", Parts: []Part{{Image: &Image{Data: []byte("hi"), Param: "messages[1].images[0]"}}, {Text: "a"}}},
	}
	if err != nil || !reflect.DeepEqual(got.Messages, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestOllamaContinues holds that an assistant's message at the end is gone on with.
func TestOllamaContinues(t *testing.T) {
	got, err := ParseOllamaChat(context.Background(), []byte(`{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}`))
	if err != nil || !got.Continue {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzParseOllama holds that whatever comes is parsed or refused with a text.
func FuzzParseOllama(f *testing.F) {
	f.Add([]byte(`{"messages":[{"role":"user","content":"a","images":["aGk="]}],"options":{"num_predict":-1,"stop":"x"},"format":{}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseOllamaChat(context.Background(), in)
		var e *Error
		if err == nil && c.Model != strings.TrimSuffix(c.Named, OllamaTag) ||
			err != nil && (!errors.As(err, &e) || e.Message == "") {
			t.Fatalf("%+v, %v", c, err)
		}
	})
}
