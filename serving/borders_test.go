package serving

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

// bordered is a life of the embedded model over an engine with 3 slots and 2 places to wait, in a context of 128.
func bordered(t *testing.T) *life {
	t.Helper()
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	text, err := m.OpenProcessor()
	if err != nil {
		t.Fatal(err)
	}
	prompter := text.Prompter
	d := Run(Model{
		Name: "tiny", MaxLen: 128, Vocab: m.Decoder.Vocab, EOS: text.EOS, Prompter: &prompter, Compiler: nil,
		Defaults: decoder.Sampling{Temperature: 0.5, TopP: 0.9, LogitBias: map[int32]float32{5: 1, 6: 1}},
	}, batching.New(decodertest.NewHash(3, 128, m.Decoder.Vocab), batching.Options{MaxWaiting: 2}))
	o := ServiceOptions{MaxTextBytes: 64, MaxImages: 2, MaxStop: 2, Logger: slog.New(slog.DiscardHandler)}
	s := NewService(Single(d), o)
	return &life{Service: s, deployment: d, model: &d.Model, engine: d.Engine}
}

func asks(edit func(in *Request)) *Request {
	in := &Request{Prompt: &Prompt{Parts: []Part{{Text: "a"}}}}
	edit(in)
	return in
}

func talks(roles ...string) *Request {
	in := &Request{Chat: &Chat{}}
	for _, role := range roles {
		in.Chat.Messages = append(in.Chat.Messages, Message{Role: role, Parts: []Part{{Text: "a"}}})
	}
	return in
}

// times is a list of n values.
func times[T any](n int, v T) []T { return slices.Repeat([]T{v}, n) }

// distinct are n texts.
func distinct(n int) (texts []string) {
	for i := range n {
		texts = append(texts, fmt.Sprint("t", i))
	}
	return texts
}

