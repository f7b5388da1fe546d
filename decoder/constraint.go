package decoder

import "math/bits"

// Constraint says which tokens may come next. One sequence owns it; its Sampler alone calls it, Mask and then Accept
// once per token.
type Constraint interface {
	// Mask returns the allowed ids as a bitset, bit id%64 of word id/64; valid until the next call. Ids beyond it are not
	// allowed.
	Mask() []uint64
	// Accept takes note of a token that was sampled, stop ids included.
	Accept(id int32)
}

// Deferred is a Constraint that finds its masks on other goroutines after Accept, so that a costly one delays its own
// sequence only. The first mask is ready from the start.
type Deferred interface {
	Constraint
	// Ready reports whether Mask can be called without a wait; it is false for good once Err is not nil. It takes no lock.
	Ready() bool
	// Err is why there will be no more masks, or nil. It takes no lock.
	Err() error
	// Notify has f called, on another goroutine, when Ready or Err has changed. It is set before the first Accept.
	Notify(f func())
}

// Scorer is a Constraint that looks at what the model gives to tokens, of all ids, before its mask is asked for.
type Scorer interface {
	Constraint
	// Score is told the natural logs of probabilities that Logprobs would tell. logprob is valid until it returns, for
	// ids of the vocabulary.
	Score(logprob func(id int32) float32)
}

// NotReady is the ID of the token of a row whose constraint has no mask yet: the row has to be run again.
const NotReady = -1

// Ready reports whether Sample would pick a token. It takes no lock.
func (s *Sampler) Ready() bool { return s.deferred == nil || s.deferred.Ready() }

// Err is why Sample will pick no more tokens, or nil. It takes no lock.
func (s *Sampler) Err() error {
	if s.deferred == nil {
		return nil
	}
	return s.deferred.Err()
}

// Notify has f called, on another goroutine, when Ready or Err has changed.
func (s *Sampler) Notify(f func()) {
	if s.deferred != nil {
		s.deferred.Notify(f)
	}
}

// gather appends to dst the elements of x whose bits are set in mask, in order.
func gather(dst, x []float32, mask []uint64) []float32 {
	for word, set := range mask {
		first := word * 64
		if first >= len(x) {
			break
		}
		block := x[first:min(first+64, len(x))]
		if set == ^uint64(0) {
			dst = append(dst, block...)
			continue
		}
		for ; set != 0; set &= set - 1 {
			if i := bits.TrailingZeros64(set); i < len(block) {
				dst = append(dst, block[i])
			}
		}
	}
	return dst
}

// nthSet returns the index of the bit in mask that has n set bits before it. There is one.
func nthSet(mask []uint64, n int) int {
	word := 0
	for ; n >= bits.OnesCount64(mask[word]); word++ {
		n -= bits.OnesCount64(mask[word])
	}
	set := mask[word]
	for range n {
		set &= set - 1
	}
	return word*64 + bits.TrailingZeros64(set)
}
