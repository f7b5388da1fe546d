package server_test

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/constrain"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

func choices(texts ...string) *pb.Constraint {
	return &pb.Constraint{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{Texts: texts, Scores: true}}}
}

// prior is the probability that a model gives to path after prompt, by one run of both.
func prior(t *testing.T, prompt, path []int32) float64 {
	t.Helper()
	ids := slices.Concat(prompt, path)
	p := &decoder.PromptLogprobs{IDs: ids}
	b := &decoder.Batch{Rows: []decoder.Row{{IDs: ids, Prompt: p}}}
	if _, err := decodertest.NewHash(1, contextLen, vocab).Run(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, l := range p.List[len(prompt)-1:] {
		sum += float64(l.Picked)
	}
	return math.Exp(sum)
}

// TestChoiceScores compares the scores with those of the choices run whole, one by one.
func TestChoiceScores(t *testing.T) {
	m := tinyVLM(t)
	m.Compiler = func() (*constrain.Compiler, error) { return constrain.NewCompiler(m.Prompter.Tokenizer, m.EOS) }
	f := start(t, m, decodertest.NewHash(4, contextLen, vocab), server.Options{})
	for _, tt := range []struct {
		prompt string
		texts  []string
		padded bool
	}{
		{"a small red", []string{"red", "blue", "green"}, true},
		{"Answer:\n", []string{"red", "light green", "light blue", "light"}, false},
		{"a small red", []string{"1", "10", "100 circles", "x"}, true},
		{"a small red", []string{"<end_of_utterance>", "<image>"}, true},
		{"Answer:", []string{" yes", " no"}, false},
		{"Answer:", []string{"alone"}, true},
	} {
		prompt := m.Prompter.Tokenizer.Encode(tt.prompt, m.Prompter.AddSpecial)
		var want []float64
		sum := 0.0
		for _, text := range tt.texts {
			p := 0.0
			for _, spelling := range []string{text, " " + text}[:map[bool]int{false: 1, true: 2}[tt.padded]] {
				path, _ := m.Prompter.Tokenizer.EncodeGuarded(strings.ReplaceAll(spelling, "<", "<\x01"), 1, false)
				one := prior(t, prompt, path)
				if slices.ContainsFunc(tt.texts, func(o string) bool { return o != text && strings.HasPrefix(o, text) }) {
					ends := 0.0
					for _, id := range m.EOS {
						ends += prior(t, slices.Concat(prompt, path), []int32{id})
					}
					one *= ends
				}
				p += one
			}
			want, sum = append(want, p), sum+p
		}
		for _, n := range []uint32{1, 3} {
			in := client.Prompt(client.Text(tt.prompt))
			in.Constraint, in.N, in.MaxTokens = choices(tt.texts...), n, proto.Uint32(40)
			in.Sampling = &pb.Sampling{
				Temperature: proto.Float32(0), LogitBias: map[uint32]float32{7: 50}, RepetitionPenalty: proto.Float32(1.5),
			}
			out, err := f.Generate(t.Context(), in)
			if err != nil || len(out.GetChoiceScores()) != len(want) || !slices.Contains(tt.texts, out.GetText()) {
				t.Errorf("%q: %q, %v, %v", tt.texts, out.GetText(), out.GetChoiceScores(), err)
				continue
			}
			for i, got := range out.GetChoiceScores() {
				if w := want[i] / sum; math.Abs(float64(got)-w) > 1e-4*w {
					t.Errorf("%q after %q: score %d is %v, want %v", tt.texts, tt.prompt, i, got, w)
				}
			}
		}
	}
	if n := f.engine.Stats().Accepted; n != 0 {
		t.Errorf("%d tickets are still out", n)
	}
}

func TestChoiceScoresRefused(t *testing.T) {
	m := tinyVLM(t)
	m.Compiler = func() (*constrain.Compiler, error) { return constrain.NewCompiler(m.Prompter.Tokenizer, m.EOS) }
	f := start(t, m, decodertest.NewHash(2, contextLen, vocab), server.Options{})
	var many, long []string
	for i := range 65 {
		many = append(many, strings.Repeat("x", i+1))
		long = append(long, strings.Repeat("z!", 20+i))
	}
	for _, tt := range []struct {
		texts       []string
		field, says string
	}{
		{many, "constraint.choices.texts", "65 texts; at most 64"},
		{[]string{"a", "b", "a"}, "constraint.choices.texts[2]", "texts[0]"},
		{long[:64], "constraint.choices.texts", "at most 1024"},
		{[]string{strings.Repeat("z!", 400)}, "constraint.choices.texts[0]", "left of the context"},
	} {
		in := client.Prompt(client.Text("a small red"))
		in.Constraint = choices(tt.texts...)
		_, err := f.Generate(t.Context(), in)
		checkViolation(t, err, tt.field, tt.says)
	}
}
