package fusion

import (
	"context"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/tokenizer"
)

func TestFindThinking(t *testing.T) {
	with := func(tokens string) *tokenizer.Tokenizer {
		tok, err := tokenizer.Parse([]byte(`{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"added_tokens":[` + tokens + `]}`))
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	usual, mistral := Thinking{"<think>", "</think>"}, Thinking{"[THINK]", "[/THINK]"}
	marks := `{"id":1,"content":"<think>","special":false},{"id":2,"content":"</think>","special":false}`
	special := `{"id":1,"content":"[THINK]","special":true},{"id":2,"content":"[/THINK]","special":true}`
	for _, c := range []struct {
		template, tokens string
		want             Thinking
		ids              []int32
	}{
		{"", "", Thinking{}, nil},
		{"{{ x }}", `{"id":1,"content":"<think>","special":false}`, Thinking{}, nil},
		{"{{ x }}", marks, usual, []int32{1, 2}},
		{"{{ x.split('</think>') }}", "", usual, nil},
		{"{{ x }}", special, mistral, []int32{1, 2}},
		{"[THINK]{{ x }}[/THINK]", marks + "," + `{"id":3,"content":"[THINK]","special":true}`, mistral, []int32{3}},
	} {
		tok := with(c.tokens)
		got := FindThinking(c.template, tok)
		if ids := got.Tokens(tok); got != c.want || !slices.Equal(ids, c.ids) {
			t.Errorf("%q, %s: %q %v, want %q %v", c.template, c.tokens, got, ids, c.want, c.ids)
		}
	}
	// Marks that are special tokens are shown all the same, others not.
	s := with(special + `,{"id":3,"content":"[X]","special":true}`).NewStream(true)
	s.Show(1, 2)
	text := ""
	for _, id := range []int32{1, 0, 3, 2, 0} {
		text += s.Push(id)
	}
	if text += s.Flush(); text != "[THINK] a [/THINK] a" { // without a decoder, tokens have spaces between them
		t.Errorf("the stream gives %q", text)
	}
}

// Whether an answer begins amid thoughts is the template's to say, and not what a user types.
func TestPromptOpensThoughts(t *testing.T) {
	user := func(text string) []chat.Message {
		return []chat.Message{{Role: "user", Parts: []chat.Part{{Text: text}}}}
	}
	answer := func(text string) []chat.Message {
		return append(user("a"), chat.Message{Role: "assistant", Parts: []chat.Part{{Text: text}}})
	}
	plain := "{% for m in messages %}{{ m.content }}{% endfor %}"
	for _, c := range []struct {
		template string
		in       Prompt
		want     bool
	}{
		{plain + ":<think>\n", Prompt{Messages: user("a")}, true},
		{plain + "<think>", Prompt{Messages: user("a")}, true},
		{plain + "<think>\n\n</think>\n\n", Prompt{Messages: user("a")}, false},
		{plain, Prompt{Messages: user("a")}, false},
		{plain, Prompt{Messages: user("<think>")}, false},
		{plain, Prompt{Messages: answer("<think>\na"), Continue: true}, true},
		{plain, Prompt{Messages: answer("<think>a</think>b"), Continue: true}, false},
		{plain, Prompt{Messages: answer("b <think>"), Continue: true}, false},
		{plain, Prompt{Raw: []chat.Part{{Text: "a<think>"}}}, false},
	} {
		p := prompter(t, "")
		p.Guarded = append(p.Guarded, "<think>", "</think>")
		p.Thinking = Thinking{"<think>", "</think>"}
		var err error
		if p.Template, err = chat.Parse(c.template, chat.Options{Guarded: p.Guarded, Placeholder: "<image>"}); err != nil {
			t.Fatal(err)
		}
		r, err := p.Render(context.Background(), c.in)
		if err != nil || r.Thinks != c.want {
			t.Errorf("%q %+v: %t %v, want %t", c.template, c.in, r.Thinks, err, c.want)
		}
	}
}
