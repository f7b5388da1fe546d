package server_test

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// gated runs nothing until open is closed.
type gated struct {
	batching.Runner
	open chan struct{}
}

func (g *gated) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	<-g.open
	return g.Runner.Run(ctx, b)
}

// TestAnswers holds that n answers are those of n requests with seeds one apart, and that their prompt is run once.
func TestAnswers(t *testing.T) {
	runner := &gated{Runner: decodertest.NewHash(4, contextLen, vocab), open: make(chan struct{})}
	e := newEngine(t, runner, batching.Options{NoPrefixCache: true})
	f := serve(t, tinyVLM(t), e, server.Options{})
	in := client.Prompt(client.Text("a small red circle on the left"))
	go func() { // the first answer could be over before the last is submitted
		for n := 0; n < 4 && t.Context().Err() == nil; time.Sleep(time.Millisecond) {
			n = f.engine.Stats().Running + f.engine.Stats().Waiting
		}
		close(runner.open)
	}()
	in.MaxTokens, in.Sampling = proto.Uint32(12), &pb.Sampling{Temperature: proto.Float32(1), Seed: proto.Uint64(5)}
	in.N = 4
	before := f.engine.Stats().PromptTokens
	out, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	prompt := int64(out.GetUsage().GetPromptTokens())
	if ran := f.engine.Stats().PromptTokens - before; ran != prompt+3 {
		t.Errorf("%d prompt positions were run for a prompt of %d, want its last one again for each other answer", ran, prompt)
	}
	texts := map[string]bool{}
	total := uint32(0)
	for i, c := range out.GetChoices() {
		alone := proto.CloneOf(in)
		alone.N, alone.Sampling.Seed, alone.Tenant = 1, proto.Uint64(5+uint64(i)), "another"
		want, err := f.Generate(t.Context(), alone)
		if err != nil {
			t.Fatal(err)
		}
		if c.GetText() != want.GetText() || c.GetSeed() != want.GetSeed() ||
			c.GetCompletionTokens() != want.GetUsage().GetCompletionTokens() ||
			c.GetFinishReason() != want.GetFinishReason() {
			t.Errorf("answer %d is %v, alone it is %v", i, c, want)
		}
		texts[c.GetText()] = true
		total += c.GetCompletionTokens()
	}
	if len(texts) != 4 || out.GetText() != out.GetChoices()[0].GetText() || out.GetUsage().GetCompletionTokens() != total {
		t.Errorf("%d different answers of 4, %d tokens: %v", len(texts), total, out)
	}

	// Streamed, each message says whose it is.
	streamed := make([]string, 4)
	finished := 0
	for e, err := range f.Stream(t.Context(), in) {
		if err != nil {
			t.Fatal(err)
		}
		if d := e.GetDelta(); d != nil {
			streamed[d.GetIndex()] += d.GetText()
		}
		if fin := e.GetFinish(); fin != nil {
			finished++
			if c := out.GetChoices()[fin.GetIndex()]; fin.GetUsage().GetCompletionTokens() != c.GetCompletionTokens() {
				t.Errorf("finish %v, want %v", fin, c)
			}
		}
	}
	for i, c := range out.GetChoices() {
		if streamed[i] != c.GetText() {
			t.Errorf("answer %d is streamed as %q, want %q", i, streamed[i], c.GetText())
		}
	}
	if finished != 4 {
		t.Errorf("%d answers were finished, want 4", finished)
	}

	in.N = 5 // and there are four places
	_, err = f.Generate(t.Context(), in)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "n: 5; want at most 4") {
		t.Errorf("five answers of four places: %v, want INVALID_ARGUMENT that names both", err)
	}
	if n := f.engine.Stats().Accepted; n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}

