package safety

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Stream takes a text piece by piece and lets it through as a tenant's rules allow. It holds back what may still turn
// out
// to be something. One goroutine has it.
type Stream struct {
	rules *Rules
	place Place

	personal *personal
	scanners []*scanner
	spam     *spam
	// holdsTerms says that one of the terms would not leave.
	holdsTerms bool

	held     string    // was pushed and has not left
	from     int       // where held begins in the text
	next     int       // where what detectors have seen ends
	pending  []Finding // to be redacted or blocked, in no order
	flags    []Finding // to be counted when their text has left
	keep     bool      // findings, for Check
	findings []Finding
	tally    Tally
}

// Piece is text on its way out.
type Piece struct {
	Text string
	// Covers is how many bytes of the text it stands for.
	Covers int
	// Hidden says that it stands in the place of a finding.
	Hidden bool
}

// NewStream begins a text in a place; nil says that the rules let all texts there pass.
func (r *Rules) NewStream(place Place) *Stream {
	if !r.acts(place) {
		return nil
	}
	s := &Stream{rules: r, place: place}
	if r.Acts(PersonalData, place) && len(r.kinds) > 0 {
		s.personal = newPersonal(r, s.find)
	}
	if r.Acts(Spam, place) {
		s.spam = &spam{found: s.find}
	}
	if lists := r.lists(place); len(lists) > 0 {
		s.holdsTerms = slices.ContainsFunc(Categories(), func(c Category) bool {
			return c != PersonalData && r.holds(c, place)
		})
		for _, second := range []bool{false, true} {
			s.scanners = append(s.scanners, newScanner(lists, second, s.term))
		}
	}
	return s
}

// holds says whether text of a place that may turn out to be of a category has to be held back.
func (r *Rules) holds(c Category, place Place) bool { return r.rules[c].Actions[place] >= Redact }

// lists are the block-lists of the categories that matter in a place.
func (r *Rules) lists(place Place) (list []*blocklist) {
	for _, c := range Categories() {
		if !r.Acts(c, place) {
			continue
		}
		for _, b := range []*blocklist{builtinTerms(c), r.policy.terms[c]} {
			if b != nil {
				list = append(list, b)
			}
		}
	}
	return list
}

// term takes what a scanner found.
func (s *Stream) term(t *term, start, end int) {
	if t.category == Spam {
		if s.spam != nil {
			s.spam.evidence(t.text, t.score, start, end)
		}
		return
	}
	s.find(Finding{Category: t.category, Start: start, End: end, Score: t.score})
}

// find takes what a detector found.
func (s *Stream) find(f Finding) {
	list := &s.pending
	switch f.Action = s.rules.Action(f.Category, s.place, f.Score); {
	case f.Action == Allow:
		return
	case f.Action == Flag, f.Action == Redact && f.Start == f.End:
		f.Action, list = Flag, &s.flags
	}
	for i := range *list {
		o := &(*list)[i]
		if o.Category == f.Category && o.Kind == f.Kind && o.Start == f.Start && o.End == f.End {
			o.Score = max(o.Score, f.Score)
			return
		}
	}
	*list = append(*list, f)
}

// Push takes the next bytes of the text and emits what is certain. What it gives is what the text is blocked for: what
// was not emitted does not leave then. nil lets it go on.
func (s *Stream) Push(text string, emit func(Piece)) *Finding {
	s.held += text
	for at := s.next - s.from; at < len(s.held); {
		rest := s.held[at:]
		if !utf8.FullRuneInString(rest) {
			break
		}
		r, n := utf8.DecodeRuneInString(rest)
		s.see(r, n)
		at += n
	}
	return s.leave(s.certain(), emit)
}

// see shows detectors the next rune, of n bytes.
func (s *Stream) see(r rune, n int) {
	from := s.next
	s.next += n
	if s.personal != nil {
		s.personal.push(r, n)
	}
	for _, scan := range s.scanners {
		scan.fold.push(r, from, s.next)
	}
	if s.spam != nil {
		s.spam.push(r, s.next)
	}
}

