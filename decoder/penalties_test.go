package decoder

import (
	"math"
	"slices"
	"testing"
)

// The processed logits, by the formulas: with b the bias, r, f and p the penalties and n the number of times that an id
// was picked, an id of the prompt or the output has (l+b)/r or (l+b)·r, and one of the output f·n + p less.
func TestProcess(t *testing.T) {
	logits := []float32{4, -4, 0, 6, -6, 1, negInf, nan}
	for name, c := range map[string]struct {
		sampling Sampling
		prompt   []int32
		output   []int32
		want     []float32
	}{
		"bias": {Sampling{LogitBias: map[int32]float32{0: -8, 5: 2, 6: 100, 7: 1}}, nil, nil,
			[]float32{-4, -4, 0, 6, -6, 3, negInf, nan}},
		"bias outside": {Sampling{LogitBias: map[int32]float32{8: 1, -1: 1, math.MinInt32: 1, 1: 1}}, nil,
			nil, []float32{4, -3, 0, 6, -6, 1, negInf, nan}},
		"repetition of the prompt": {Sampling{RepetitionPenalty: 2}, []int32{0, 1, 2, 0, 6, 7}, nil,
			[]float32{2, -8, 0, 6, -6, 1, negInf, nan}},
		"repetition of the output": {Sampling{RepetitionPenalty: 2}, nil, []int32{0, 0, 1},
			[]float32{2, -8, 0, 6, -6, 1, negInf, nan}},
		"repetition of both": {Sampling{RepetitionPenalty: 2}, []int32{0, 3}, []int32{0, 4},
			[]float32{2, -4, 0, 3, -12, 1, negInf, nan}},
		"repetition wanted": {Sampling{RepetitionPenalty: .5}, []int32{0, 1}, nil,
			[]float32{8, -2, 0, 6, -6, 1, negInf, nan}},
		"repetition near 0 is as likely as can be": {Sampling{RepetitionPenalty: 1e-40}, []int32{0, 2, 6, 7}, nil,
			[]float32{math.MaxFloat32, -4, 0, 6, -6, 1, negInf, nan}},
		"repetition 1 is off":       {Sampling{RepetitionPenalty: 1}, []int32{0}, []int32{1}, logits},
		"repetition below 0 is off": {Sampling{RepetitionPenalty: -1}, []int32{0}, []int32{1}, logits},
		"repetition outside":        {Sampling{RepetitionPenalty: 2}, []int32{-1, 8, 1 << 30}, nil, logits},
		"frequency counts": {Sampling{FrequencyPenalty: .5}, []int32{0, 3, 3}, []int32{0, 1, 0, 0},
			[]float32{2.5, -4.5, 0, 6, -6, 1, negInf, nan}},
		"presence does not": {Sampling{PresencePenalty: .5}, []int32{0, 3, 3}, []int32{0, 1, 0, 0},
			[]float32{3.5, -4.5, 0, 6, -6, 1, negInf, nan}},
		"below 0 they add": {Sampling{FrequencyPenalty: -1, PresencePenalty: -.5}, nil, []int32{0, 0},
			[]float32{6.5, -4, 0, 6, -6, 1, negInf, nan}},
		"bias, repetition, the rest": {Sampling{LogitBias: map[int32]float32{0: 2, 1: 1, 2: -1}, RepetitionPenalty: 2,
			FrequencyPenalty: .25, PresencePenalty: 1}, []int32{2, 3}, []int32{0, 1, 0}, []float32{3 - 1.5, -6 - 1.25, -2, 3,
			-6, 1, negInf, nan}},
		"suppress": {Sampling{Suppress: []int32{3, 5, 8, -1}, LogitBias: map[int32]float32{3: 100}}, nil,
			nil, []float32{4, -4, 0, negInf, -6, negInf, negInf, nan}},
		"min tokens, not yet": {Sampling{MinTokens: 3, Stop: []int32{3, 0, 9}}, nil, []int32{1, 2},
			[]float32{negInf, -4, 0, negInf, -6, 1, negInf, nan}},
		"min tokens, reached": {Sampling{MinTokens: 3, Stop: []int32{3, 0}}, nil, []int32{1, 2, 1}, logits},
	} {
		s := NewSampler(c.sampling)
		s.Prompt(c.prompt)
		for _, id := range c.output {
			s.accept(id)
		}
		raw := slices.Clone(logits)
		got := s.process(raw, s.picked < c.sampling.MinTokens)
		same := func(a, b float32) bool { return a == b || a != a && b != b }
		if !slices.EqualFunc(got, c.want, same) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if !slices.EqualFunc(raw, logits, same) {
			t.Errorf("%s: the model's logits became %v", name, raw)
		}
	}
}

