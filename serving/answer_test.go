package serving

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
)

// heavy are log-probabilities of n places with 20 others each: about 500 bytes a place.
func heavy(n int) []decoder.Logprobs {
	list := make([]decoder.Logprobs, n)
	for i := range list {
		list[i].Picked = -float32(i)
		for id := range 20 {
			list[i].Top = append(list[i].Top, decoder.TokenLogprob{ID: int32(id + 100), Logprob: -1})
		}
	}
	return list
}

// deltas is a sink that keeps what it is given, by value.
type deltas struct {
	list   []Delta
	finish Finish
	fails  bool
}

func (d *deltas) Start(*Start) error { return nil }

func (d *deltas) Delta(e *Delta) error {
	c := *e
	c.Logprobs, c.PromptLogprobs = slices.Clone(e.Logprobs), slices.Clone(e.PromptLogprobs)
	d.list = append(d.list, c)
	if d.fails {
		return errGone
	}
	return nil
}

func (d *deltas) Finish(f *Finish) error {
	d.finish = *f
	return nil
}

// newBareAnswer is an answer of a life whose stream nobody fills.
func newBareAnswer(l *life, to Sink, prompt int) *answer {
	l.rec = &record{ids: make([]int32, prompt), answers: make([]answered, 1), telemetry: noTelemetry()}
	for i := range l.rec.ids {
		l.rec.ids[i] = int32(i % 200)
	}
	return l.newAnswer(&checked{}, 0, &batching.Stream{}, to, false)
}

// Log-probabilities leave in pieces of about 256 KiB, each place once and in order, and what is left with the end.
func TestLogprobsInPieces(t *testing.T) {
	const places = 1500
	l, to := bordered(t), new(deltas)
	a := newBareAnswer(l, to, places+1)
	if err := a.tellPrompt(batching.Event{Prompt: heavy(places)}); err != nil {
		t.Fatal(err)
	}
	at := 0
	check := func(list []Logprobs, whole bool) {
		t.Helper()
		size := 0
		for _, p := range list {
			if at++; p.Token.Logprob != -float32(at-1) || p.Token.ID != int32(at%200) || len(p.Top) != 20 {
				t.Fatalf("place %d is %+v", at-1, p.Token)
			}
			size += p.bytes()
		}
		last := list[len(list)-1].bytes()
		if whole && (size < pieceBytes || size-last >= pieceBytes) || !whole && size >= pieceBytes {
			t.Errorf("a piece has %d bytes, want the first size from %d on", size, pieceBytes)
		}
	}
	for _, d := range to.list {
		check(d.PromptLogprobs, true)
	}
	if len(to.list) < 2 || at == places {
		t.Errorf("%d pieces with %d places", len(to.list), at)
	}
	check(a.prompt, false)
	if at != places {
		t.Errorf("%d places were told, want %d", at, places)
	}

	// The same of an answer, whose last text brings all of them; the last token's text is not out yet.
	to.list, at = nil, 0
	for i, p := range heavy(places) {
		a.made++
		told := a.tokenLogprobs(int32((i+1)%200), &p)
		a.tokens = append(a.tokens, token{begin: i, end: i + 1, logprobs: &told})
	}
	a.passed, a.leaving = places-1, "text"
	a.counts().completion = 9
	if err := a.send(); err != nil {
		t.Fatal(err)
	}
	for i, d := range to.list {
		last := i == len(to.list)-1
		check(d.Logprobs, !last)
		if (d.Text != "") != last || (d.Tokens == 9) != last {
			t.Errorf("piece %d of %d has %q of %d tokens", i, len(to.list), d.Text, d.Tokens)
		}
	}
	if at != places-1 || len(a.tokens) != 1 || len(to.list) < 3 {
		t.Errorf("%d places were told in %d pieces, %d are left", at, len(to.list), len(a.tokens))
	}
	to.fails = true
	a.tokens = append(a.tokens, slices.Repeat(a.tokens, places)...)
	a.passed, a.leaving = places, "more"
	if err := a.send(); !errors.Is(err, errGone) {
		t.Errorf("%v, want the sink's error", err)
	}
	if err := a.finish(&Finish{Reason: FinishStop}); !errors.Is(err, errGone) {
		t.Errorf("%v at the end, want the sink's error", err)
	}
	if err := a.tellPrompt(batching.Event{Prompt: heavy(places)}); !errors.Is(err, errGone) {
		t.Errorf("%v of the prompt, want the sink's error", err)
	}
}