// Each number that a request may give is tried at its borders: what is just allowed, and what is just not.
func TestNumbersAtTheirBorders(t *testing.T) {
	l := bordered(t)
	nan, vocab := float32(math.NaN()), uint32(l.model.Vocab)
	float := func(field string, set func(*Sampling, *float32), good, bad []float32) {
		for _, list := range [][]float32{good, bad} {
			for _, x := range list {
				in := asks(func(in *Request) { set(&in.Sampling, &x) })
				want := ""
				if slices.Contains(bad, x) || x != x {
					want = "sampling." + field
				}
				refused(t, l, in, want, fmt.Sprintf("%v;", x))
			}
		}
	}
	least, above := float32(math.SmallestNonzeroFloat32), float32(1.0000001)
	float("temperature", func(s *Sampling, x *float32) { s.Temperature = x },
		[]float32{0, 2}, []float32{-least, 2.0000002, nan})
	float("top_p", func(s *Sampling, x *float32) { s.TopP = x }, []float32{least, 1}, []float32{0, above, nan})
	float("min_p", func(s *Sampling, x *float32) { s.MinP = x }, []float32{0, 1}, []float32{-least, above, nan})
	float("typical_p", func(s *Sampling, x *float32) { s.TypicalP = x }, []float32{least, 1}, []float32{0, above, nan})
	float("repetition_penalty", func(s *Sampling, x *float32) { s.RepetitionPenalty = x },
		[]float32{least, 10}, []float32{0, 10.000001, nan})
	float("presence_penalty", func(s *Sampling, x *float32) { s.PresencePenalty = x },
		[]float32{-2, 2}, []float32{-2.0000002, 2.0000002, nan})
	float("frequency_penalty", func(s *Sampling, x *float32) { s.FrequencyPenalty = x },
		[]float32{-2, 2}, []float32{-2.0000002, 2.0000002, nan})
	for _, c := range []struct {
		edit        func(in *Request)
		field, says string
	}{
		{func(in *Request) { in.Sampling.TypicalP = ptr(float32(0)) }, "sampling.typical_p", "0; want above 0 up to 1"},
		{func(in *Request) { in.Sampling.MinP = ptr(float32(2)) }, "sampling.min_p", "2; want from 0 up to 1"},
		{func(in *Request) { in.MaxTokens = ptr(uint32(1)) }, "", ""},
		{func(in *Request) { in.MaxTokens = ptr(uint32(127)) }, "", ""},
		{func(in *Request) { in.MaxTokens = ptr(uint32(0)) }, "max_tokens", "0; want 1 to 127: prompt and answer share a context of 128"},
		{func(in *Request) { in.MaxTokens = ptr(uint32(128)) }, "max_tokens", "128; want 1 to 127"},
		{func(in *Request) { in.MinTokens = 127 }, "", ""},
		{func(in *Request) { in.MinTokens = 128 }, "min_tokens", "128; want at most 127"},
		{func(in *Request) { in.MinTokens, in.MaxTokens = 9, ptr(uint32(9)) }, "", ""},
		{func(in *Request) { in.MinTokens, in.MaxTokens = 10, ptr(uint32(9)) }, "min_tokens", "10; want at most 9"},
		{func(in *Request) { in.StopTokenIDs = times(16, vocab-1) }, "", ""},
		{func(in *Request) { in.StopTokenIDs = times(17, uint32(1)) }, "stop_token_ids", "17 ids; at most 16"},
		{func(in *Request) { in.StopTokenIDs = []uint32{1, vocab} }, "stop_token_ids[1]", "want ids below"},
		{func(in *Request) { in.Sampling.LogitBias = map[uint32]float32{vocab - 1: 100, 0: -100} }, "", ""},
		{func(in *Request) { in.Sampling.LogitBias = map[uint32]float32{vocab: 1} },
			fmt.Sprintf("sampling.logit_bias[%d]", vocab), "want ids below"},
		{func(in *Request) { in.Sampling.LogitBias = map[uint32]float32{3: 100.00001} },
			"sampling.logit_bias[3]", "-100 to 100"},
		{func(in *Request) { in.Sampling.LogitBias = map[uint32]float32{3: -100.00001} },
			"sampling.logit_bias[3]", "-100 to 100"},
		{func(in *Request) { in.Sampling.LogitBias = map[uint32]float32{3: nan} }, "sampling.logit_bias[3]", "NaN"},
		{func(in *Request) { in.Sampling.LogitBias = biases(300) }, "", ""},
		{func(in *Request) { in.Sampling.LogitBias = biases(301) }, "sampling.logit_bias", "301 ids; at most 300"},
		{func(in *Request) { in.N = 5 }, "", ""},
		{func(in *Request) { in.N = 6 }, "n", "6; want at most 5: this server has no more places"},
		{func(in *Request) { in.N = 16 }, "n", "16; want at most 5"},
		{func(in *Request) { in.N = 17 }, "n", "17; want at most 16"},
		{func(in *Request) { in.TopLogprobs, in.Logprobs = 20, true }, "", ""},
		{func(in *Request) { in.TopLogprobs, in.PromptLogprobs = 20, true }, "", ""},
		{func(in *Request) { in.TopLogprobs, in.Logprobs = 21, true }, "top_logprobs", "21; want at most 20"},
		{func(in *Request) { in.TopLogprobs = 1 }, "top_logprobs", "1; want 0 without logprobs"},
	} {
		refused(t, l, asks(c.edit), c.field, c.says)
	}
}

func biases(n int) map[uint32]float32 {
	m := map[uint32]float32{}
	for i := range n {
		m[uint32(i)] = 1
	}
	return m
}

// refused checks that a request is refused for one field, in words that hold says; an empty field: that it is taken.
func refused(t *testing.T, l *life, in *Request, field, says string) {
	t.Helper()
	_, err := l.validate(in)
	var v Violations
	if told, ok := err.(*Error); ok {
		v = told.Violations
	}
	switch {
	case field == "" && err != nil:
		t.Errorf("%v; want it taken", err)
	case field != "" && (len(v) != 1 || v[0].Field != field || !strings.Contains(v[0].Description, says)):
		t.Errorf("%v; want one violation of %s that says %q", err, field, says)
	}
}