// certain is where the text begins that may still become part of a finding.
func (s *Stream) certain() int {
	at := s.next
	if s.personal != nil && s.rules.holds(PersonalData, s.place) {
		at = min(at, s.personal.hold())
	}
	if s.holdsTerms {
		for _, scan := range s.scanners {
			at = min(at, scan.hold(s.next))
		}
	}
	return at
}

// Flush emits what was held back, because the text ends here.
func (s *Stream) Flush(emit func(Piece)) *Finding {
	for at := s.next - s.from; at < len(s.held); at++ { // half a character
		s.see(utf8.RuneError, 1)
	}
	if s.personal != nil {
		s.personal.flush()
	}
	for _, scan := range s.scanners {
		scan.flush()
	}
	return s.leave(s.next, emit)
}

// leave emits the text up to an offset, before which everything that begins is known. Findings that overlap leave
// together, when all of them are known.
func (s *Stream) leave(until int, emit func(Piece)) *Finding {
	sortFindings(s.pending)
	for len(s.pending) > 0 {
		first := s.pending[0]
		if first.Start > until || first.Start == until && first.End > until {
			break
		}
		n, end := 1, first.End
		for n < len(s.pending) && s.pending[n].Start < end {
			end = max(end, s.pending[n].End)
			n++
		}
		if end > until {
			until = first.Start
			break
		}
		if stop := s.act(s.pending[:n], emit); stop != nil {
			return stop
		}
		s.pending = append(s.pending[:0], s.pending[n:]...)
	}
	s.pass(until, emit)
	return nil
}

// act does what has to be done about findings that overlap.
func (s *Stream) act(group []Finding, emit func(Piece)) *Finding {
	if i := slices.IndexFunc(group, func(f Finding) bool { return f.Action == Block }); i >= 0 {
		s.pass(group[0].Start, emit)
		stop := group[i]
		s.count(stop)
		return &stop
	}
	for i := 0; i < len(group); {
		first, end := group[i], group[i].End
		for ; i < len(group) && (group[i].Start < end || group[i].Start == first.Start); i++ {
			end = max(end, group[i].End)
			s.count(group[i])
		}
		s.pass(first.Start, emit)
		if n := end - s.from; n > 0 {
			emit(Piece{Text: first.Mark(), Covers: n, Hidden: true})
			s.held, s.from = s.held[n:], end
		}
	}
	return nil
}

// pass emits the text up to an offset as it is.
func (s *Stream) pass(until int, emit func(Piece)) {
	if n := until - s.from; n > 0 {
		emit(Piece{Text: s.held[:n], Covers: n})
		s.held, s.from = s.held[n:], until
	}
	s.flags = slices.DeleteFunc(s.flags, func(f Finding) bool {
		if f.Start < s.from || f.Start == f.End && f.Start == s.from {
			s.count(f)
			return true
		}
		return false
	})
}

func (s *Stream) count(f Finding) {
	s.tally.Add(f.Category, s.place, f.Action)
	if s.keep {
		s.findings = append(s.findings, f)
	}
}

// Counts are of what was found so far in the text that left, and of what blocked it.
func (s *Stream) Counts() []Count { return s.tally.Counts() }

// Checked is what became of a whole text.
type Checked struct {
	// Pieces are the text as it passes; a hidden one stands for a finding.
	Pieces   []Piece
	Findings []Finding
	// Blocked is what the text is blocked for; nil if it is not.
	Blocked *Finding
}

// Text is the text as it passes.
func (c *Checked) Text() string {
	var b strings.Builder
	for _, p := range c.Pieces {
		b.WriteString(p.Text)
	}
	return b.String()
}

// Check looks at a whole text in a place.
func (r *Rules) Check(place Place, text string) *Checked {
	c := &Checked{}
	s := r.NewStream(place)
	if s == nil {
		c.Pieces = []Piece{{Text: text, Covers: len(text)}}
		return c
	}
	s.keep = true
	if place == Input && r.Acts(Health, Input) {
		for _, f := range health(text) {
			s.find(f)
		}
	}
	emit := func(p Piece) { c.Pieces = append(c.Pieces, p) }
	if c.Blocked = s.Push(text, emit); c.Blocked == nil {
		c.Blocked = s.Flush(emit)
	}
	c.Findings = s.findings
	return c
}
