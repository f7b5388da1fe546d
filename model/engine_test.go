package model

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/model/modeltest"
)

// Whatever an engine does for a sequence, its tokens and their probabilities are to the last bit those that it gets
// when it has the model to itself: in chunks of any length, beside others that come and go, from a prefix in the
// cache, after it was preempted, with drafts, as one of several answers; texts and images, greedy and sampled.
func TestEngineEqualsAlone(t *testing.T) {
	for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
		t.Run(string(p), func(t *testing.T) {
			if r := openRunner(t, 1, p); !r.Capacity().Exact {
				t.Skip("without own kernels nothing is promised of chunks of other lengths")
			} else {
				engineEqualsAlone(t, p, r)
			}
		})
	}
}

func engineEqualsAlone(t *testing.T, p graph.Precision, alone decoder.Runner) {
	const requests = 24
	rng := rand.New(rand.NewPCG(7, 8))
	list := make([]batching.Request, requests)
	for i := range list {
		list[i] = mixedRequest(rng, i, list[:i])
	}
	want := make([][]modeltest.Picked, requests)
	e, stop := runEngine(t, alone, batching.Options{NoPrefixCache: true, PrefillChunk: alone.Capacity().MaxLen,
		MaxWaiting: 1})
	for i, r := range list {
		want[i] = receive(t, submit(t, e, r))
	}
	stop()

	many := openRunner(t, 16, p)
	maxLen := many.Capacity().MaxLen
	// A draft model that sees images, and one that does not.
	other := graph.INT4
	if p == other {
		other = graph.INT8 // it is wrong now and then
	}
	draft := openRunner(t, 16, other)
	drafted := func(patches bool) batching.Runner {
		s, err := decoder.NewSpeculator(many, draft, testVocab(t), patches)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	byModel := func(s batching.Stats) bool { return s.RightModelDrafts > 0 && s.RightModelDrafts < s.ModelDrafts }
	for _, o := range []struct {
		name string
		batching.Options
		check  func(batching.Stats) bool
		runner batching.Runner
	}{
		{"chunks of 1", batching.Options{PrefillChunk: 1, NoPrefixCache: true}, nil, many},
		{"chunks of 7", batching.Options{PrefillChunk: 7, NoPrefixCache: true}, nil, many},
		{"chunks of 64", batching.Options{PrefillChunk: 64, NoPrefixCache: true}, nil, many},
		{"whole prompts", batching.Options{PrefillChunk: maxLen, NoPrefixCache: true}, nil, many},
		{"mixed steps", batching.Options{PrefillChunk: 64, NoPrefixCache: true, Clock: ticking()},
			func(s batching.Stats) bool { return s.MixedSteps > 5 }, many},
		{"prefix cache", batching.Options{PrefillChunk: 64},
			func(s batching.Stats) bool { return s.CachedTokens > 100 }, many},
		{"preemption", batching.Options{PrefillChunk: 64, KVTokens: maxLen},
			func(s batching.Stats) bool { return s.Preemptions > 2 }, many},
		{"drafts", batching.Options{PrefillChunk: 64, NoPrefixCache: true, Drafts: 4},
			func(s batching.Stats) bool { return s.RightDrafts > 0 && s.RightDrafts < s.DraftedTokens }, many},
		{"a draft model", batching.Options{PrefillChunk: 64, NoPrefixCache: true, Drafts: 4}, byModel, drafted(true)},
		{"a draft model of text", batching.Options{PrefillChunk: 64, Drafts: 4}, byModel, drafted(false)},
		{"all of it", batching.Options{PrefillChunk: 33, KVTokens: maxLen + 100, Drafts: 7}, byModel, drafted(true)},
	} {
		t.Run(o.name, func(t *testing.T) {
			o.MaxWaiting = requests
			still := time.Now()
			if o.Clock == nil { // drafts are not given up where the machine is busy
				o.Clock = func() time.Time { return still }
			}
			e, stop := runEngine(t, o.runner, o.Options)
			streams := make([]*batching.Stream, requests)
			for i, r := range list {
				streams[i] = submit(t, e, r)
				if i%5 == 4 { // so that some arrive while others decode
					time.Sleep(time.Millisecond)
				}
			}
			for i, s := range streams {
				if got := receive(t, s); !slices.Equal(got, want[i]) {
					t.Errorf("request %d gives\n%v, alone\n%v", i, got, want[i])
				}
			}
			stats := e.Stats()
			stop()
			if o.check != nil && !o.check(stats) {
				t.Errorf("the run did not do what it is for: %+v", stats)
			}
		})
	}
}

// ticking is a clock that goes on by a millisecond whenever it is read.
func ticking() func() time.Time {
	var reads atomic.Int64
	return func() time.Time { return time.Unix(0, reads.Add(1)*int64(time.Millisecond)) }
}

func testVocab(t *testing.T) int {
	t.Helper()
	m, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	return m.Decoder.Vocab
}

// mixedRequest is a text or an image with text, on its own or beginning as an earlier one, or another answer to it.
func mixedRequest(rng *rand.Rand, i int, earlier []batching.Request) batching.Request {
	r := batching.Request{ID: fmt.Sprint(i), MaxTokens: 8 + rng.IntN(40),
		Input: fusion.Input{IDs: modeltest.RandomPrompt(rng, 20+rng.IntN(100))}}
	r.Sampling = decoder.Sampling{Logprobs: true, Seed: uint64(i)}
	if rng.IntN(3) == 0 {
		r.Sampling.Temperature, r.Sampling.TopP, r.Sampling.RepetitionPenalty = 0.8, 0.95, 1.1
	}
	switch {
	case len(earlier) > 0 && rng.IntN(4) == 0:
		like := earlier[rng.IntN(len(earlier))].Input
		r.Input.IDs = append(slices.Clone(like.IDs), r.Input.IDs[:15]...)
		r.Input.Spans = like.Spans
	case len(earlier) > 0 && rng.IntN(4) == 0:
		twin := &earlier[rng.IntN(len(earlier))]
		if twin.Group == nil {
			twin.Group = new(batching.Group)
		}
		r.Input, r.Group = twin.Input, twin.Group
	case rng.IntN(2) == 0:
		const hidden, patches = 128, 16
		span := fusion.Span{Start: 3, Len: patches, Patches: make([]float32, patches*hidden), Digest: [32]byte{1, byte(i)}}
		for j := range span.Patches {
			span.Patches[j] = float32(rng.NormFloat64())
		}
		r.Input.Spans = []fusion.Span{span}
	}
	return r
}

func runEngine(t testing.TB, r batching.Runner, o batching.Options) (e *batching.Engine, stop func()) {
	t.Helper()
	e = batching.New(r, o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop) // before the runner's
	return e, stop
}

func submit(t testing.TB, e *batching.Engine, r batching.Request) *batching.Stream {
	t.Helper()
	ticket, err := e.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.Submit(t.Context(), ticket, r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func receive(t *testing.T, s *batching.Stream) []modeltest.Picked {
	t.Helper()
	var tokens []decoder.Token
	for {
		event, err := s.Next(t.Context())
		if err != nil || event.Err != nil {
			t.Fatal(err, event.Err)
		}
		if event.HasToken {
			tokens = append(tokens, event.Token)
		}
		if event.Finish != batching.Running {
			return modeltest.Picks(tokens)
		}
	}
}