// Sizes count each token's bytes, and what a message needs for it.
func TestLogprobsBytes(t *testing.T) {
	p := Logprobs{Token: TokenLogprob{Text: []byte("abc")}, Top: []TokenLogprob{{Text: []byte("d")}, {Text: []byte("ef")}}}
	if n := p.bytes(); n != 6+3*tokenOverhead {
		t.Errorf("%d bytes", n)
	}
}

// An answer's size is foretold from the vocabulary's mean length, 4 bytes here.
func TestAnswerBytes(t *testing.T) {
	l := bordered(t)
	l.deployment.meanToken = func() float64 { return 4 }
	in := fusion.Input{IDs: make([]int32, 5)}
	for _, c := range []struct {
		n, most, top     int
		logprobs, prompt bool
		want             float64
	}{
		{1, 10, 0, false, false, 80},
		{2, 10, 3, false, false, 120},
		{2, 10, 3, true, false, 120 + 2*10*104},
		{2, 10, 3, false, true, 120 + 5*104},
		{1, 10, 0, true, true, 80 + 10*26 + 5*26},
	} {
		req := &checked{n: c.n, maxTokens: c.most, promptLogprobs: c.prompt}
		req.sampling.Logprobs, req.sampling.TopLogprobs = c.logprobs, c.top
		if got := l.answerBytes(req, in); got != c.want {
			t.Errorf("%+v: %v bytes", c, got)
		}
	}
	ids := &checked{n: 2, maxTokens: 10, tokenIDs: true}
	if got := l.answerBytes(ids, in); got != 120+5*(5+30) {
		t.Errorf("with ids: %v bytes", got)
	}
	req := &checked{n: 1, maxTokens: 10, prompt: fusion.Prompt{Raw: []chat.Part{{Text: "a"}}}}
	for most, want := range map[int]Kind{80: OK, 79: Invalid, 0: OK, 1: Invalid} {
		l.rec = &record{}
		if _, _, err := l.lay(t.Context(), req, nil, most); KindOf(err) != want {
			t.Errorf("an answer of 80 bytes in a message of at most %d: %v", most, err)
		}
	}
}

func TestMeanTokenBytes(t *testing.T) {
	l := bordered(t)
	mean := func(vocab, every int) float64 {
		total, n := 0, 0
		for id := 0; id < vocab; id += every {
			total += len(l.model.Prompter.Tokenizer.TokenBytes(int32(id)))
			n++
		}
		return float64(total) / float64(n)
	}
	for vocab, every := range map[int]int{600: 1, 4096: 1, 8191: 1, 8192: 2} {
		l.model.Vocab = vocab
		if got := meanTokenBytes(l.model); got != mean(vocab, every) {
			t.Errorf("of %d tokens: %v, want %v", vocab, got, mean(vocab, every))
		}
	}
	l.model.Vocab = 0
	if got := meanTokenBytes(l.model); got != 0 {
		t.Errorf("of no tokens: %v", got)
	}
}

