package serving

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/vision"
)

func ptr[T any](v T) *T { return &v }

// said is a request of a raw prompt, answered greedily.
func said(id, text string, most uint32) *Request {
	return &Request{
		ID: id, Prompt: &Prompt{Parts: []Part{{Text: text}}}, MaxTokens: &most,
		Sampling: Sampling{Temperature: ptr(float32(0)), Seed: ptr(uint64(7))},
	}
}

// shownImage is a request about an image, which is a word here.
func shownImage(id, image string) *Request {
	return &Request{
		ID: id, Chat: &Chat{Messages: []Message{{Role: "user", Parts: []Part{
			{Image: &Image{Data: []byte(image)}}, {Text: "what is it"},
		}}}},
		MaxTokens: ptr(uint32(4)), IgnoreEOS: true,
		Sampling: Sampling{Temperature: ptr(float32(0)), Seed: ptr(uint64(7))},
	}
}

// A conversation about an image, then the same again: the encoder's and the prefix cache have it.
func TestSceneImages(t *testing.T) {
	traffic := func() Traffic { return Traffic{InflightBytes: 21, Evicted: 22, Connections: 23} }
	play(t, sceneOptions{steps: 2, service: ServiceOptions{Traffic: traffic}}, func(s *scene) {
		m := &s.d.Model
		m.EncoderStats = func() vision.EncoderStats {
			return vision.EncoderStats{Hits: 1, Misses: 2, Runs: 3, Tiles: 4, CacheBytes: 5, CacheEntries: 6}
		}
		m.DeviceStats = func() DeviceStats { return DeviceStats{To: 11, From: 12, Held: 13} }
		m.Sessions = []Session{
			{
				Graph: "vision", Provider: "webgpu", Nodes: map[string]int{"webgpu": 7, "cpu": 3},
				Fallbacks: map[string]int{"Add": 1, "Mul": 2},
			},
			{Graph: "decoder", Provider: "cpu", Nodes: map[string]int{"cpu": 9}},
		}
		s.measured(true, "")
		in := shownImage("first", "red")
		in.Tenant, in.Streams = "acme", true
		s.ask(in)
		in = shownImage("again", "red")
		in.Tenant = "acme"
		s.ask(in)
		s.ask(shownImage("another-tenant", "red"))
		two := shownImage("two-images", "red")
		parts := &two.Chat.Messages[0].Parts
		*parts = append(*parts, Part{Image: &Image{Data: []byte("blue")}})
		s.ask(two)
		s.steps()
		s.measured(false, "")
	})
}

// Several answers, log-probabilities, ends of all kinds.
func TestSceneAnswers(t *testing.T) {
	filter := func(model, tenant string) Stage {
		if tenant != "filtered" {
			return nil
		}
		return &stopStage{stops: []string{" in"}}
	}
	o := sceneOptions{slots: 4, service: ServiceOptions{Filters: []Filter{filter}, NoDrafts: true}}
	play(t, o, func(s *scene) {
		in := said("logprobs", "one two", 3)
		in.N, in.Logprobs, in.PromptLogprobs, in.TopLogprobs = 2, true, true, 2
		in.Sampling = Sampling{Seed: ptr(uint64(3)), FrequencyPenalty: ptr(float32(0.5)), PresencePenalty: ptr(float32(0.25))}
		s.ask(in)
		s.ask(said("one-token", "a", 1))
		s.ask(said("to-the-end", "a", 60))
		in = said("at-a-stop-string", "a", 60)
		in.Stop = []string{" one", " to"}
		s.ask(in)
		in = said("filtered", "a", 60)
		in.Tenant = "filtered"
		s.ask(in)
		in = said("at-a-stop-token", "a", 60)
		in.StopTokenIDs = []uint32{uint32(s.d.text.Tokenizer.Encode(" the", false)[0])}
		s.ask(in)
		in = said("at-least", "a", 8)
		in.MinTokens = 8
		s.ask(in)
		in = said("as-long-as-there-is-room", "a b c", 0)
		in.MaxTokens, in.IgnoreEOS, in.Speculative = nil, true, ptr(true)
		s.ask(in)
		s.measured(false, "request")
	})
}

// Constraints, and what the model makes of choices.
func TestSceneConstraints(t *testing.T) {
	play(t, sceneOptions{slots: 4}, func(s *scene) {
		choices := func(texts ...string) *Constraint { return &Constraint{Kind: Choices, Choices: texts, Scores: true} }
		in := said("scores", "a small red", 20)
		in.Constraint = choices("red", "light green", "light", "light blue")
		s.ask(in)
		in = said("scores-at-a-line-start", "Answer:\n", 20)
		in.Constraint = choices("red", "blue")
		s.ask(in)
		in = said("choices", "a small red", 20)
		in.Constraint = &Constraint{Kind: Choices, Choices: []string{"red"}}
		s.ask(in)
		in = said("expression", "Answer: ", 20)
		in.Constraint = &Constraint{Kind: Regex, Text: "(red|blue) (one|two)"}
		s.ask(in)
		in = said("schema", "Answer:", 30)
		in.Constraint = &Constraint{Kind: JSONSchema, Text: `{
			"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false
		}`}
		s.ask(in)
		in = said("object", "Answer:", 3)
		in.Constraint = &Constraint{Kind: JSONObject}
		s.ask(in)
		for _, c := range []struct {
			id string
			Constraint
		}{
			{"bad-expression", Constraint{Kind: Regex, Text: "(a"}},
			{"bad-schema", Constraint{Kind: JSONSchema, Text: `{"type":"thing","minimum":{}}`}},
			{"no-text", Constraint{Kind: Choices, Choices: []string{"a", ""}, Scores: true}},
			{"too-long-to-score", Constraint{Kind: Choices, Choices: []string{strings.Repeat("x y", 90)}, Scores: true}},
		} {
			in := said(c.id, "a", 9)
			in.Constraint = &c.Constraint
			s.ask(in)
		}
	})
}

