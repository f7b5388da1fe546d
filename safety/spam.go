package safety

import (
	"hash/maphash"
	"strings"
	"unicode"
)

// spam adds up what unasked mass mail is known by: links, text that repeats itself, and what such mail says. What it
// finds is of the text as a whole, up to where it has become sure.
type spam struct {
	found func(Finding)

	word    []byte
	words   int
	links   int
	recent  [shingle]uint64
	seen    map[uint64]int // of runs of words, how often each came
	run     int            // of the same character
	last    rune
	phrases map[string]bool
	doubt   float64 // the probability that it is none, by what was seen; 0 stands for 1
	told    float64
}

// Bounds of what counts as a repetition.
const (
	shingle     = 4       // words
	maxShingles = 1 << 14 // remembered; of longer texts the beginning counts
	maxWord     = 256
)

var spamSeed = maphash.MakeSeed()

// evidence takes something that speaks for it, with how sure it alone would make.
func (s *spam) evidence(what string, score float64, start, end int) {
	if s.phrases == nil {
		s.phrases = map[string]bool{}
	}
	if s.phrases[what] {
		return
	}
	s.phrases[what] = true
	s.add(score, start, end)
}

func (s *spam) add(score float64, start, end int) {
	if s.doubt == 0 {
		s.doubt = 1
	}
	s.doubt *= 1 - score
	if sure := 1 - s.doubt; sure > s.told {
		s.told = sure
		s.found(Finding{Category: Spam, Start: end, End: end, Score: sure})
	}
}

// push takes the next rune, which ends at an offset.
func (s *spam) push(r rune, next int) {
	if s.run++; r != s.last {
		s.last, s.run = r, 1
	}
	if s.run == 40 && !unicode.IsSpace(r) && !strings.ContainsRune("-_=.*#~", r) {
		s.add(0.5, next, next)
	}
	if !unicode.IsSpace(r) {
		if len(s.word) < maxWord {
			s.word = append(s.word, string(unicode.ToLower(r))...)
		}
		return
	}
	if len(s.word) > 0 {
		s.endWord(next)
	}
}

// endWord looks at a word.
func (s *spam) endWord(next int) {
	word := string(s.word)
	s.word = s.word[:0]
	s.words++
	if strings.Contains(word, "://") || strings.HasPrefix(word, "www.") {
		if s.links++; s.links > 1 && s.words < 20*s.links {
			s.add(0.25, next, next)
		}
	}
	copy(s.recent[:], s.recent[1:])
	s.recent[shingle-1] = maphash.String(spamSeed, word)
	if s.words < shingle || len(s.seen) >= maxShingles {
		return
	}
	if s.seen == nil {
		s.seen = map[uint64]int{}
	}
	sum := uint64(0)
	for _, w := range s.recent {
		sum = sum*0x9E3779B97F4A7C15 + w
	}
	if s.seen[sum]++; s.seen[sum] == 5 || s.seen[sum] == 10 {
		s.add(0.4, next, next)
	}
}
