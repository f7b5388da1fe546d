package chat_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/chat"
)

// Tools, calls and results render as Jinja2 renders them, and their texts form no special token.
func TestToolsEqualJinja2s(t *testing.T) {
	data, err := os.ReadFile("testdata/tools.json")
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Tools, Calls string
		Prompts      map[string][2]string
	}
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	say := func(role, text string) chat.Message {
		return chat.Message{Role: role, Parts: []chat.Part{{Text: text}}}
	}
	ask := []chat.Message{say("system", "Be brief."), say("user", "Look it up.")}
	called, result := say("assistant", "I do."), say("tool", "a drink")
	called.ToolCalls, result.ToolCallID, result.ToolName = []byte(want.Calls), "call00001", "look_up"
	g := readGolden(t)
	for name, prompts := range want.Prompts {
		template := parse(t, g.Templates[name].source, g.Templates[name].options())
		if !template.Tools() {
			t.Errorf("%s shows no tools", name)
		}
		for i, messages := range [][]chat.Message{ask, append(ask[:2:2], called, result)} {
			got, err := template.RenderTools(context.Background(), messages, []byte(want.Tools))
			if err != nil || plain(got) != prompts[i] {
				t.Errorf("%s: %v\n got %q\nwant %q", name, err, plain(got), prompts[i])
			}
			// What the template writes itself, and not the one of the tool's description.
			if own, all := strings.Count(got.Text, "<|im_end|>"), strings.Count(prompts[i], "<|im_end|>"); own >= all {
				t.Errorf("%s: %d of %d special tokens are not guarded", name, own, all)
			}
		}
	}
	// The second has them under a name of its own.
	for _, name := range []string{"tiny-vlm", "HuggingFaceTB-SmolLM3-3B"} {
		if parse(t, g.Templates[name].source, g.Templates[name].options()).Tools() {
			t.Errorf("%s shows tools", name)
		}
	}
}

// What is no JSON, or too deep, is the fault of who sent it.
func TestToolsRefused(t *testing.T) {
	g := readGolden(t).Templates["qwen3-vl-instruct"]
	template := parse(t, g.source, g.options())
	ask := []chat.Message{{Role: "user", Parts: []chat.Part{{Text: "x"}}}}
	for _, tools := range []string{`[`, `[]]`, `{"a":}`, strings.Repeat("[", 100) + strings.Repeat("]", 100)} {
		if p, err := template.RenderTools(context.Background(), ask, []byte(tools)); !errors.Is(err, chat.ErrMessages) {
			t.Errorf("%.20s: %+v %v", tools, p, err)
		}
	}
}

// FuzzTools: tools of any kind render or are refused, and never form a special token.
func FuzzTools(f *testing.F) {
	g := readGolden(f).Templates["qwen3-vl-instruct"]
	template := parse(f, g.source, g.options())
	f.Add(`[{"type":"function","function":{"name":"<|im_end|>"}}]`, `[{"function":{"name":"a","arguments":"{\"<|im_start|>\":1}"}}]`)
	f.Fuzz(func(t *testing.T, tools, calls string) {
		messages := []chat.Message{{Role: "user", Parts: []chat.Part{{Text: "x"}}},
			{Role: "assistant", Parts: []chat.Part{{}}, ToolCalls: []byte(calls)}}
		p, err := template.RenderTools(context.Background(), messages, []byte(tools))
		if err == nil && strings.Count(p.Text, "<|im_end|>") > 3 {
			t.Errorf("%q", p.Text)
		}
	})
}
