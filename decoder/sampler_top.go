package decoder

import (
	"cmp"
	"math"
	"slices"

	"github.com/mmserve/mmserve/internal/kernels"
)

// Most is the number of most likely tokens from which the next pick is what it would be from all logits: 1 for the
// most likely token itself, or that of top-k. It is 0 where all are needed: for biases, penalties, ids that must not
// be picked, constraints, log-probabilities, and for sampling without top-k.
func (s *Sampler) Most() int {
	p := &s.sampling
	switch {
	case s.processes() || s.picked < p.MinTokens || p.Constraint != nil || p.Logprobs:
		return 0
	case s.greedy:
		return 1
	}
	return max(p.TopK, 0)
}

// Pick is Sample given the most likely tokens only, Most or more of a larger vocabulary, the most likely first and
// among equals the lowest id. ok is false, and nothing has happened, when the last is as likely as the last that top-k
// keeps: others that are as likely may be missing.
func (s *Sampler) Pick(ids []int64, logits []float32) (t Token, ok bool, err error) {
	best := logits[0]
	if b := float64(best); math.IsNaN(b) || math.IsInf(b, 0) {
		return Token{}, true, errLogits
	}
	t.ID = int32(ids[0])
	if !s.greedy {
		cut, scale := logits[s.sampling.TopK-1], 1/s.sampling.Temperature
		if logits[len(logits)-1] >= cut {
			return Token{}, false, nil
		}
		s.kept = s.kept[:0]
		for i, l := range logits {
			if l >= cut {
				s.kept = append(s.kept, candidate{id: int32(ids[i]), rank: l})
			}
		}
		slices.SortFunc(s.kept, func(a, b candidate) int { return cmp.Compare(a.id, b.id) })
		mass, n := 0.0, 0
		for _, c := range s.kept {
			if c.weight = float64(kernels.Exp((c.rank - best) * scale)); c.weight > 0 {
				s.kept[n] = c
				mass += c.weight
				n++
			}
		}
		s.kept = s.kept[:n]
		u := float64(s.rng.Uint64()>>11) / (1 << 53)
		t.ID = int32(pick(s.narrow(best, scale, true, mass, 0), u))
	}
	s.accept(t.ID)
	return t, true, nil
}
