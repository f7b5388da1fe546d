package decoder

import (
	"maps"
	"math"
	"slices"
)

// history is the ids of a prompt and of the tokens that followed.
type history struct {
	index map[int32]int // of each id in seen
	seen  []occurrence
}

// occurrence is an id and how often it was picked: 0 if it is in the prompt only.
type occurrence struct {
	id     int32
	picked int32
}

// at returns the entry of an id, which it makes if there is none. The pointer is valid until the next call.
func (h *history) at(id int32) *occurrence {
	i, ok := h.index[id]
	if !ok {
		if h.index == nil {
			h.index = make(map[int32]int)
		}
		i = len(h.seen)
		h.index[id] = i
		h.seen = append(h.seen, occurrence{id: id})
	}
	return &h.seen[i]
}

func (h *history) clone() history {
	return history{maps.Clone(h.index), slices.Clone(h.seen)}
}

type idBias struct {
	id   int32
	bias float32
}

func biases(m map[int32]float32) []idBias {
	var b []idBias
	for id, bias := range m {
		b = append(b, idBias{id, bias})
	}
	return b
}

func (s *Sampling) repetition() bool { return s.RepetitionPenalty > 0 && s.RepetitionPenalty != 1 }

func (s *Sampling) penalizes() bool {
	return s.repetition() || s.FrequencyPenalty != 0 || s.PresencePenalty != 0
}

// processes tells whether process may change something beside Stop.
func (s *Sampler) processes() bool {
	return len(s.bias) > 0 || s.sampling.penalizes() || len(s.sampling.Suppress) > 0
}

// process returns the logits after bias, penalties and suppression, in scratch unless they are as they were. Ids of
// Stop are suppressed if early. The penalties' order is that of vLLM's apply_penalties
// (vllm/model_executor/layers/utils.py): repetition, frequency, presence.
func (s *Sampler) process(logits []float32, early bool) []float32 {
	if !early && !s.processes() {
		return logits
	}
	s.logits = append(s.logits[:0], logits...)
	x := s.logits
	for _, b := range s.bias {
		if inside(b.id, x) {
			x[b.id] += b.bias
		}
	}
	c := &s.sampling
	for _, o := range s.history.seen {
		if !inside(o.id, x) {
			continue
		}
		l := x[o.id]
		if c.repetition() {
			if l > 0 {
				l /= c.RepetitionPenalty
			} else {
				l *= c.RepetitionPenalty
			}
		}
		if o.picked > 0 {
			l -= c.FrequencyPenalty * float32(o.picked)
			l -= c.PresencePenalty
		}
		if l > math.MaxFloat32 && x[o.id] <= math.MaxFloat32 {
			l = math.MaxFloat32 // a penalty near 0 divides past what a float holds: as likely as can be
		}
		x[o.id] = l
	}
	suppress(x, c.Suppress)
	if early {
		suppress(x, c.Stop)
	}
	return x
}

// suppress makes the ids impossible.
func suppress(x []float32, ids []int32) {
	for _, id := range ids {
		if inside(id, x) {
			x[id] = float32(math.Inf(-1))
		}
	}
}

func inside(id int32, x []float32) bool { return uint(id) < uint(len(x)) }