// How many tokens an answer may have: what is asked for, or 256, as far as the context goes.
func TestFit(t *testing.T) {
	l := bordered(t)
	l.model.MaxLen = 1000
	for _, c := range []struct {
		prompt, most, least int
		want                int
		field               string
	}{
		{10, 0, 0, 256, ""}, {744, 0, 0, 256, ""}, {745, 0, 0, 255, ""}, {10, 0, 300, 300, ""}, {800, 0, 300, 200, ""},
		{999, 0, 0, 1, ""}, {1000, 0, 0, 0, "input"}, {999, 1, 0, 1, ""}, {999, 2, 0, 0, "max_tokens"},
		{10, 990, 0, 990, ""}, {10, 991, 0, 0, "max_tokens"},
	} {
		req := &checked{maxTokens: c.most, sampling: decoder.Sampling{MinTokens: c.least}}
		n, err := l.fit(req, fusion.Input{IDs: make([]int32, c.prompt)})
		field := ""
		var told *Error
		if errors.As(err, &told) {
			field = told.Violations[0].Field
		}
		if field == "input" && !strings.Contains(err.Error(), "1000 tokens, 0 of them of images; want at most 999, ") {
			t.Errorf("%+v: %v", c, err)
		}
		if n != c.want || field != c.field || errors.Is(err, ErrContextLength) != (field != "") {
			t.Errorf("%+v: %d, %v", c, n, err)
		}
	}
}

// A space at the start of an answer is the template's where the prompt leaves it open, and the answer begins a turn.
func TestTrims(t *testing.T) {
	l := bordered(t)
	tok := l.model.Prompter.Tokenizer
	turn := []chat.Message{{Role: "user"}, {Role: "assistant"}}
	for _, c := range []struct {
		text     string
		messages []chat.Message
		open     bool
		trims    bool
	}{
		{"a", turn[:1], true, true}, {"a", turn, true, false}, {"a", nil, true, false},
		{"a ", turn[:1], false, false}, {"a\n", turn[:1], false, false}, {"a\t", turn[:1], false, false},
		{"a\r", turn[:1], false, false}, {"<end_of_utterance>", turn[:1], true, true},
	} {
		in := fusion.Input{IDs: tok.Encode(c.text, false)}
		if got := l.leadingSpace(in); got != c.open {
			t.Errorf("after %q a space may come: %t", c.text, got)
		}
		if got := l.trims(&checked{prompt: fusion.Prompt{Messages: c.messages}}, in, nil); got != c.trims {
			t.Errorf("a space after %q is left out: %t", c.text, got)
		}
	}
}

// The times of an answer that has ended, and of one that a stage cut while the engine was at it.
func TestTimings(t *testing.T) {
	now := time.Now()
	at := func(ms int) time.Time { return now.Add(time.Duration(ms) * time.Millisecond) }
	r := &record{arrived: at(-1000)}
	full := batching.Timing{Submitted: at(-900), FirstScheduled: at(-850), FirstToken: at(-800), Finished: at(-700)}
	ms := time.Millisecond
	if got := r.timings(full); got.Queue != 50*ms || got.Prefill != 50*ms || got.Decode != 100*ms ||
		got.FirstToken != 200*ms || got.Total < 1000*ms {
		t.Errorf("%+v", got)
	}
	full.Finished = time.Time{}
	if got := r.timings(full); got.Decode < 800*ms || got.Decode > time.Hour {
		t.Errorf("cut: %+v", got)
	}
	full.FirstToken = time.Time{}
	if got := r.timings(full); got.Queue != 50*ms || got.Prefill != 0 || got.Decode != 0 || got.FirstToken != 0 {
		t.Errorf("before the first token: %+v", got)
	}
	full.FirstScheduled = time.Time{}
	if got := r.timings(full); got.Queue != 0 {
		t.Errorf("in the queue: %+v", got)
	}
}

// The sum of answers has the tokens of all, and the times and end of the one that took longest.
func TestTotal(t *testing.T) {
	now := time.Now()
	done := func(ms, tokens int, why FinishReason) answered {
		timing := batching.Timing{Submitted: now, Finished: now.Add(time.Duration(ms) * time.Millisecond), CachedTokens: ms}
		return answered{completion: tokens, finish: why, timing: timing}
	}
	cut := answered{completion: 4, timing: batching.Timing{Submitted: now, Finished: now.Add(time.Hour)}}
	for _, c := range []struct {
		answers []answered
		tokens  int
		finish  FinishReason
		cached  int
	}{
		{nil, 0, Unfinished, 0},
		{[]answered{done(5, 1, FinishStop)}, 1, FinishStop, 5},
		{[]answered{done(5, 1, FinishStop), done(7, 2, FinishLength)}, 3, FinishLength, 7},
		{[]answered{done(7, 1, FinishStop), done(5, 2, FinishLength)}, 3, FinishStop, 7},
		{[]answered{done(7, 1, FinishStop), done(7, 2, FinishLength)}, 3, FinishLength, 7},
		{[]answered{done(7, 1, FinishStop), cut}, 5, FinishStop, 7},
		{[]answered{{completion: 3}, done(7, 1, FinishStop)}, 4, FinishStop, 7},
	} {
		got := (&record{answers: c.answers}).total()
		if got.completion != c.tokens || got.finish != c.finish || got.timing.CachedTokens != c.cached {
			t.Errorf("of %+v: %+v", c.answers, got)
		}
	}
}

