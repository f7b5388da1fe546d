package server_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/openai"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// recital is a decoder that says a text to every prompt, token by token.
type recital struct {
	slots int
	ids   []int32
	at    map[int]int // by slot: tokens said
}

func (r *recital) Capacity() decoder.Capacity {
	return decoder.Capacity{Slots: r.slots, MaxLen: contextLen}
}

func (r *recital) Run(_ context.Context, b *decoder.Batch) (out []decoder.Token, _ error) {
	for _, row := range b.Rows {
		if row.Past == 0 {
			r.at[row.Slot] = 0
		}
		if row.Sampler != nil {
			out = append(out, decoder.Token{ID: r.ids[min(r.at[row.Slot], len(r.ids)-1)]})
			r.at[row.Slot]++
		}
	}
	return out, nil
}

// thinker is a model that says a text, whose template ends with more of the generation prompt.
func thinker(t *testing.T, more, says string) (serving.Model, batching.Runner) {
	t.Helper()
	m := tinyVLM(t)
	source, err := os.ReadFile(filepath.Join(modelDir, "chat_template.jinja"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(source) + "{% if add_generation_prompt %}" + more + "{% endif %}"
	m.Prompter.Template, err = chat.Parse(text, chat.Options{
		BOS: "<|im_start|>", EOS: "<end_of_utterance>", Guarded: m.Prompter.Guarded, Placeholder: "<image>",
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Prompter.Thinking = fusion.FindThinking("a template with <think></think>", m.Prompter.Tokenizer)
	ids := append(m.Prompter.Tokenizer.Encode(says, false), m.EOS[0])
	return m, &recital{slots: 2, ids: ids, at: map[int]int{}}
}

// Thoughts leave apart from the answer by every way out, whether the answer begins them or the prompt does.
func TestReasoning(t *testing.T) {
	for name, c := range map[string]struct{ more, says, thoughts, answer string }{
		"by the answer": {"", "<think>\nIt is a square.\n</think>\n\nA red one.", "It is a square.", "A red one."},
		"by the prompt": {"<think>\n", "It is a square.\n</think>\n\nA red one.", "It is a square.", "A red one."},
		"none":          {"<think>\n\n</think>\n\n", "A red one.", "", "A red one."},
		"endless":       {"<think>\n", "It is a", "It is a", ""},
	} {
		t.Run(name, func(t *testing.T) {
			m, r := thinker(t, c.more, c.says)
			f := startHTTP(t, &m, r, server.Options{})
			checkReasoningGRPC(t, f.grpc, c.thoughts, c.answer)
			checkReasoningHTTP(t, f, c.thoughts, c.answer)
		})
	}
}

func checkReasoningGRPC(t *testing.T, c *client.Client, thoughts, answer string) {
	t.Helper()
	out, err := c.Generate(t.Context(), question())
	if err != nil {
		t.Fatal(err)
	}
	if out.GetText() != answer || out.GetReasoning() != thoughts || out.GetChoices()[0].GetReasoning() != thoughts {
		t.Errorf("%q after %q, want %q after %q", out.GetText(), out.GetReasoning(), answer, thoughts)
	}
	n := out.GetUsage().GetReasoningTokens()
	if (n > 0) != (thoughts != "") || n > out.GetUsage().GetCompletionTokens() {
		t.Errorf("%d tokens of thoughts in %v", n, out.GetUsage())
	}
	_, deltas, finish, err := collect(t.Context(), c, question())
	if err != nil {
		t.Fatal(err)
	}
	text, reasoning := "", ""
	for _, d := range deltas {
		if d.GetReasoning() != "" && text != "" {
			t.Error("thoughts come after the answer has begun")
		}
		text, reasoning = text+d.GetText(), reasoning+d.GetReasoning()
	}
	if text != answer || reasoning != thoughts || finish.GetUsage().GetReasoningTokens() != n {
		t.Errorf("streamed %q after %q, %v", text, reasoning, finish.GetUsage())
	}
	// What is held to a constraint, and what continues a raw prompt, is not told apart.
	raw, err := c.Generate(t.Context(), &pb.GenerateRequest{Input: client.Prompt(client.Text("a")).Input})
	if err != nil || raw.GetReasoning() != "" {
		t.Errorf("a raw prompt: %v %v", raw, err)
	}
}

func checkReasoningHTTP(t *testing.T, f *webFixture, thoughts, answer string) {
	t.Helper()
	var whole openai.ChatCompletion
	if err := json.Unmarshal(read(t, f.post(t, "/v1/chat/completions", chatBody(""))), &whole); err != nil {
		t.Fatal(err)
	}
	said := whole.Choices[0].Message
	if said.Content != answer || said.Reasoning != thoughts ||
		(whole.Usage.CompletionDetails != nil) != (thoughts != "") {
		t.Errorf("%+v and %+v, want %q after %q", said, whole.Usage, answer, thoughts)
	}
	text, reasoning := "", ""
	for _, e := range events(t, f.post(t, "/v1/chat/completions", chatBody(`,"stream":true`))) {
		var chunk struct {
			Choices []struct {
				Delta struct {
					Content   string
					Reasoning string `json:"reasoning_content"`
				}
			}
		}
		if json.Unmarshal([]byte(e), &chunk) == nil && len(chunk.Choices) > 0 {
			text += chunk.Choices[0].Delta.Content
			reasoning += chunk.Choices[0].Delta.Reasoning
		}
	}
	if text != answer || reasoning != thoughts {
		t.Errorf("streamed %q after %q", text, reasoning)
	}
	for _, stream := range []string{"", `,"stream":false`} {
		text, reasoning = "", ""
		for _, line := range strings.Split(string(read(t, f.post(t, "/api/chat", ollamaBody(stream)))), "\n") {
			var one struct {
				Message struct{ Content, Thinking string }
			}
			if json.Unmarshal([]byte(line), &one) == nil {
				text, reasoning = text+one.Message.Content, reasoning+one.Message.Thinking
			}
		}
		if text != answer || reasoning != thoughts {
			t.Errorf("Ollama %s: %q after %q", stream, text, reasoning)
		}
	}
}
