package openai

import (
	"context"
	"errors"
	"reflect"
	"testing"
)

// TestPrompts holds the ways in which a prompt of a completion comes, and what its other fields become.
func TestPrompts(t *testing.T) {
	for body, want := range map[string]TextRequest{
		`{"prompt":"a"}`:       {Prompt: "a", Request: Request{MaxTokens: ptr[uint32](16)}},
		`{"prompt":["a"]}`:     {Prompt: "a", Request: Request{MaxTokens: ptr[uint32](16)}},
		`{"prompt":[1,2]}`:     {PromptIDs: []uint32{1, 2}, Request: Request{MaxTokens: ptr[uint32](16)}},
		`{"prompt":[[1,2]]}`:   {PromptIDs: []uint32{1, 2}, Request: Request{MaxTokens: ptr[uint32](16)}},
		`{"prompt":"a","x":1}`: {Prompt: "a", Request: Request{MaxTokens: ptr[uint32](16), Ignored: []string{"x"}}},
		`{"prompt":"a","suffix":"","echo":false,"best_of":1,"max_tokens":5,"logprobs":0}`: {
			Prompt: "a", Request: Request{MaxTokens: ptr[uint32](5), MaxTokensParam: "max_tokens", Logprobs: true},
		},
		`{"prompt":"a","min_tokens":30,"logprobs":3}`: {
			Prompt: "a", Request: Request{MaxTokens: ptr[uint32](30), MinTokens: 30, Logprobs: true, TopLogprobs: 3},
		},
	} {
		got, err := ParseText(context.Background(), []byte(body))
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v, %v; want %+v", body, got, err, want)
		}
	}
}

// TestTextLogprobs holds that offsets count characters, and that of tokens that are written alike the likelier one
// counts.
func TestTextLogprobs(t *testing.T) {
	var l TextLogprobs
	token := NewTokenLogprob([]byte("é"), -1)
	token.Top = []TopLogprob{NewTopLogprob([]byte("\xff"), -2), NewTopLogprob([]byte("\xfe"), -1)}
	at := l.Add(NewTokenLogprob([]byte("ab"), -0.5), 0)
	at = l.Add(token, at)
	want := TextLogprobs{
		Offsets: []int{0, 2}, Logprobs: []float32{-0.5, -1}, Tokens: []string{"ab", "é"},
		Top: []map[string]float32{{}, {"\uFFFD": -1}},
	}
	if at != 3 || !reflect.DeepEqual(l, want) {
		t.Errorf("%+v up to %d, want %+v up to 3", l, at, want)
	}
}

// TestStopReason holds what is told of an answer's end.
func TestStopReason(t *testing.T) {
	for _, c := range []struct {
		stop  *string
		token *int32
		want  any
	}{{ptr("x"), nil, "x"}, {nil, ptr[int32](5), int32(5)}, {nil, ptr[int32](6), nil}, {nil, nil, nil}} {
		if got := NewStopReason(c.stop, c.token, []uint32{5}); got != c.want {
			t.Errorf("%v, want %v", got, c.want)
		}
	}
}

func FuzzParseText(f *testing.F) {
	for _, in := range []string{
		`{"prompt":"a","logprobs":2,"stop":"x"}`, `{"prompt":[[1,2]],"echo":true}`, `{"messages":[{"role":"user","content":"a"}]}`,
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var e *Error
		text, err := ParseText(context.Background(), in)
		if (text == nil) != (err != nil) || err != nil && !errors.As(err, &e) {
			t.Errorf("completion: %v, %v", text, err)
		}
		tokens, err := ParseTokenize(context.Background(), in)
		if (tokens == nil) != (err != nil) || err != nil && !errors.As(err, &e) {
			t.Errorf("tokenize: %v, %v", tokens, err)
		}
	})
}

// A request for tokens is of a prompt or of messages.
func TestTokenizeFaults(t *testing.T) {
	const messages = `"messages":[{"role":"user","content":"a"}]`
	for body, want := range map[string]string{
		`{"prompt":"a"}`: "", "{" + messages + "}": "",
		`{"prompt":"a",` + messages + "}": "prompt", "{}": "prompt", `{"prompt":1}`: "prompt",
		`{"prompt":"a","return_token_strs":true}`:                   "return_token_strs",
		`{"prompt":"a","add_special_tokens":false}`:                 "add_special_tokens",
		`{"add_special_tokens":true,` + messages + "}":              "add_special_tokens",
		`{"prompt":"a","add_special_tokens":true,"other":[1,2]}`:    "",
		`{"add_special_tokens":false,"model":"m",` + messages + "}": "",
	} {
		_, err := ParseTokenize(t.Context(), []byte(body))
		var e *Error
		if (err == nil) != (want == "") || err != nil && (!errors.As(err, &e) || e.Field() != want) {
			t.Errorf("%s: %v, want a fault of %q", body, err, want)
		}
	}
}
