package tokenizer

import (
	"fmt"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/rangetable"
)

// piece is a part of a text on its way to becoming words.
type piece struct {
	text  string
	first bool // it starts where the text given to Encode does
}

// preTokenizer appends the parts of p, which is not empty, to dst. Empty parts are
// dropped by the next step.
type preTokenizer interface {
	split(dst []piece, p piece) []piece
}

// finder finds the matches of a pattern in a text, leftmost first and without overlaps.
type finder interface {
	findAll(s string, match func(start, end int))
}

// literal finds a string, which is not empty.
type literal string

func (l literal) findAll(s string, match func(start, end int)) {
	for at := 0; ; {
		n := strings.Index(s[at:], string(l))
		if n < 0 {
			return
		}
		match(at+n, at+n+len(l))
		at += n + len(l)
	}
}

// runeSet finds each rune for which it is true.
type runeSet func(rune) bool

func (f runeSet) findAll(s string, match func(start, end int)) {
	for i, r := range s {
		if f(r) {
			match(i, i+utf8.RuneLen(r))
		}
	}
}

// runs finds the longest runs of runes for which class is the same and not 0.
type runs func(rune) (class int)

func (f runs) findAll(s string, match func(start, end int)) {
	start, current := 0, 0
	for i, r := range s {
		if class := f(r); class != current {
			if current != 0 {
				match(start, i)
			}
			start, current = i, class
		}
	}
	if current != 0 {
		match(start, len(s))
	}
}

// behavior says what becomes of the matches of a split.
type behavior string

const (
	removed            behavior = "Removed"
	isolated           behavior = "Isolated"
	mergedWithPrevious behavior = "MergedWithPrevious"
	mergedWithNext     behavior = "MergedWithNext"
	contiguous         behavior = "Contiguous"
)

func (b behavior) check() error {
	switch b {
	case removed, isolated, mergedWithPrevious, mergedWithNext, contiguous:
		return nil
	}
	return fmt.Errorf("behavior %q is not one of Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous", string(b))
}

// splitter cuts a text at the matches of a pattern or, inverted, at what is between them.
type splitter struct {
	find     finder
	behavior behavior
	invert   bool
}

func (sp splitter) split(dst []piece, p piece) []piece {
	switch sp.behavior {
	case mergedWithNext:
		return sp.splitBeforeMatches(dst, p)
	case mergedWithPrevious, contiguous:
		return sp.splitAndJoin(dst, p)
	}
	sp.ranges(p.text, func(start, end int, match bool) {
		if !match || sp.behavior != removed {
			dst = append(dst, piece{p.text[start:end], p.first && start == 0})
		}
	})
	return dst
}

// ranges calls yield for the matches and for what is between them.
func (sp splitter) ranges(s string, yield func(start, end int, match bool)) {
	done := 0
	sp.find.findAll(s, func(start, end int) {
		if done < start {
			yield(done, start, sp.invert)
		}
		yield(start, end, !sp.invert)
		done = end
	})
	if done < len(s) {
		yield(done, len(s), sp.invert)
	}
}

// splitAndJoin joins a range to the one before it: a match after what is no match, or
// for contiguous one of the same kind.
func (sp splitter) splitAndJoin(dst []piece, p piece) []piece {
	from, to, some, previous := 0, 0, false, false
	sp.ranges(p.text, func(start, end int, match bool) {
		join := match && !previous
		if sp.behavior == contiguous {
			join = match == previous
		}
		if !join && some {
			dst = append(dst, piece{p.text[from:to], p.first && from == 0})
			from = start
		}
		to, some, previous = end, true, match
	})
	return append(dst, piece{p.text[from:to], p.first && from == 0})
}

// splitBeforeMatches joins a match to the range after it, unless that is a match too.
func (sp splitter) splitBeforeMatches(dst []piece, p piece) []piece {
	from, pending := 0, false // pending: the range before is a match, which starts at from
	sp.ranges(p.text, func(start, end int, match bool) {
		if pending && match {
			dst = append(dst, piece{p.text[from:start], p.first && from == 0})
			from = start
		} else if !pending {
			from = start
		}
		if pending = match; !match {
			dst = append(dst, piece{p.text[from:end], p.first && from == 0})
		}
	})
	if pending {
		dst = append(dst, piece{p.text[from:], p.first && from == 0})
	}
	return dst
}

// scanner cuts a text into consecutive words: next returns where the word that starts
// at s[i] ends.
type scanner func(s string, i int) (end int)

func (next scanner) split(dst []piece, p piece) []piece {
	for i := 0; i < len(p.text); {
		end := next(p.text, i)
		dst = append(dst, piece{p.text[i:end], p.first && i == 0})
		i = end
	}
	return dst
}

// prefixSpace puts a space before a text that does not start with one.
type prefixSpace struct{}

func (prefixSpace) split(dst []piece, p piece) []piece {
	if !strings.HasPrefix(p.text, " ") {
		p.text = " " + p.text
	}
	return append(dst, p)
}

// byteAlphabet maps a text to the byte-level alphabet. Where this is the last step it is
// left to the word cache, which then has fewer words to map.
type byteAlphabet struct{}

func (byteAlphabet) split(dst []piece, p piece) []piece {
	p.text = toByteLevel(p.text)
	return append(dst, p)
}

// metaspacePreTokenizer writes spaces as a replacement, puts one before the text, and
// cuts before each.
type metaspacePreTokenizer struct {
	replacement string
	prepend     string // always, first (only where the text starts) or never
	cut         splitter
	whole       bool // do not cut
}

func (m metaspacePreTokenizer) split(dst []piece, p piece) []piece {
	p.text = strings.ReplaceAll(p.text, " ", m.replacement)
	if !strings.HasPrefix(p.text, m.replacement) && (m.prepend == "always" || m.prepend == "first" && p.first) {
		p.text = m.replacement + p.text
	}
	if m.whole {
		return append(dst, p)
	}
	return m.cut.split(dst, p)
}

// isWord says whether r is a word rune (UTS #18, Annex C).
func isWord(r rune) bool {
	if r < utf8.RuneSelf {
		return r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
	}
	return unicode.Is(wordTable(), r)
}

var wordTables = []*unicode.RangeTable{unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc,
	unicode.Other_Alphabetic}

var wordTable = sync.OnceValue(func() *unicode.RangeTable {
	return rangetable.Merge(append(wordTables, unicode.Join_Control)...)
})

// wordRuns tells words from runs of what is neither word nor space.
func wordRuns(r rune) int {
	switch {
	case isWord(r):
		return 1
	case unicode.IsSpace(r):
		return 0
	}
	return 2
}

func isSpace(r rune) bool  { return unicode.IsSpace(r) }
func isNumber(r rune) bool { return unicode.IsNumber(r) }

// isPunctuation is true for ASCII symbols too.
func isPunctuation(r rune) bool {
	if r < utf8.RuneSelf {
		return '!' <= r && r <= '/' || ':' <= r && r <= '@' || '[' <= r && r <= '`' || '{' <= r && r <= '~'
	}
	return unicode.IsPunct(r)
}