// Texts, images, messages and constraints at the borders of their counts and lengths.
func TestInputsAtTheirBorders(t *testing.T) {
	l := bordered(t)
	prompt := func(parts ...Part) *Request { return &Request{Prompt: &Prompt{Parts: parts}} }
	text := func(n int) Part { return Part{Text: strings.Repeat("x", n)} }
	image := Part{Image: &Image{Data: []byte("x")}}
	id := strings.Repeat("~!", 64)
	constrained := func(c Constraint) *Request { return asks(func(in *Request) { in.Constraint = &c }) }
	l.model.Compiler = func() (*constrain.Compiler, error) { return nil, nil }
	going := talks("user", "assistant")
	going.Chat.Continue = true
	starting := talks("user")
	starting.Chat.Continue = true
	short := talks(times(MaxMessages, "user")...)
	for i := range short.Chat.Messages {
		short.Chat.Messages[i].Parts = []Part{{}}
	}
	crowded := talks("user", "user")
	crowded.Chat.Messages[0].Parts = times(MaxParts, Part{})
	full := talks("user")
	full.Chat.Messages[0].Parts = times(MaxParts, Part{})
	twice := talks("user", "user")
	twice.Chat.Messages[0].Parts, twice.Chat.Messages[1].Parts = []Part{text(40)}, []Part{text(25)}
	for _, c := range []struct {
		name        string
		in          *Request
		field, says string
	}{
		{"the longest text", prompt(text(32), text(32)), "", ""},
		{"a byte more", prompt(text(32), text(33)), "input", "65 bytes of text; this server takes at most 64"},
		{"a byte more in two messages", twice, "input", "65 bytes"},
		{"the most images", prompt(image, image), "", ""},
		{"one more", prompt(image, image, image), "input", "3 images; at most 2"},
		{"an empty image", prompt(text(1), Part{Image: &Image{}}), "prompt.parts[1].image.data", "empty"},
		{"no parts", prompt(), "prompt.parts", "none"},
		{"the most parts", prompt(times(MaxParts, Part{})...), "", ""},
		{"a part more", prompt(times(MaxParts+1, Part{})...), "prompt.parts", "2049 parts; at most 2048"},
		{"no messages", talks(), "chat.messages", "none; want at least one"},
		{"a message without parts", &Request{Chat: &Chat{Messages: []Message{{Role: "user"}}}}, "chat.messages[0].parts", "none"},
		{"the most messages' parts", full, "", ""},
		{"one more in the next message", crowded, "chat.messages", "2049 parts up to message 1; at most 2048"},
		{"the most messages", short, "", ""},
		{"too many messages", talks(times(MaxMessages+1, "user")...), "chat.messages", "2049 messages; at most 2048"},
		{"an assistant's end", talks("user", "assistant"), "chat.messages[1].role", "continue_final_message"},
		{"an assistant's end, continued", going, "", ""},
		{"a user's end, continued", starting, "chat.continue_final_message", "true; want false"},
		{"the longest id", asks(func(in *Request) { in.ID, in.Tenant = id, id }), "", ""},
		{"a longer id", asks(func(in *Request) { in.ID = id + "x" }), "request_id", "129 bytes; want at most 128"},
		{"a space in an id", asks(func(in *Request) { in.ID = "a b" }), "request_id", "without spaces"},
		{"a longer tenant", asks(func(in *Request) { in.Tenant = id + "x" }), "tenant", "129 bytes"},
		{"DEL in a tenant", asks(func(in *Request) { in.Tenant = "\x7f" }), "tenant", "1 bytes"},
		{"stop strings", asks(func(in *Request) { in.Stop = []string{"x", strings.Repeat("x", 256)} }), "", ""},
		{"too many", asks(func(in *Request) { in.Stop = times(3, "x") }), "stop", "3 stop strings; at most 2"},
		{"an empty one", asks(func(in *Request) { in.Stop = []string{"x", ""} }), "stop[1]", "0 bytes; want 1 to 256"},
		{"a long one", asks(func(in *Request) { in.Stop = []string{strings.Repeat("x", 257)} }), "stop[0]", "257 bytes"},
		{"no constraint at all", constrained(Constraint{}), "constraint", "empty"},
		{"no choices", constrained(Constraint{Kind: Choices}), "constraint.choices.texts", "none"},
		{"the most choices", constrained(Constraint{Kind: Choices, Choices: times(8192, "a")}), "", ""},
		{"a choice more", constrained(Constraint{Kind: Choices, Choices: times(8193, "a")}),
			"constraint.choices.texts", "8193 texts"},
		{"the most scores", constrained(Constraint{Kind: Choices, Choices: distinct(64), Scores: true}), "", ""},
		{"a score more", constrained(Constraint{Kind: Choices, Choices: distinct(65), Scores: true}),
			"constraint.choices.texts", "65 texts; at most 64"},
		{"a choice twice, scored", constrained(Constraint{Kind: Choices, Choices: []string{"a", "b", "b"}, Scores: true}),
			"constraint.choices.texts[2]", "the same text as texts[1]"},
		{"an expression", constrained(Constraint{Kind: Regex, Text: "a"}), "", ""},
		{"with ignore_eos", asks(func(in *Request) {
			in.Constraint, in.IgnoreEOS = &Constraint{Kind: Regex}, true
		}), "ignore_eos", "true; want false"},
		{"with a stop token", asks(func(in *Request) {
			in.Constraint, in.StopTokenIDs = &Constraint{Kind: Regex}, []uint32{1}
		}), "stop_token_ids", "1 ids; want none"},
	} {
		t.Run(c.name, func(t *testing.T) { refused(t, l, c.in, c.field, c.says) })
	}
	l.model.MaxImages = 1
	refused(t, l, prompt(image), "", "")
	refused(t, l, prompt(image, image), "input", "2 images; at most 1")
	l.model.MaxImages = 3
	refused(t, l, prompt(image, image, image), "input", "3 images; at most 2")
	l.model.Prompter.Preprocessor = nil
	fails(t, l, prompt(text(1), image, image, image), FailedPrecondition, `prompt.parts[1].image.data: model "tiny" takes no images`)
	l.model.Prompter.Template = nil
	fails(t, l, talks("user"), FailedPrecondition, `chat: model "tiny" has no chat template`)
	l.model.Compiler = nil
	fails(t, l, constrained(Constraint{Kind: Regex, Text: "a"}), FailedPrecondition, `constraint: model "tiny" takes none`)
	if _, err := l.validate(prompt(text(1))); err != nil {
		t.Error(err)
	}
}

