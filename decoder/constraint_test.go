package decoder

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// set is a Constraint that allows the same ids each time.
type set struct {
	mask     []uint64
	accepted []int32
}

func (s *set) Mask() []uint64  { return s.mask }
func (s *set) Accept(id int32) { s.accepted = append(s.accepted[:min(len(s.accepted), 99)], id) }

// allow returns the set of the given ids, in a mask of the given words.
func allow(words int, ids ...int) *set {
	m := make([]uint64, words)
	for _, id := range ids {
		m[id/64] |= 1 << (id % 64)
	}
	return &set{mask: m}
}

// every allows one id in step.
func every(vocab, step int) []uint64 {
	m := make([]uint64, (vocab+63)/64)
	for id := 0; id < vocab; id += step {
		m[id/64] |= 1 << (id % 64)
	}
	return m
}

func TestConstraint(t *testing.T) {
	logits := make([]float32, 150)
	for i := range logits {
		logits[i] = float32(i % 100)
	}
	all := every(192, 1)
	for name, c := range map[string]struct {
		constraint *set
		id         int32
	}{
		"one":                         {allow(3, 70), 70},
		"the best of some":            {allow(3, 0, 63, 64, 98, 149), 98},
		"the lowest of equals":        {allow(3, 103, 3, 1), 3},
		"all":                         {&set{mask: all}, 99},
		"a mask short of the best":    {&set{mask: all[:1]}, 63},
		"a mask past the vocabulary":  {allow(10, 9, 150, 500), 9},
		"full words before the bits":  {&set{mask: append(slices.Clone(all[:1]), 1<<35)}, 99},
		"the last word, half a block": {&set{mask: []uint64{0, 0, ^uint64(0)}}, 149},
	} {
		for _, s := range []Sampling{{}, {Temperature: 1e-3}, {Temperature: 1, TopK: 1},
			{Suppress: []int32{500}, Logprobs: true}} {
			s.Constraint = c.constraint
			c.constraint.accepted = nil
			got, err := NewSampler(s).Sample(logits)
			if err != nil || got.ID != c.id || !slices.Equal(c.constraint.accepted, []int32{c.id}) {
				t.Errorf("%s, %+v: %+v %v, accepted %v, want %d", name, s, got, err, c.constraint.accepted, c.id)
			}
		}
	}
}

func TestConstraintAllowsNothing(t *testing.T) {
	logits := []float32{1, negInf, nan, 2}
	for name, s := range map[string]Sampling{
		"no mask":                {Constraint: &set{}},
		"no bit":                 {Constraint: allow(1)},
		"nothing finite":         {Constraint: allow(1, 1, 2)},
		"past the vocabulary":    {Constraint: allow(2, 4, 100)},
		"suppressed":             {Constraint: allow(1, 3), Suppress: []int32{3}},
		"suppressed, min tokens": {Constraint: allow(1, 0, 3), Suppress: []int32{3, 0}, Stop: []int32{3}, MinTokens: 1},
	} {
		if got, err := NewSampler(s).Sample(logits); err != errLogits {
			t.Errorf("%s: %+v %v", name, got, err)
		}
		if a := s.Constraint.(*set).accepted; a != nil {
			t.Errorf("%s: accepted %v", name, a)
		}
	}
}

// What is sampled under a mask is what is sampled when all other logits are -Inf.
func TestConstraintIsMinusInfinity(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 100 {
		n := 1 + rng.IntN(3000)
		logits := normal(uint64(i), n)
		mask, masked := make([]uint64, (n+63)/64), slices.Clone(logits)
		density := rng.IntN(3)
		for w := range mask {
			mask[w] = []uint64{rng.Uint64() & rng.Uint64() & rng.Uint64(), rng.Uint64(), ^uint64(0)}[min(density+rng.IntN(2), 2)]
		}
		mask[0] |= 1
		for id := range masked {
			if mask[id/64]>>(id%64)&1 == 0 {
				masked[id] = negInf
			}
		}
		c := Sampling{Temperature: 1, Seed: uint64(i), TopK: 20 * (i % 2), MinP: .1 * float32(i%3)}
		want, err := NewSampler(c).Sample(masked)
		if err != nil {
			t.Fatal(err)
		}
		c.Constraint = &set{mask: mask}
		if got, err := NewSampler(c).Sample(logits); err != nil || got.ID != want.ID {
			t.Errorf("%d: %d %v, want %d", i, got.ID, err, want.ID)
		}
	}
}

func BenchmarkGather(b *testing.B) {
	const vocab = 49152
	logits := normal(1, vocab)
	for name, step := range map[string]int{"16": vocab / 16, "half": 2, "all": 1} {
		b.Run(name, func(b *testing.B) {
			mask := every(vocab, step)
			var dst []float32
			for b.Loop() {
				dst = gather(dst[:0], logits, mask)
			}
		})
	}
}

// scoring is a constraint that allows id 1 alone, and notes what it is told of all ids.
type scoring struct{ told []float32 }

func (s *scoring) Mask() []uint64 { return []uint64{1 << 1} }
func (s *scoring) Accept(int32)   {}
func (s *scoring) Score(logprob func(id int32) float32) {
	for id := range int32(4) {
		s.told = append(s.told, logprob(id))
	}
}

// TestScorer holds that a Scorer is told the model's own distribution, whatever bias and mask make of it.
func TestScorer(t *testing.T) {
	c := &scoring{}
	s := NewSampler(Sampling{Constraint: c, LogitBias: map[int32]float32{2: 9}, Temperature: 2})
	logits := []float32{0, 1, 2, -1}
	token, err := s.Sample(logits)
	if err != nil || token.ID != 1 || token.Logprobs != nil {
		t.Fatalf("%+v, %v", token, err)
	}
	sum := 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x))
	}
	for i, x := range logits {
		if want := float64(x) - math.Log(sum); math.Abs(float64(c.told[i])-want) > 1e-6 {
			t.Errorf("id %d: %v, want %v", i, c.told[i], want)
		}
	}
}