// Greedy tokens from the same logits each time, by hand.
func TestProcessedTokens(t *testing.T) {
	logits := []float32{5, 4.5, 3.2, 1, 0}
	for name, c := range map[string]struct {
		sampling Sampling
		prompt   []int32
		want     []int32
	}{
		"none":        {Sampling{}, nil, []int32{0, 0, 0, 0, 0, 0}},
		"presence":    {Sampling{PresencePenalty: 1}, nil, []int32{0, 1, 0, 0, 0, 0}},
		"frequency":   {Sampling{FrequencyPenalty: 1}, nil, []int32{0, 1, 0, 1, 2, 0}},
		"repetition":  {Sampling{RepetitionPenalty: 2}, []int32{0, 9}, []int32{1, 2, 0, 0, 0, 0}},
		"bias":        {Sampling{LogitBias: map[int32]float32{4: 100}}, nil, []int32{4, 4, 4, 4, 4, 4}},
		"suppress":    {Sampling{Suppress: []int32{1, 0}}, nil, []int32{2, 2, 2, 2, 2, 2}},
		"min tokens":  {Sampling{MinTokens: 2, Stop: []int32{0}}, nil, []int32{1, 1, 0, 0, 0, 0}},
		"constrained": {Sampling{MinTokens: 2, Stop: []int32{3}, Constraint: allow(1, 3, 4)}, nil, []int32{4, 4, 3, 3, 3, 3}},
		// The output is complete, whatever the caller would like.
		"stop alone": {Sampling{MinTokens: 2, Stop: []int32{3}, Constraint: allow(1, 3)}, nil, []int32{3, 3, 3, 3, 3, 3}},
	} {
		s := NewSampler(c.sampling)
		s.Prompt(c.prompt)
		var got []int32
		for range c.want {
			token, err := s.Sample(logits)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, token.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// A fork goes on from the same history; then each has its own.
func TestFork(t *testing.T) {
	logits := normal(3, 3000)
	c := everything()
	c.Logprobs = false
	s := NewSampler(c)
	s.Prompt([]int32{1, 2, 3, 3})
	for range 20 {
		if _, err := s.Sample(logits); err != nil {
			t.Fatal(err)
		}
	}
	own := &set{mask: c.Constraint.Mask()}
	a, b := s.Fork(5, own), s.Fork(5, &set{mask: c.Constraint.Mask()})
	if got, want := a.process(logits, true), s.process(logits, true); !slices.Equal(got, want) {
		t.Error("a fork has other logits than what it was forked from")
	}
	for i := range 20 {
		x, _ := a.Sample(logits)
		if _, err := s.Sample(logits); err != nil { // does not show in the forks
			t.Fatal(err)
		}
		if y, _ := b.Sample(logits); x != y {
			t.Errorf("token %d of two forks with one seed: %d and %d", i, x.ID, y.ID)
		}
	}
	if len(own.accepted) != 20 || a.picked != 40 || s.picked != 40 {
		t.Errorf("the fork's constraint took %d tokens; picked are %d and %d", len(own.accepted), a.picked, s.picked)
	}
	if x, y := s.Fork(6, nil), s.Fork(7, nil); x.rng.Uint64() == y.rng.Uint64() {
		t.Error("two seeds draw alike")
	}
}

func TestPlain(t *testing.T) {
	for _, s := range []Sampling{{},
		{TopK: 4, TopP: .5, MinP: .5, Seed: 9, Stop: []int32{1}, TopLogprobs: 3, RepetitionPenalty: 1}} {
		if !NewSampler(s).Plain() {
			t.Errorf("%+v is not plain", s)
		}
	}
	for _, s := range []Sampling{
		{Temperature: 1}, {LogitBias: map[int32]float32{1: 1}}, {RepetitionPenalty: 1.1}, {FrequencyPenalty: -1},
		{PresencePenalty: 1}, {Suppress: []int32{1}}, {MinTokens: 1}, {Constraint: allow(1, 1)}, {Logprobs: true},
	} {
		if NewSampler(s).Plain() {
			t.Errorf("%+v is plain", s)
		}
	}
}
