package decoder

import (
	"cmp"
	"math"
	"slices"
	"testing"
)

func TestLogprobs(t *testing.T) {
	// Softmax of ln(p) is p.
	logits := ln(.1, .2, .1, .4, .2)
	for name, c := range map[string]struct {
		sampling Sampling
		logits   []float32
		id       int32
		picked   float64
		top      []int32
		prob     []float64
	}{
		"none":     {Sampling{}, logits, 3, .4, nil, nil},
		"one":      {Sampling{TopLogprobs: 1}, logits, 3, .4, []int32{3}, []float64{.4}},
		"below 0":  {Sampling{TopLogprobs: -1}, logits, 3, .4, nil, nil},
		"past all": {Sampling{TopLogprobs: math.MaxInt}, ln(.3, .7), 1, .7, []int32{1, 0}, []float64{.7, .3}},
		"equals":   {Sampling{TopLogprobs: 4}, logits, 3, .4, []int32{3, 1, 4, 0}, []float64{.4, .2, .2, .1}},
		"all":      {Sampling{TopLogprobs: 20}, logits, 3, .4, []int32{3, 1, 4, 0, 2}, []float64{.4, .2, .2, .1, .1}},
		"the model's own": {Sampling{TopLogprobs: 2, Suppress: []int32{3}, LogitBias: map[int32]float32{0: 9},
			Temperature: .1, TopK: 1}, logits, 0, .1, []int32{3, 1}, []float64{.4, .2}},
		"constrained": {Sampling{TopLogprobs: 2, Constraint: allow(1, 2)}, logits, 2, .1, []int32{3, 1},
			[]float64{.4, .2}},
		"nothing finite": {Sampling{TopLogprobs: 4}, []float32{negInf, 8, nan, 8}, 1, .5, []int32{1, 3}, []float64{.5, .5}},
		"falling":        {Sampling{TopLogprobs: 2}, ln(.5, .3, .2), 0, .5, []int32{0, 1}, []float64{.5, .3}},
		"rising":         {Sampling{TopLogprobs: 2}, ln(.2, .3, .5), 2, .5, []int32{2, 1}, []float64{.5, .3}},
	} {
		c.sampling.Logprobs = true
		got, err := NewSampler(c.sampling).Sample(c.logits)
		if err != nil || got.ID != c.id {
			t.Errorf("%s: %+v %v, want %d", name, got, err, c.id)
			continue
		}
		if p := math.Exp(float64(got.Logprobs.Picked)); math.Abs(p-c.picked) > 1e-6 {
			t.Errorf("%s: %d has probability %g, want %g", name, got.ID, p, c.picked)
		}
		var top []int32
		for i, x := range got.Logprobs.Top {
			top = append(top, x.ID)
			if p := math.Exp(float64(x.Logprob)); i < len(c.prob) && math.Abs(p-c.prob[i]) > 1e-6 {
				t.Errorf("%s: %d has probability %g, want %g", name, x.ID, p, c.prob[i])
			}
		}
		if !slices.Equal(top, c.top) {
			t.Errorf("%s: the most likely are %v, want %v", name, top, c.top)
		}
	}
	if got, err := NewSampler(Sampling{Logprobs: true, Suppress: []int32{1}}).Sample([]float32{0, inf}); err == nil {
		t.Errorf("+Inf, suppressed: %+v", *got.Logprobs)
	}
}

// Logprobs stay what they were when later tokens come, across slabs; those of a large vocabulary are those of a sort.
func TestLogprobsOfManyTokens(t *testing.T) {
	const k = 20
	s := NewSampler(Sampling{Logprobs: true, TopLogprobs: k, Temperature: 2})
	var tokens []Token
	for i := range 3 * slabLen {
		token, err := s.Sample(normal(uint64(i), 5000))
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, token)
	}
	for i, token := range tokens {
		logits := normal(uint64(i), 5000)
		sum := 0.0
		ids := make([]int32, len(logits))
		for id, l := range logits {
			sum += math.Exp(float64(l))
			ids[id] = int32(id)
		}
		slices.SortStableFunc(ids, func(a, b int32) int { return cmp.Compare(logits[b], logits[a]) })
		want := []TokenLogprob{{token.ID, token.Logprobs.Picked}}
		for _, id := range ids[:k] {
			want = append(want, TokenLogprob{id, float32(float64(logits[id]) - math.Log(sum))})
		}
		got := append([]TokenLogprob{{token.ID, float32(float64(logits[token.ID]) - math.Log(sum))}}, token.Logprobs.Top...)
		if !slices.EqualFunc(got, want, func(a, b TokenLogprob) bool {
			return a.ID == b.ID && math.Abs(float64(a.Logprob-b.Logprob)) < 1e-5
		}) {
			t.Fatalf("token %d: %v, want %v", i, got, want)
		}
	}
}