// What admission is told of a request.
func TestClaims(t *testing.T) {
	deadline := time.Now()
	for _, c := range []struct {
		req  checked
		want batching.Claim
	}{
		{checked{n: 1}, batching.Claim{Answers: 1, MaxTokens: 256, Endless: true}},
		{checked{n: 2, maxTokens: 9, eos: []int32{1}, tenant: "a", caller: "b", priority: 1, deadline: deadline},
			batching.Claim{Answers: 2, MaxTokens: 9, Tenant: "a", Caller: "b", Priority: 1, Deadline: deadline}},
		{checked{n: 1, scored: []string{"x"}, eos: []int32{1}}, batching.Claim{Answers: 2, MaxTokens: 256}},
	} {
		if got := claim(&c.req); got != c.want {
			t.Errorf("%+v claims %+v, want %+v", c.req, got, c.want)
		}
	}
}

// What a service is not told takes its default.
func TestServiceDefaults(t *testing.T) {
	o := ServiceOptions{}.withDefaults()
	if o.MaxTextBytes != 1<<20 || o.MaxImages != 16 || o.MaxStop != 16 ||
		o.Logger == nil || o.Telemetry == nil || o.Shutdown == nil {
		t.Errorf("%+v", o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	own := ServiceOptions{
		MaxTextBytes: 1, MaxImages: 2, MaxStop: 3, Logger: quietly(), Telemetry: noTelemetry(), Shutdown: ctx,
	}
	if got := own.withDefaults(); fmt.Sprint(got) != fmt.Sprint(own) {
		t.Errorf("%+v, want %+v", got, own)
	}
	cores := runtime.GOMAXPROCS(0)
	if n := cap(modelsNamed().counting); n != cores || runtime.GOMAXPROCS(0) != cores {
		t.Errorf("%d counts at once on %d cores", n, cores)
	}
	c := Config{}.withDefaults()
	if c.Provider != "cpu" || c.Precision != "fp32" || c.Slots != 16 || c.Batching.PrefillChunk != 256 ||
		c.Images.MaxPixels == 0 {
		t.Errorf("%+v", c)
	}
}

// What an answer's text goes through is what its request asks for, and then what the server has for its tenant.
func TestStagesOfARequest(t *testing.T) {
	l := bordered(t)
	l.options.Filters = []Filter{
		func(model, tenant string) Stage {
			if tenant == "" {
				return nil
			}
			return &stopStage{stops: []string{model + tenant}}
		},
	}
	for _, c := range []struct {
		req  checked
		trim bool
		want string
	}{
		{checked{}, false, "[]"},
		{checked{}, true, "[*serving.trimStage]"},
		{checked{stop: []string{"x"}}, false, "[*serving.stopStage]"},
		{checked{stop: []string{"x"}, tenant: "a"}, true, "[*serving.trimStage *serving.stopStage *serving.stopStage]"},
	} {
		var got []string
		for _, s := range l.stages(&c.req, c.trim) {
			got = append(got, fmt.Sprintf("%T", s))
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%+v goes through %v, want %s", c.req, got, c.want)
		}
	}
	list := l.stages(&checked{stop: []string{"x"}, includeStop: true, tenant: "a"}, false)
	if s := list[0].(*stopStage); !s.include || s.stops[0] != "x" {
		t.Errorf("%+v", s)
	}
	if s := list[1].(*stopStage); s.stops[0] != "tinya" {
		t.Errorf("%+v", s)
	}
}

// A character whose last bytes never come is told at the end as what it is not.
func TestReadFlushes(t *testing.T) {
	l := bordered(t)
	a := newBareAnswer(l, new(deltas), 1)
	a.ends = []int32{1}
	ids := l.model.Prompter.Tokenizer.Encode("é", false)
	if len(ids) < 2 {
		t.Fatalf("é is %d tokens, want its bytes apart", len(ids))
	}
	of := func(id int32) batching.Event { return batching.Event{HasToken: true, Token: decoder.Token{ID: id}} }
	if got := a.read(of(ids[0])); got != "" {
		t.Errorf("%q of half a character", got)
	}
	end := of(1)
	end.Finish = batching.Stop
	if got := a.read(end); got != "\ufffd" || a.counts().completion != 2 {
		t.Errorf("%q at the end, after %d tokens", got, a.counts().completion)
	}
	if got := a.read(batching.Event{Finish: batching.Length}); got != "" || a.counts().completion != 2 {
		t.Errorf("%q of an event without a token, %d tokens", got, a.counts().completion)
	}
}

// Log-probabilities without others have none, not an empty list.
func TestTokenLogprobs(t *testing.T) {
	a := newBareAnswer(bordered(t), new(deltas), 1)
	if l := a.tokenLogprobs(5, &decoder.Logprobs{Picked: -1}); l.Top != nil || l.Token.ID != 5 || l.Token.Logprob != -1 {
		t.Errorf("%+v", l)
	}
	one := &decoder.Logprobs{Top: []decoder.TokenLogprob{{ID: 6, Logprob: -2}}}
	if l := a.tokenLogprobs(5, one); len(l.Top) != 1 || l.Top[0].ID != 6 || l.Top[0].Logprob != -2 {
		t.Errorf("%+v", l)
	}
}

// An image's cost is held to each bound that is set, from one on.
func TestImagesOver(t *testing.T) {
	for _, c := range []struct {
		budget        ImageBudget
		tiles, tokens int
		over          bool
	}{
		{ImageBudget{}, 9, 9, false},
		{ImageBudget{Tiles: 1}, 1, 9, false}, {ImageBudget{Tiles: 1}, 2, 9, true},
		{ImageBudget{Tokens: 1}, 9, 1, false}, {ImageBudget{Tokens: 1}, 9, 2, true},
		{ImageBudget{Tiles: 2, Tokens: 3}, 2, 3, false}, {ImageBudget{Tiles: 2, Tokens: 3}, 2, 4, true},
	} {
		if err := imagesOver(c.budget, c.tiles, c.tokens); (KindOf(err) == Invalid) != c.over {
			t.Errorf("%d tiles and %d tokens of %+v: %v", c.tiles, c.tokens, c.budget, err)
		}
	}
}

// A seed has 53 bits, all of which are drawn.
func TestRandomSeed(t *testing.T) {
	var all uint64
	for range 64 {
		all |= randomSeed()
	}
	if all>>52 != 1 {
		t.Errorf("the bits of 64 seeds are %#x", all)
	}
}

// What the prompter says of a prompt is told of the field that it came in.
func TestPromptErrorsNameTheirField(t *testing.T) {
	l := bordered(t)
	bare, err := chat.Parse("{% for m in messages %}{{ m.content }}{% endfor %}", chat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l.model.Prompter.Template = bare
	for field, p := range map[string]fusion.Prompt{
		"prompt.parts":  {Raw: []chat.Part{}},
		"chat.messages": {Messages: []chat.Message{{Role: "user", Parts: []chat.Part{{}}}}},
	} {
		var told *Error
		if _, err := l.tokenize(t.Context(), &checked{prompt: p}, nil); !errors.As(err, &told) ||
			told.Violations[0].Field != field {
			t.Errorf("%v, want it of %s", err, field)
		}
	}
	if err := errors.New("x"); promptError("f", err) != err {
		t.Error("another error became the caller's")
	}
}