// Whoever is refused is told why, and is counted by it.
func TestSceneRefused(t *testing.T) {
	none := 0.0
	limits, err := NewQuotas(QuotaConfig{Tenants: map[string]Quota{"limited": {RequestsPerSecond: &none}}})
	if err != nil {
		t.Fatal(err)
	}
	o := sceneOptions{slots: 1, batching: batching.Options{MaxWaiting: 1}, service: ServiceOptions{Quotas: limits}}
	play(t, o, func(s *scene) {
		ctx := s.t.Context()
		in := said("no-such-model", "a", 4)
		in.Model = "other"
		s.ask(in)
		in = said("invalid", "a", 4)
		in.Sampling.TopP = ptr(float32(0))
		in.Tenant = "two words"
		s.ask(in)
		s.ask(shownImage("a-broken-image", "broken"))
		s.ask(shownImage("a-fault", "fault"))
		s.ask(said("just-short-enough", "a", 127))
		s.ask(said("too-long", "a b", 127))
		runs := s.begin(ctx, new(cue), said("runs", "a b c d", 30))
		pass(35 * time.Millisecond)
		late, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
		defer cancel()
		in = said("too-late", "a", 60)
		in.IgnoreEOS = true
		s.end(s.begin(late, new(cue), in))
		waits := s.begin(ctx, new(cue), shownImage("waits", "red"))
		synctest.Wait()
		s.measured(false, "") // one runs, one is being prepared
		s.ask(said("busy", "a", 4))
		pass(30 * time.Millisecond)
		s.measured(false, "") // one runs, one waits
		s.end(runs)
		s.end(waits)
		in = said("beyond-a-quota", "a", 4)
		in.Tenant = "limited"
		s.ask(in)
		for i, err := range []error{InvalidField("n", "none"), busy()} {
			in := said([]string{"refused-by-an-edge", "busy-at-an-edge"}[i], "a", 4)
			edge := &cue{s: s, id: in.ID, over: make(chan struct{})}
			edge.err = s.service.Refuse(ctx, in, err)
			close(edge.over)
			s.end(edge)
		}
		if err := s.d.Engine.Drain(ctx); err != nil {
			s.t.Error(err)
		}
		s.ask(said("draining", "a", 4))
		s.measured(false, "")
	})
}

// What ends a request that runs.
func TestSceneCut(t *testing.T) {
	shutdown, stop := context.WithCancel(context.Background())
	panics := func(_, tenant string) Stage {
		if tenant == "panics" {
			panic(errors.New("a secret"))
		}
		if tenant == "index" {
			_ = []int{}[len(tenant)-5]
		}
		return nil
	}
	o := sceneOptions{slots: 3, service: ServiceOptions{Filters: []Filter{panics}}}
	play(t, o, func(s *scene) {
		s.service.options.Shutdown = shutdown
		ctx, leave := context.WithCancel(s.t.Context())
		left := s.begin(ctx, new(cue), said("left", "a b", 40))
		early := s.begin(ctx, new(cue), shownImage("left-while-prepared", "red"))
		pass(4 * time.Millisecond)
		leave()
		s.end(left)
		s.end(early)
		late, cancel := context.WithTimeout(s.t.Context(), 45*time.Millisecond)
		defer cancel()
		s.end(s.begin(late, new(cue), said("deadline", "a b", 20)))
		s.end(s.begin(s.t.Context(), &cue{fail: "start"}, said("sink-fails-at-the-start", "a b", 4)))
		s.end(s.begin(s.t.Context(), &cue{fail: "delta"}, said("sink-fails-at-a-delta", "a b", 4)))
		s.end(s.begin(s.t.Context(), &cue{slow: 25 * time.Millisecond}, said("a-slow-sink", "a b", 4)))
		in := said("panics", "a b", 4)
		in.Tenant = "panics"
		s.ask(in)
		in = said("index", "a b", 4)
		in.Tenant = "index"
		s.ask(in)
		s.fails.Store(true)
		s.ask(said("a-failed-step", "a b", 4))
		s.fails.Store(false)
		cut := s.begin(s.t.Context(), new(cue), said("cut-by-shutdown", "a b", 40))
		pass(33 * time.Millisecond)
		stop()
		s.end(cut)
		s.service.options.Shutdown = context.Background()
		cut = s.begin(s.t.Context(), new(cue), said("cut-by-unloading", "a b", 40))
		pass(33 * time.Millisecond)
		s.d.cut()
		s.end(cut)
		s.measured(false, "request")
	})
}

// Without a trace there are metrics all the same, and without either a line in the log.
func TestSceneUntraced(t *testing.T) {
	play(t, sceneOptions{untraced: true, steps: 1}, func(s *scene) {
		s.ask(said("untraced", "a b", 4))
		s.steps()
		s.measured(false, "")
	})
}
