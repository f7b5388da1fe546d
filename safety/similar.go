package safety

import (
	"hash/maphash"
	"math/bits"
	"unicode"
	"unicode/utf8"
)

// Prints makes fingerprints of prompts that tell near-duplicates: SimHash (Charikar, "Similarity estimation techniques
// from rounding algorithms", 2002) over shingles of letters. A print is 128 bits under a key of this process alone, and
// gives no text back. Its methods may be called concurrently.
type Prints struct{ seed maphash.Seed }

// Print is a fingerprint of a prompt.
type Print [2]uint64

// NewPrints draws a key.
func NewPrints() *Prints { return &Prints{maphash.MakeSeed()} }

const (
	shingleRunes = 5        // letters and digits
	minPrinted   = 24       // letters and digits of a text that says anything of who sends it
	maxPrinted   = 32 << 10 // bytes of a text that are looked at, half of them from its end
	nearDistance = 28       // bits by which near-duplicates differ at most, of 128: about a quarter of the shingles
)

// Of is the print of a text that is asked about images: the same text about other images has another. ok is false of
// texts that are too short to tell.
func (p *Prints) Of(text string, images [][]byte) (print Print, ok bool) {
	if len(text) > maxPrinted {
		text = text[:maxPrinted/2] + text[len(text)-maxPrinted/2:]
	}
	folded := make([]byte, 0, len(text))
	var starts []int
	for _, r := range text {
		if unicode.IsLetter(r) || unicode.IsNumber(r) {
			starts = append(starts, len(folded))
			folded = utf8.AppendRune(folded, unicode.ToLower(r))
		}
	}
	if len(starts) < minPrinted {
		return print, false
	}
	about := uint64(0)
	for _, image := range images {
		about = mix(about ^ maphash.Bytes(p.seed, image))
	}
	var votes [128]int
	for i := 0; i+shingleRunes <= len(starts); i++ {
		end := len(folded)
		if i+shingleRunes < len(starts) {
			end = starts[i+shingleRunes]
		}
		h := mix(maphash.Bytes(p.seed, folded[starts[i]:end]) ^ about)
		second := mix(h + 0x9e3779b97f4a7c15)
		for b := range 64 {
			votes[b] += int(h>>b&1)*2 - 1
			votes[64+b] += int(second>>b&1)*2 - 1
		}
	}
	for b, v := range votes {
		if v > 0 {
			print[b/64] |= 1 << (b % 64)
		}
	}
	return print, true
}

// mix spreads bits, as MurmurHash3 ends.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// near says whether two prints are of texts that are nearly the same.
func near(a, b Print) bool {
	return bits.OnesCount64(a[0]^b[0])+bits.OnesCount64(a[1]^b[1]) <= nearDistance
}
