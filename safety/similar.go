package safety

import (
	"hash/maphash"
	"math/bits"
	"unicode"
	"unicode/utf8"
)

// Prints makes fingerprints of prompts that tell near-duplicates: SimHash (Charikar, "Similarity estimation techniques
// from rounding algorithms", 2002) over shingles of letters. A print is 64 bits under a key of this process alone, from
// which no text can be had back. Its methods may be called concurrently.
type Prints struct{ seed maphash.Seed }

// NewPrints draws a key.
func NewPrints() *Prints { return &Prints{maphash.MakeSeed()} }

const (
	shingleRunes = 5        // letters and digits
	minPrinted   = 24       // letters and digits of a text that says anything of who sends it
	maxPrinted   = 32 << 10 // bytes of a text that are looked at, half of them from its end
	nearDistance = 12       // bits by which near-duplicates differ at most, of 64
)

// Of is the print of a text that is asked about images: the same text about other images has another. ok is false of
// texts that are too short to tell.
func (p *Prints) Of(text string, images [][]byte) (print uint64, ok bool) {
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
		return 0, false
	}
	about := uint64(0)
	for _, image := range images {
		about = mix(about ^ maphash.Bytes(p.seed, image))
	}
	var votes [64]int
	for i := 0; i+shingleRunes <= len(starts); i++ {
		end := len(folded)
		if i+shingleRunes < len(starts) {
			end = starts[i+shingleRunes]
		}
		h := mix(maphash.Bytes(p.seed, folded[starts[i]:end]) ^ about)
		for b := range votes {
			votes[b] += int(h>>b&1)*2 - 1
		}
	}
	for b, v := range votes {
		if v > 0 {
			print |= 1 << b
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
func near(a, b uint64) bool { return bits.OnesCount64(a^b) <= nearDistance }
