package safety

import (
	"fmt"
	"slices"
	"strings"
)

// term is a text that is looked for. {a|b} in it stands for either, unless it is literal.
type term struct {
	category Category
	score    float64
	text     string
	literal  bool
}

// blocklist is an automaton over the folded bytes of terms that begin together: what a text may go on with after each
// beginning of terms. It is never changed. A text runs through it from each of its words on, which says how much has to
// be held back; alternatives in terms share what follows them, where a list of all texts would be a hundred times as
// large (so it is none of Aho and Corasick's).
type blocklist struct {
	terms  []term
	states []state
}

// state is what follows a beginning of terms. The first is where terms begin.
type state struct {
	by   []byte // sorted
	to   []int32
	ends []int32 // terms
}

// step is the state that a byte leads to; 0 for none.
func (b *blocklist) step(at int32, by byte) int32 {
	s := &b.states[at]
	for i, c := range s.by {
		if c == by {
			return s.to[i]
		}
	}
	return 0
}

// place is a point in a term: what a byte leads to, what can be had for nothing, and which term ends.
type place struct {
	by   byte
	to   int32 // by by
	free []int32
	term int32 // -1: none
}

// places are those of all terms while an automaton is made of them.
type places struct{ list []place }

func (p *places) new() int32 {
	p.list = append(p.list, place{term: -1, to: -1})
	return int32(len(p.list) - 1)
}

// text adds folded bytes after a place, and gives the place after them.
func (p *places) text(at int32, text string) int32 {
	for i := range len(text) {
		next := p.new()
		mid := p.new()
		p.list[at].free = append(p.list[at].free, mid)
		p.list[mid].by, p.list[mid].to = text[i], next
		at = next
	}
	return at
}

// pattern adds a text with alternatives after a place, and gives the place after it.
func (p *places) pattern(at int32, text string) (int32, error) {
	for text != "" {
		open := strings.IndexByte(text, '{')
		if open < 0 {
			return p.text(at, foldedPart(text)), nil
		}
		at = p.text(at, foldedPart(text[:open]))
		parts, rest, err := alternatives(text[open:])
		if err != nil {
			return 0, err
		}
		end := p.new()
		for _, part := range parts {
			last, err := p.pattern(at, part)
			if err != nil {
				return 0, err
			}
			p.list[last].free = append(p.list[last].free, end)
		}
		at, text = end, rest
	}
	return at, nil
}

// alternatives takes a text that begins with {a|b} apart.
func alternatives(text string) (parts []string, rest string, err error) {
	depth, from := 0, 1
	for i := range len(text) {
		switch c := text[i]; {
		case c == '{':
			depth++
		case c == '|' && depth == 1:
			parts, from = append(parts, text[from:i]), i+1
		case c == '}' && depth == 1:
			return append(parts, text[from:i]), text[i+1:], nil
		case c == '}':
			depth--
		}
	}
	return nil, "", fmt.Errorf("%q: no } for a {", text)
}

// newBlocklist makes the automaton of terms.
func newBlocklist(terms []term) (*blocklist, error) {
	b := &blocklist{terms: terms}
	p := &places{}
	first := p.new()
	for i, t := range terms {
		at, err := first, error(nil)
		if t.literal {
			at = p.text(first, strings.TrimLeft(folded(t.text), " "))
		} else if at, err = p.pattern(first, t.text); err != nil {
			return nil, err
		}
		if !t.literal && !hasUnspaced(t.text) {
			at = p.text(at, " ")
		}
		if at == first {
			return nil, fmt.Errorf("%q: nothing to look for", t.text)
		}
		p.list[at].term = int32(i)
	}
	b.join(p, first)
	return b, nil
}

