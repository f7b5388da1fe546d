package decoder

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// Pick must give, from the 64 most likely tokens, what Sample gives from all logits, draw for draw.
func TestPickEqualsSample(t *testing.T) {
	const vocab, most = 1000, 64
	for name, sampling := range map[string]Sampling{
		"greedy":      {},
		"top-k":       {Temperature: 0.8, TopK: 20, Seed: 1},
		"top-k top-p": {Temperature: 1.2, TopK: 50, TopP: 0.7, Seed: 2},
		"min-p":       {Temperature: 1, TopK: 40, MinP: 0.05, Seed: 3},
		"typical":     {Temperature: 1, TopK: 40, TypicalP: 0.5, Seed: 4},
	} {
		t.Run(name, func(t *testing.T) {
			all, few := NewSampler(sampling), NewSampler(sampling)
			rng := rand.New(rand.NewPCG(5, 6))
			for range 200 {
				logits := make([]float32, vocab)
				for i := range logits {
					logits[i] = float32(math.Round(rng.NormFloat64()*40)) / 10 // with equals
				}
				order := make([]int64, vocab)
				for i := range order {
					order[i] = int64(i)
				}
				slices.SortStableFunc(order, func(a, b int64) int { return cmp.Compare(logits[b], logits[a]) })
				top := make([]float32, most)
				for i := range top {
					top[i] = logits[order[i]]
				}
				if n := few.Most(); n == 0 || n > most {
					t.Fatalf("%d of the most likely tokens are wanted", n)
				}
				got, ok, err := few.Pick(order[:most], top)
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					if k := sampling.TopK; top[most-1] != top[k-1] {
						t.Fatalf("not picked, though place %d has %g and the last %g", k, top[k-1], top[most-1])
					}
					got, err = few.Sample(logits)
				}
				want, errAll := all.Sample(logits)
				if got.ID != want.ID || err != nil || errAll != nil {
					t.Fatalf("%d %v, want %d %v", got.ID, err, want.ID, errAll)
				}
			}
		})
	}
}

// A sampler that looks at more than the most likely tokens says so.
func TestMost(t *testing.T) {
	for name, c := range map[string]struct {
		Sampling
		most int
	}{
		"greedy":     {Sampling{}, 1},
		"top-k":      {Sampling{Temperature: 1, TopK: 7}, 7},
		"all":        {Sampling{Temperature: 1}, 0},
		"bias":       {Sampling{LogitBias: map[int32]float32{1: 1}}, 0},
		"penalty":    {Sampling{FrequencyPenalty: 1}, 0},
		"suppressed": {Sampling{Suppress: []int32{3}}, 0},
		"logprobs":   {Sampling{Logprobs: true}, 0},
		"min tokens": {Sampling{MinTokens: 2, Stop: []int32{1}}, 0},
	} {
		if n := NewSampler(c.Sampling).Most(); n != c.most {
			t.Errorf("%s: %d, want %d", name, n, c.most)
		}
	}
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
		if _, _, err := NewSampler(Sampling{}).Pick([]int64{0}, []float32{bad}); err == nil {
			t.Errorf("a most likely token of logit %g was picked", bad)
		}
	}
}
