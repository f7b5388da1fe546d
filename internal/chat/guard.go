package chat

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The guard is one of Unicode's noncharacters U+FDD0..U+FDEF, which interchanged
// text never holds (Unicode 16, section 23.7).
const (
	firstGuard = '\uFDD0'
	lastGuard  = '\uFDEF'
	width      = 3 // bytes of one in UTF-8
)

// guards knows which runes of a user's text need a guard beside them.
//
// A guarded string that appears in the prompt without coming whole from the
// template has either its first rune or a later one from a user's text. So it is
// broken by a guard after every rune that can begin a guarded string, and one
// before a text that starts with a rune that can continue one. That is more
// guards than the occurrences of the strings need, which costs nothing once they
// are removed, and unlike a search for the occurrences it still holds after the
// template has trimmed, split, joined, replaced or lower-cased the text. It takes
// no more than one pass over the text, however many strings are guarded.
type guards struct {
	begin  runeSet // runes that begin a guarded string
	within runeSet // runes at any later place in one
}

// newGuards returns the guards for strs. A string of a single rune cannot be
// broken by anything put inside it, so it is left out: the user may type it.
func newGuards(strs []string) (guards, error) {
	var g guards
	for _, s := range strs {
		if strings.ContainsFunc(s, isGuard) {
			return guards{}, fmt.Errorf("guarded string %q holds a noncharacter of U+FDD0..U+FDEF, which are used as marks", s)
		}
		if utf8.RuneCountInString(s) < 2 {
			continue
		}
		for i, r := range s {
			if i == 0 {
				g.begin.add(r)
			} else {
				g.within.add(r)
			}
		}
	}
	return g, nil
}

func isGuard(r rune) bool { return firstGuard <= r && r <= lastGuard }

// errNoGuard: the caller's texts hold all 32 noncharacters.
var errNoGuard = fmt.Errorf("%w: the text holds every noncharacter U+FDD0..U+FDEF; leave at least one out", ErrMessages)

// mark returns the protector for texts, with a guard rune that none of them holds.
func (g guards) mark(texts func(yield func(string) bool)) (mark, error) {
	var used [lastGuard - firstGuard + 1]bool
	for text := range texts {
		for _, r := range text {
			if isGuard(r) {
				used[r-firstGuard] = true
			}
		}
	}
	for i, taken := range used {
		if !taken {
			return mark{guards: g, guard: firstGuard + rune(i)}, nil
		}
	}
	return mark{}, errNoGuard
}

// mark is the guards with the guard rune of one prompt. Its methods are the string
// operations of the template language for strings that may hold that rune: they act
// as if it were not there, and leave it where it still protects.
type mark struct {
	guards
	guard rune
}

// protect returns text, which a user wrote, with guards. What is not UTF-8 in it
// becomes U+FFFD.
func (m mark) protect(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	var b strings.Builder
	b.Grow(len(text) + len(text)/8)
	if r, _ := utf8.DecodeRuneInString(text); text != "" && m.within.has(r) {
		b.WriteRune(m.guard)
	}
	written := 0
	for i, r := range text {
		if m.begin.has(r) {
			end := i + utf8.RuneLen(r)
			b.WriteString(text[written:end])
			b.WriteRune(m.guard)
			written = end
		}
	}
	b.WriteString(text[written:])
	return b.String()
}

// empty reports whether s is "" without guards.
func (m mark) empty(s string) bool {
	for strings.HasPrefix(s, string(m.guard)) {
		s = s[width:]
	}
	return s == ""
}

// plain returns s without guards.
func (m mark) plain(s string) string {
	if !strings.ContainsRune(s, m.guard) {
		return s
	}
	return strings.ReplaceAll(s, string(m.guard), "")
}

// span is a range of bytes of a string without its guards.
type span struct{ from, to int }

// cut returns the parts of s that spans of m.plain(s) name, with their guards.
// The spans ascend and do not overlap. A part cut off its beginning starts with a
// guard where a user's text would: what is before it may be template text.
func (m mark) cut(s string, spans ...span) []string {
	parts := make([]string, len(spans))
	pos := 0 // where s, which loses its beginning, starts in m.plain(s)
	for i, sp := range spans {
		if sp.from == sp.to {
			continue
		}
		s = s[m.offset(s, sp.from-pos):]
		before := s
		for strings.HasPrefix(s, string(m.guard)) {
			before, s = s, s[width:]
		}
		end := m.offset(s, sp.to-sp.from)
		for strings.HasPrefix(s[end:], string(m.guard)) {
			end += width
		}
		parts[i] = s[:end]
		if r, _ := utf8.DecodeRuneInString(s); m.within.has(r) {
			if len(before) > len(s) { // the guard is there
				parts[i] = before[:width+end]
			} else {
				parts[i] = string(m.guard) + parts[i]
			}
		}
		pos = sp.from
	}
	return parts
}

// offset returns where in s the first n bytes of m.plain(s) end.
func (m mark) offset(s string, n int) int {
	at := 0
	for n > 0 {
		// A guard that starts before the end; the search must not go further than that.
		next := strings.IndexRune(s[at:min(at+n+width-1, len(s))], m.guard)
		if next < 0 || next >= n {
			return at + n
		}
		at += next + width
		n -= next
	}
	return at
}

// runeSet is a set of runes, each with those that change to it with case.
type runeSet struct {
	ascii [utf8.RuneSelf]bool
	rest  map[rune]bool
}

func (s *runeSet) add(r rune) {
	for _, c := range []rune{r, unicode.ToLower(r), unicode.ToUpper(r), unicode.ToTitle(r)} {
		if c < utf8.RuneSelf {
			s.ascii[c] = true
			continue
		}
		if s.rest == nil {
			s.rest = make(map[rune]bool)
		}
		s.rest[c] = true
	}
}

func (s *runeSet) has(r rune) bool {
	if r < utf8.RuneSelf {
		return s.ascii[r]
	}
	// 'K' (Kelvin) is not what a letter of a guarded string changes to, but changes to one.
	for _, c := range []rune{r, unicode.ToLower(r), unicode.ToUpper(r), unicode.ToTitle(r)} {
		if s.rest[c] || c < utf8.RuneSelf && s.ascii[c] {
			return true
		}
	}
	return false
}
