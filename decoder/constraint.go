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