// TestLogprobs holds that log-probabilities are told of the tokens whose text is sent, each once.
func TestLogprobs(t *testing.T) {
	m := tinyVLM(t)
	hash := decodertest.NewHash(1, contextLen, vocab)
	f := start(t, m, hash, server.Options{})
	const prompt, limit = "a small red circle", 20
	in := client.Prompt(client.Text(prompt))
	in.MaxTokens, in.Logprobs, in.TopLogprobs, in.PromptLogprobs = proto.Uint32(limit), true, 3, true
	ids := m.Prompter.Tokenizer.Encode(prompt, false)
	want, err := hash.Alone(fusion.Input{IDs: ids}, decoder.Sampling{Logprobs: true, TopLogprobs: 3}, limit, m.EOS...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	got := out.GetChoices()[0].GetLogprobs()
	if len(got) != len(want) {
		t.Fatalf("log-probabilities of %d tokens, want %d", len(got), len(want))
	}
	for i, l := range got {
		w := want[i]
		if int32(l.GetToken().GetId()) != w.ID || l.GetToken().GetLogprob() != w.Logprobs.Picked ||
			string(l.GetToken().GetText()) != string(m.Prompter.Tokenizer.TokenBytes(w.ID)) || len(l.GetTop()) != 3 {
			t.Errorf("token %d: %v, want %+v", i, l, w)
		}
		for j, top := range l.GetTop() {
			if int32(top.GetId()) != w.Logprobs.Top[j].ID || top.GetLogprob() != w.Logprobs.Top[j].Logprob {
				t.Errorf("token %d, alternative %d: %v, want %+v", i, j, top, w.Logprobs.Top[j])
			}
		}
	}
	// Those of the prompt are what the same tokens would have had as an answer: to greedy decoding, the likeliest's.
	if n := len(out.GetPromptLogprobs()); n != len(ids)-1 {
		t.Fatalf("log-probabilities of %d prompt tokens of %d", n, len(ids))
	}
	for i, l := range out.GetPromptLogprobs() {
		next, err := hash.Alone(fusion.Input{IDs: ids[:i+1]}, decoder.Sampling{Logprobs: true}, 1)
		if err != nil {
			t.Fatal(err)
		}
		top := l.GetTop()[0]
		if int32(l.GetToken().GetId()) != ids[i+1] || int32(top.GetId()) != next[0].ID ||
			top.GetLogprob() != next[0].Logprobs.Picked || l.GetToken().GetLogprob() > top.GetLogprob() ||
			math.IsNaN(float64(l.GetToken().GetLogprob())) {
			t.Errorf("prompt token %d: %v, the likeliest is %+v", i+1, l, next[0])
		}
	}
}

// TestLogprobsOfStop holds that nothing is told of tokens that a stop string was made of.
func TestLogprobsOfStop(t *testing.T) {
	f := start(t, tinyVLM(t), decodertest.NewHash(1, contextLen, vocab), server.Options{})
	in := client.Prompt(client.Text("a small red circle"))
	in.MaxTokens, in.Logprobs = proto.Uint32(20), true
	out, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	spelled := func(list []*pb.Logprobs) (text string, ends []int) {
		for _, l := range list {
			text += string(l.GetToken().GetText())
			ends = append(ends, len(text))
		}
		return text, ends
	}
	text, ends := spelled(out.GetChoices()[0].GetLogprobs())
	if strings.ToValidUTF8(text, "\uFFFD") != out.GetText() {
		t.Fatalf("the tokens spell %q, the text is %q", text, out.GetText())
	}
	from := ends[9] + 1 // within the eleventh token
	in.Stop = []string{text[from:ends[14]]}
	want := text[:ends[9]]
	if ends[10] <= from {
		want = text[:ends[10]]
	}
	var told []*pb.Logprobs
	for e, err := range f.Stream(t.Context(), in) {
		if err != nil {
			t.Fatal(err)
		}
		told = slices.Concat(told, e.GetDelta().GetLogprobs(), e.GetFinish().GetLogprobs())
	}
	if got, _ := spelled(told); got != want {
		t.Errorf("the tokens told of spell %q, want %q", got, want)
	}
}

// TestStopTokenIDs holds that a token of the caller's ends an answer, without text, and even if the model's do not.
func TestStopTokenIDs(t *testing.T) {
	m := tinyVLM(t)
	hash := decodertest.NewHash(1, contextLen, vocab)
	f := start(t, m, hash, server.Options{})
	const prompt = "a small red circle"
	want, err := hash.Alone(fusion.Input{IDs: m.Prompter.Tokenizer.Encode(prompt, false)}, decoder.Sampling{}, 9)
	if err != nil {
		t.Fatal(err)
	}
	in := client.Prompt(client.Text(prompt))
	in.MaxTokens, in.IgnoreEos, in.StopTokenIds = proto.Uint32(20), true, []uint32{uint32(want[8].ID)}
	out, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]int32, 8)
	for i := range ids {
		ids[i] = want[i].ID
	}
	if out.GetFinishReason() != pb.FinishReason_FINISH_REASON_STOP || out.MatchedStop != nil ||
		out.GetUsage().GetCompletionTokens() != 9 || out.GetText() != m.Prompter.Tokenizer.Decode(ids, true) {
		t.Errorf("%v", out)
	}
	in.MinTokens = 12
	if out, err = f.Generate(t.Context(), in); err != nil || out.GetUsage().GetCompletionTokens() < 12 {
		t.Errorf("with min_tokens %v, %v", out, err)
	}
}