func fails(t *testing.T, l *life, in *Request, kind Kind, says string) {
	t.Helper()
	if _, err := l.validate(in); KindOf(err) != kind || !strings.Contains(err.Error(), says) {
		t.Errorf("%v; want %v that says %q", err, kind, says)
	}
}

// What a request leaves out is as the model and the server have it, and the model's own is left as it was.
func TestDefaults(t *testing.T) {
	l := bordered(t)
	l.options.NoDrafts = true
	r, err := l.validate(asks(func(in *Request) {}))
	if err != nil {
		t.Fatal(err)
	}
	if s := r.sampling; s.Temperature != 0.5 || s.TopP != 0.9 || s.Seed >= 1<<53 || s.Seed == 0 ||
		r.n != 1 || !r.noDrafts ||
		r.maxTokens != 0 || !slices.Equal(r.eos, l.model.EOS) || !slices.Equal(r.ends, l.model.EOS) {
		t.Errorf("%+v", r)
	}
	r, err = l.validate(asks(func(in *Request) {
		in.Sampling = Sampling{
			Temperature: ptr(float32(1)), TopP: ptr(float32(0.8)), MinP: ptr(float32(0.1)), TypicalP: ptr(float32(0.7)),
			TopK: ptr(uint32(1 << 31)), RepetitionPenalty: ptr(float32(1.5)), PresencePenalty: ptr(float32(1)),
			FrequencyPenalty: ptr(float32(-1)), LogitBias: map[uint32]float32{5: 2}, Seed: ptr(uint64(1 << 60)),
		}
		in.N, in.MinTokens, in.MaxTokens, in.IgnoreEOS = 2, 3, ptr(uint32(4)), true
		in.StopTokenIDs, in.Speculative, in.Stop = []uint32{9}, ptr(true), []string{"x"}
		in.Tenant, in.Peer, in.Priority = "acme", "::1", batching.PriorityInteractive
	}))
	if err != nil {
		t.Fatal(err)
	}
	ends := append(slices.Clone(l.model.EOS), 9)
	want := decoder.Sampling{
		Temperature: 1, TopP: 0.8, MinP: 0.1, TypicalP: 0.7, TopK: l.model.Vocab, RepetitionPenalty: 1.5, PresencePenalty: 1,
		FrequencyPenalty: -1, LogitBias: map[int32]float32{5: 2, 6: 1}, Seed: 1 << 60, MinTokens: 3, Stop: ends,
	}
	if fmt.Sprintf("%+v", r.sampling) != fmt.Sprintf("%+v", want) {
		t.Errorf("sampling\n%+v, want\n%+v", r.sampling, want)
	}
	if r.n != 2 || r.maxTokens != 4 || r.noDrafts || !slices.Equal(r.eos, []int32{9}) || !slices.Equal(r.ends, ends) ||
		r.tenant != "acme" || r.peer != "::1" || r.priority != batching.PriorityInteractive || r.stop[0] != "x" {
		t.Errorf("%+v", r)
	}
	if b := l.model.Defaults.LogitBias; len(b) != 2 || b[5] != 1 {
		t.Errorf("the model's own bias is %v now", b)
	}
	l.model.Defaults.LogitBias = nil
	r, err = l.validate(asks(func(in *Request) { in.Sampling.LogitBias = map[uint32]float32{5: 2} }))
	if err != nil || r.sampling.LogitBias[5] != 2 {
		t.Errorf("a bias where the model has none: %v, %v", r, err)
	}
}