// join makes states of sets of places.
func (b *blocklist) join(p *places, first int32) {
	known := map[string]int32{}
	var sets [][]int32
	add := func(set []int32) int32 {
		set = p.close(set)
		key := fmt.Sprint(set)
		if at, ok := known[key]; ok {
			return at
		}
		at := int32(len(sets))
		known[key] = at
		sets = append(sets, set)
		return at
	}
	add([]int32{first})
	for at := 0; at < len(sets); at++ {
		next := map[byte][]int32{}
		var s state
		for _, i := range sets[at] {
			if n := &p.list[i]; n.to >= 0 {
				next[n.by] = append(next[n.by], n.to)
			}
			if n := &p.list[i]; n.term >= 0 {
				s.ends = append(s.ends, n.term)
			}
		}
		for by := range next {
			s.by = append(s.by, by)
		}
		slices.Sort(s.by)
		for _, by := range s.by {
			set := next[by]
			if by == ' ' { // one space in the text stands for several of a term
				set = p.skipSpaces(set)
			}
			s.to = append(s.to, add(set))
		}
		b.states = append(b.states, s)
	}
}

// close adds what can be had for nothing; places that lead nowhere themselves are left out.
func (p *places) close(set []int32) (out []int32) {
	seen, todo := map[int32]bool{}, slices.Clone(set)
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[at] {
			continue
		}
		seen[at] = true
		n := &p.list[at]
		todo = append(todo, n.free...)
		if n.to >= 0 || n.term >= 0 {
			out = append(out, at)
		}
	}
	slices.Sort(out)
	return out
}

// skipSpaces adds the places after further spaces.
func (p *places) skipSpaces(set []int32) []int32 {
	for {
		n := len(set)
		for _, at := range p.close(set) {
			if q := &p.list[at]; q.to >= 0 && q.by == ' ' && !slices.Contains(set, q.to) {
				set = append(set, q.to)
			}
		}
		if len(set) == n {
			return set
		}
	}
}

// scanner looks for terms in a text that comes rune by rune.
type scanner struct {
	lists  []*blocklist
	fold   folding
	found  func(t *term, start, end int)
	live   []run // in the order of their starts
	before byte  // the last byte
	inside int   // bytes of a character that are still to come
	to     int   // where the text of the last byte ends
}

// run is a beginning of terms that the text goes on with.
type run struct {
	list  *blocklist
	at    int32
	start int
}

func newScanner(lists []*blocklist, second bool, found func(t *term, start, end int)) *scanner {
	s := &scanner{lists: lists, found: found, before: ' '}
	s.fold = folding{second: second, out: s.take, more: func(to int) { s.to = to }}
	s.fold.space(0, 0)
	return s
}

// take moves on by a byte of the folded text, which comes from [from, to).
func (s *scanner) take(by byte, from, to int) {
	if s.starts(by) {
		for _, list := range s.lists {
			s.live = append(s.live, run{list: list, start: from})
		}
	}
	end := to
	if by == ' ' { // none of the term's
		end = s.to
	}
	kept := s.live[:0]
	for _, r := range s.live {
		if r.at = r.list.step(r.at, by); r.at == 0 {
			continue
		}
		for _, t := range r.list.states[r.at].ends {
			s.found(&r.list.terms[t], r.start, end)
		}
		if len(r.list.states[r.at].by) > 0 {
			kept = append(kept, r)
		}
	}
	s.live, s.before, s.to = kept, by, to
}

// starts says whether a term may begin with a byte: at the beginning of a word, or of a character in scripts that do
// not
// tell words apart.
func (s *scanner) starts(by byte) bool {
	if s.inside > 0 {
		s.inside--
		return false
	}
	if by == ' ' || by == breakByte {
		return false
	}
	if by >= 0xC0 {
		s.inside = 1
		if by >= 0xE0 {
			s.inside = 2
		}
		if by >= 0xF0 {
			s.inside = 3
		}
	}
	return s.before == ' ' || s.before == breakByte || s.fold.script == unspacedScript
}

// hold is where the text begins that may still become a term; next is where the text ends.
func (s *scanner) hold(next int) int {
	if len(s.live) > 0 {
		return s.live[0].start
	}
	return next
}

func (s *scanner) flush() { s.fold.space(s.to, s.to) }
