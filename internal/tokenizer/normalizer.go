package tokenizer

import (
	"slices"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// normalizer rewrites a text. It reports every range that it changes, in ascending
// order and without overlaps, so that what is known of places in the text can follow.
type normalizer interface {
	rewrite(s string, edit func(start, end int, with string))
}

// edit is a changed range [start, end) that became [newStart, newEnd).
type edit struct{ start, end, newStart, newEnd int }

// section is a part of a text, with the marks in it.
type section struct {
	text  string
	marks []mark
	first bool // it starts where the text does
}

// normalize applies the steps to a section, marks included. The edits of each step that
// made some are added to trace, if it is not nil. Each byte that a step writes is taken
// from room; where there is none left the error is ErrGrows.
func normalize(steps []normalizer, sec section, room *int, trace *trace) (section, error) {
	s, marks, first := sec.text, sec.marks, sec.first
	for _, step := range steps {
		var b strings.Builder
		var edits []edit
		last, grows := 0, false
		step.rewrite(s, func(start, end int, with string) {
			if b.Len()+start-last+len(with) > *room {
				grows = true
			}
			if grows {
				return
			}
			if last == 0 && b.Len() == 0 {
				b.Grow(len(s) + len(s)/4)
			}
			b.WriteString(s[last:start])
			if b.Len() == 0 && end > start && with == "" {
				first = false
			}
			if len(marks) > 0 || trace != nil {
				edits = append(edits, edit{start, end, b.Len(), b.Len() + len(with)})
			}
			b.WriteString(with)
			last = end
		})
		if grows {
			return section{}, ErrGrows
		}
		if last == 0 && b.Len() == 0 {
			continue
		}
		if *room -= b.Len() + len(s) - last; *room < 0 {
			return section{}, ErrGrows
		}
		b.WriteString(s[last:])
		s = b.String()
		if len(marks) > 0 {
			marks = moveMarks(marks, edits)
		}
		if trace != nil {
			*trace = append(*trace, edits)
		}
	}
	return section{s, marks, first}, nil
}

func moveMarks(marks []mark, edits []edit) []mark {
	moved := make([]mark, len(marks))
	for i, m := range marks {
		lo, _ := moveOffset(edits, m.lo)
		_, hi := moveOffset(edits, m.hi)
		moved[i] = mark{lo, hi}
	}
	return moved
}

// moveOffset returns where offset is after the edits, the lower and the upper end of
// what was written if it was inside a changed range.
func moveOffset(edits []edit, offset int) (lo, hi int) {
	n := sort.Search(len(edits), func(i int) bool { return edits[i].end > offset })
	if n < len(edits) && edits[n].start < offset {
		return edits[n].newStart, edits[n].newEnd
	}
	if n > 0 {
		offset += edits[n-1].newEnd - edits[n-1].end
	}
	return offset, offset
}

// trace is the edits of each step.
type trace [][]edit

// source returns the range of the text before all steps that became [start, end). What
// was removed at its ends is not part of it.
func (t trace) source(start, end int) (int, int) {
	for i := len(t) - 1; i >= 0; i-- {
		edits := t[i]
		from := sort.Search(len(edits), func(i int) bool { return edits[i].newEnd > start })
		switch {
		case from < len(edits) && edits[from].newStart < start:
			start = edits[from].start
		case from > 0:
			start += edits[from-1].end - edits[from-1].newEnd
		}
		to := sort.Search(len(edits), func(i int) bool { return edits[i].newEnd >= end })
		switch {
		case to < len(edits) && edits[to].newStart < end:
			end = edits[to].end
		case to > 0:
			end += edits[to-1].end - edits[to-1].newEnd
		}
	}
	return start, max(start, end)
}

// prependNormalizer puts a string before a text that is not empty.
type prependNormalizer string

func (n prependNormalizer) rewrite(s string, edit func(int, int, string)) {
	if s != "" && n != "" {
		edit(0, 0, string(n))
	}
}

// replaceNormalizer replaces every match of a pattern.
type replaceNormalizer struct {
	find finder
	with string
}

func (n replaceNormalizer) rewrite(s string, edit func(int, int, string)) {
	n.find.findAll(s, func(start, end int) { edit(start, end, n.with) })
}

// stripNormalizer removes white space at the ends.
type stripNormalizer struct{ left, right bool }

func (n stripNormalizer) rewrite(s string, edit func(int, int, string)) {
	start := 0
	if n.left {
		if start = len(s) - len(strings.TrimLeftFunc(s, unicode.IsSpace)); start > 0 {
			edit(0, start, "")
		}
	}
	if n.right {
		if end := start + len(strings.TrimRightFunc(s[start:], unicode.IsSpace)); end < len(s) {
			edit(end, len(s), "")
		}
	}
}

// lowercaseNormalizer lowers each rune by itself: a final sigma is not special.
type lowercaseNormalizer struct{}

func (lowercaseNormalizer) rewrite(s string, edit func(int, int, string)) {
	for i, r := range s {
		switch low := unicode.ToLower(r); {
		case r == 'İ': // the one rune whose full lower case is two
			edit(i, i+utf8.RuneLen(r), "i\u0307")
		case low != r:
			edit(i, i+utf8.RuneLen(r), string(low))
		}
	}
}

// stripAccentsNormalizer removes the combining marks in a table.
type stripAccentsNormalizer struct{ marks *unicode.RangeTable }

func (n stripAccentsNormalizer) rewrite(s string, edit func(int, int, string)) {
	for i, r := range s {
		if r >= utf8.RuneSelf && unicode.Is(n.marks, r) {
			edit(i, i+utf8.RuneLen(r), "")
		}
	}
}

// unicodeNormalizer brings text into a Unicode normalization form.
type unicodeNormalizer struct{ form norm.Form }

func (n unicodeNormalizer) rewrite(s string, edit func(int, int, string)) {
	for start := n.form.QuickSpanString(s); start < len(s); {
		end := start + n.segment(s[start:])
		if was := s[start:end]; !n.form.IsNormalString(was) {
			if now := n.normalize(was); now != was {
				edit(start, end, now)
			}
		}
		start = end
	}
}

// segment returns how many bytes of s cannot be changed by what follows them.
func (n unicodeNormalizer) segment(s string) int {
	end := n.form.PropertiesString(s).Size()
	for end < len(s) {
		p := n.form.PropertiesString(s[end:])
		if p.BoundaryBefore() {
			break
		}
		end += p.Size()
	}
	return end
}

// normalize returns a segment's normal form. The norm package puts a grapheme joiner
// after 30 combining marks (UAX #15, Stream-Safe Text Format), which the reference does
// not, so a segment that could have as many is put together here.
func (n unicodeNormalizer) normalize(segment string) string {
	const safe = 10 // runes, which cannot decompose to 30 marks
	if utf8.RuneCountInString(segment) <= safe {
		return n.form.String(segment)
	}
	decompose := norm.NFD
	if n.form == norm.NFKC || n.form == norm.NFKD {
		decompose = norm.NFKD
	}
	var runes []rune
	for _, r := range segment {
		runes = append(runes, []rune(decompose.String(string(r)))...)
	}
	class := func(r rune) uint8 { return norm.NFD.PropertiesString(string(r)).CCC() }
	for i := 0; i < len(runes); { // order each run of marks by class
		end := i
		for end < len(runes) && class(runes[end]) != 0 {
			end++
		}
		slices.SortStableFunc(runes[i:end], func(a, b rune) int { return int(class(a)) - int(class(b)) })
		i = max(end, i+1)
	}
	if n.form == norm.NFD || n.form == norm.NFKD {
		return string(runes)
	}
	composed := runes[:0]
	starter, last := -1, uint8(0) // index of the last starter, class of the last rune kept after it
	for _, r := range runes {
		c := class(r)
		if starter >= 0 && (starter == len(composed)-1 || last != 0 && last < c) {
			pair := string([]rune{composed[starter], r})
			if one := norm.NFC.String(pair); utf8.RuneCountInString(one) == 1 {
				composed[starter], _ = utf8.DecodeRuneInString(one)
				continue
			}
		}
		if last = c; c == 0 {
			starter = len(composed)
		}
		composed = append(composed, r)
	}
	return string(composed)
}