// What a chat says reaches the prompt in order.
func TestPrompts(t *testing.T) {
	l := bordered(t)
	in := talks("system", "user", "assistant")
	in.Chat.Continue = true
	in.Chat.Messages[1].Parts = []Part{{Text: "b"}, {Image: &Image{Data: []byte("one"), Detail: 1}}, {Text: "c"}}
	r, err := l.validate(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []chat.Message{
		{Role: "system", Parts: []chat.Part{{Text: "a"}}},
		{Role: "user", Parts: []chat.Part{{Text: "b"}, {Image: true}, {Text: "c"}}},
		{Role: "assistant", Parts: []chat.Part{{Text: "a"}}},
	}
	if fmt.Sprint(r.prompt.Messages) != fmt.Sprint(want) || !r.prompt.Continue || r.prompt.Raw != nil {
		t.Errorf("%+v", r.prompt)
	}
	image := imagePart{field: "chat.messages[1].parts[1].image.data", data: []byte("one"), detail: 1}
	if len(r.images) != 1 || fmt.Sprint(r.images[0]) != fmt.Sprint(image) {
		t.Errorf("%+v", r.images)
	}
}

// Choices are scored up to their number of tokens, and to the last of the vocabulary.
func TestScorePathsAtTheirBorders(t *testing.T) {
	l := bordered(t)
	tokens := func(text string) int { return len(l.model.Prompter.Tokenizer.Encode(text, false)) }
	long := strings.Repeat("x ", 600)
	for tokens(long) > maxScoredTokens-9 {
		long = long[:len(long)-1]
	}
	rest := "x"
	for tokens(long)+tokens(rest) < maxScoredTokens {
		rest += "#"
	}
	paths, err := l.scorePaths([]string{long, rest}, false, maxScoredTokens)
	if err != nil || len(paths) != 2 || len(paths[0].ids)+len(paths[1].ids) != maxScoredTokens {
		t.Fatalf("%d tokens: %d paths, %v", maxScoredTokens, len(paths), err)
	}
	_, err = l.scorePaths([]string{long, rest + "#"}, false, maxScoredTokens)
	if err == nil || !strings.Contains(err.Error(), "1025 tokens; want at most 1024 with scores") {
		t.Errorf("a token more: %v", err)
	}
	room := tokens(rest)
	if _, err := l.scorePaths([]string{rest}, false, room); err != nil {
		t.Errorf("just enough room: %v", err)
	}
	_, err = l.scorePaths([]string{"x", rest}, false, room-1)
	if err == nil || !strings.Contains(err.Error(), "constraint.choices.texts[1]: ") {
		t.Errorf("a token less room: %v", err)
	}
	last := int(slices.Max(paths[1].ids))
	all := l.model.Vocab
	for vocab, want := range map[int]Kind{last: Invalid, last + 1: OK} {
		l.model.Vocab = vocab
		if _, err := l.scorePaths([]string{rest}, false, 99); KindOf(err) != want {
			t.Errorf("token %d of %d: %v", last, vocab, err)
		}
	}
	l.model.Vocab = all
	padded, err := l.scorePaths([]string{"x", "xy"}, true, 99)
	if err != nil || len(padded) != 4 || !padded[0].ends || !padded[1].ends || padded[2].ends ||
		padded[1].choice != 0 || padded[2].choice != 1 || slices.Equal(padded[0].ids, padded[1].ids) {
		t.Errorf("%+v, %v", padded, err)
	}
	same, err := tokenizer.Parse([]byte(`{
		"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["▁x", -1], ["▁", -2], ["x", -3]]},
		"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
		"decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	l.model.Prompter.Tokenizer = same
	if one, err := l.scorePaths([]string{"x"}, true, 9); err != nil || len(one) != 1 {
		t.Errorf("spellings that are the same tokens give %+v, %v", one, err)
	}
	for vocab, words := range map[int]int{1: 1, 64: 1, 65: 2, 128: 2, 129: 3, 4096: 64} {
		w := newScoreWalk(&scoreNode{}, []int32{int32(vocab - 1)}, nil, vocab)
		if m := w.Mask(); len(m) != words || m[words-1] != 1<<((vocab-1)%64) {
			t.Errorf("the mask of %d tokens has %d words", vocab, len(m))
		}
	}
}

// A tenant that the file names no more is forgotten as the others are.
func TestQuotasForget(t *testing.T) {
	tenants := map[string]Quota{"a": {}, "b": {}}
	q, err := NewQuotas(QuotaConfig{Tenants: tenants})
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{"a", "b", "c"} {
		u, err := q.enter(tenant, "")
		if err != nil {
			t.Fatal(err)
		}
		defer u.end(0, true)
		if tenant != "b" {
			u.end(0, true)
		}
	}
	for _, c := range []struct {
		named []string
		idle  int
	}{{[]string{"a", "b"}, 1}, {[]string{"b"}, 2}, {[]string{"a", "c"}, 0}, {nil, 2}} {
		tenants := map[string]Quota{}
		for _, name := range c.named {
			tenants[name] = Quota{}
		}
		if err := q.set(QuotaConfig{Tenants: tenants}); err != nil || q.idle.Len() != c.idle || q.Tenants() != 3 {
			t.Errorf("with %v named: %d may be forgotten of %d, %v; want %d", c.named, q.idle.Len(), q.Tenants(), err, c.idle)
		}
	}
	for _, n := range []Count{-1, 0, 1} {
		if got, ok := bound(&n); ok != (n >= 0) || ok && got != int(n) {
			t.Errorf("%d bounds at %d: %t", n, got, ok)
		}
	}
	for name, p := range priorityNames {
		if got := Priority(p).String(); got != name {
			t.Errorf("%d is %q", p, got)
		}
	}
	if got := Priority(99).String(); got != "unknown" {
		t.Errorf("99 is %q", got)
	}
}

// What an operator should know of a model's folder, and of where it runs, is in the log.
func TestWarnings(t *testing.T) {
	log := new(lines)
	d := &Deployment{
		config:   Config{Logger: slog.New(slog.NewTextHandler(log, nil))},
		model:    &model.Model{Warnings: []string{"of the model"}},
		text:     &model.Processor{Warnings: []string{"of its text"}, Ignored: []string{"num_beams"}},
		sessions: []ort.Placement{{Graph: "vision", Fallbacks: map[string]int{"Add": 1}}, {Graph: "decoder"}},
	}
	d.warn()
	for _, want := range []string{
		"of the model", "of its text", "settings=[num_beams]", "graph=vision", "fallbacks=map[Add:1]",
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, log.String())
		}
	}
	if got := log.String(); strings.Contains(got, "graph=decoder") || strings.Contains(got, "share a run") {
		t.Errorf("too much is said:\n%s", got)
	}
	d.text.Ignored = nil
	log.Reset()
	if d.warn(); strings.Contains(log.String(), "generation_config") {
		t.Errorf("settings that are not there: %s", log.String())
	}
}

// cold is a tower that does not warm up.
type cold struct{ vision.Tower }

func (cold) WarmUp() error { return errors.New("too cold") }

// A tower that fails to warm up is told of, and the decoder is not tried.
func TestWarmUpFails(t *testing.T) {
	d := &Deployment{tower: cold{}}
	if err := d.warmUp(); err == nil || err.Error() != "warm-up: too cold" {
		t.Errorf("%v", err)
	}
}

// Violations are told together, up to 8 of them.
func TestViolations(t *testing.T) {
	l := bordered(t)
	for n := 7; n <= 9; n++ {
		in := asks(func(in *Request) {})
		for i := range n {
			in.Unread.Add(fmt.Sprint("f", i), "%d", i)
		}
		_, err := l.validate(in)
		var list Violations
		if told, ok := err.(*Error); ok {
			list = told.Violations
		}
		if len(list) != min(n, 8) || len(in.Unread) != min(n, 8) || !strings.HasPrefix(err.Error(), "f0: 0; f1: 1; ") {
			t.Errorf("%d violations are told as %v", n, err)
		}
	}
}
