package server_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/racetest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// A prompt's ids are told as far as they fit one message with all else.
func TestLargePromptIDs(t *testing.T) {
	const context, most = 300_000, 262_144
	m := tinyVLM(t)
	m.MaxLen = context
	e := newEngine(t, decodertest.NewHash(1, context, vocab), batching.Options{NoPrefixCache: true, PrefillChunk: context})
	f := serve(t, m, e, server.Options{})
	list := make([]uint32, most)
	for i := range list {
		list[i] = vocab - 1
	}
	in := client.Prompt(tokens(list...))
	in.ReturnTokenIds, in.MaxTokens = true, proto.Uint32(1)
	got, err := f.Generate(t.Context(), in)
	if err != nil || len(got.GetPromptTokenIds()) != most || proto.Size(got) > 4<<20 {
		t.Errorf("%d ids in %d bytes, %v", len(got.GetPromptTokenIds()), proto.Size(got), err)
	}
	in.GetPrompt().Parts = append(in.GetPrompt().Parts, client.Text("a"))
	_, err = f.Generate(t.Context(), in)
	checkViolation(t, err, "return_token_ids", "want false")
	_, err = pb.NewInferenceServiceClient(f.conn).CountTokens(t.Context(), in)
	checkViolation(t, err, "return_token_ids", "want false")
}

// No message is larger than what clients accept: a stream tells log-probabilities in pieces, a unary call that would
// not fit is refused before any work, and one that fits tells the same.
func TestLargeAnswers(t *testing.T) {
	if racetest.Enabled {
		t.Skip("one goroutine at a time runs, for long; make test runs this without the race detector, too")
	}
	const context = 1 << 15
	m := tinyVLM(t)
	m.MaxLen = context
	e := newEngine(t, decodertest.NewHash(2, context, vocab), batching.Options{NoPrefixCache: true, MaxWaiting: 16})
	f := serve(t, m, e, server.Options{})
	in := client.Prompt(client.Text(strings.Repeat("a small red circle ", 5000)))
	in.MaxTokens, in.PromptLogprobs, in.TopLogprobs, in.Logprobs = proto.Uint32(4000), true, 15, true
	in.IgnoreEos = true
	before := f.engine.Stats().Steps
	_, err := f.Generate(t.Context(), in)
	checkViolation(t, err, "input", "have it streamed")
	if ran := f.engine.Stats().Steps - before; ran != 0 {
		t.Errorf("%d steps were run for an answer that does not fit", ran)
	}
	in.MaxTokens = proto.Uint32(20)
	largest, messages, places := 0, 0, 0
	text := ""
	for e, err := range f.Stream(t.Context(), in) {
		if err != nil {
			t.Fatal(err)
		}
		largest, messages = max(largest, proto.Size(e)), messages+1
		places += len(e.GetDelta().GetPromptLogprobs()) + len(e.GetFinish().GetPromptLogprobs())
		text += e.GetDelta().GetText()
	}
	if places < 15_000 || largest > 600<<10 {
		t.Errorf("%d places of the prompt in %d messages of up to %d bytes", places, messages, largest)
	}

	in = client.Prompt(client.Text(strings.Repeat("a small red circle ", 1500)))
	in.MaxTokens, in.PromptLogprobs, in.TopLogprobs, in.IgnoreEos = proto.Uint32(20), true, 10, true
	out, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var pieces []*pb.Logprobs
	for e, err := range f.Stream(t.Context(), in) {
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, append(e.GetDelta().GetPromptLogprobs(), e.GetFinish().GetPromptLogprobs()...)...)
	}
	same := func(a, b *pb.Logprobs) bool { return proto.Equal(a, b) }
	if !slices.EqualFunc(pieces, out.GetPromptLogprobs(), same) || len(pieces) < 4000 {
		t.Errorf("%d places streamed, %d in one message", len(pieces), len(out.GetPromptLogprobs()))
	}

	in = client.Prompt(client.Text("red"))
	in.N, in.MaxTokens, in.Logprobs, in.TopLogprobs = 16, proto.Uint32(5000), true, 20
	_, err = f.Generate(t.Context(), in)
	if err == nil || !strings.Contains(err.Error(), "have it streamed") {
		t.Errorf("16 long answers with log-probabilities: %v", err)
	}
}

// The assistant's last message is continued when that is asked for, and refused otherwise.
func TestContinueFinalMessage(t *testing.T) {
	runner := newChain(1, 430, 4)
	m := tinyVLM(t)
	f := start(t, m, runner, server.Options{})
	in := client.Chat(client.User(client.Text("Describe the picture.")), client.Assistant(client.Text("A large")))
	_, err := f.Generate(t.Context(), in)
	checkViolation(t, err, "chat.messages[1].role", "continue_final_message")
	in.GetChat().ContinueFinalMessage = true
	if _, err := f.Generate(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	prompt := m.Prompter.Tokenizer.Decode(runner.prompts[0], false)
	if !strings.HasSuffix(prompt, "A large") || !strings.Contains(prompt, "Describe the picture.<end_of_utterance>") {
		t.Errorf("the prompt is %q", prompt)
	}
	in = client.Chat(client.User(client.Text("Describe the picture.")))
	in.GetChat().ContinueFinalMessage = true
	_, err = f.Generate(t.Context(), in)
	checkViolation(t, err, "chat.continue_final_message", "the assistant's")
}

// Whether an image had been sent before is told to the same tenant only, unless the server shares what it keeps; and no
// error repeats what a caller wrote.
func TestTenantsAreApart(t *testing.T) {
	for _, share := range []bool{false, true} {
		f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{SharePrefixes: share})
		for i, tt := range []struct {
			tenant string
			cached bool
		}{{"a", false}, {"b", share}, {"a", true}, {"b", true}, {"", share}} {
			in := question()
			in.Tenant = tt.tenant
			out, err := f.Generate(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			if cached := out.GetUsage().GetCachedImageTokens() > 0; cached != tt.cached {
				t.Errorf("shared %v, call %d of tenant %q: cached %v", share, i, tt.tenant, cached)
			}
		}
		in := question()
		in.Model = "hunter2-secret"
		if _, err := f.Generate(t.Context(), in); err == nil || strings.Contains(err.Error()+f.log.String(), "hunter2") {
			t.Errorf("the name of a model is repeated: %v", err)
		}
	}
}
