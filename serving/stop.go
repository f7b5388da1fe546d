package serving

import "strings"

// stopStage ends the answer at a stop string. It holds back what may become one, so that no part of a stop string is
// ever given out, and gives out held text as soon as it no longer can.
//
// The match that is complete first wins, and of those that are complete together the longest: a rule that does
// not depend on where the pieces were cut.
type stopStage struct {
	stops   []string
	include bool   // the stop string leaves, too
	held    string // the longest end of the text that is a proper start of a stop string
}

// Push implements Stage.
func (m *stopStage) Push(text string, emit func(Piece)) *End {
	m.held += text
	var stop string
	end := len(m.held) + 1
	for _, s := range m.stops {
		// Only the first occurrence of s matters: any later one is complete later.
		if at := strings.Index(m.held, s); at >= 0 && (at+len(s) < end || at+len(s) == end && len(s) > len(stop)) {
			end, stop = at+len(s), s
		}
	}
	if stop != "" {
		if !m.include {
			end -= len(stop)
		}
		m.give(end, emit)
		return &End{Reason: FinishStop, Stop: &stop}
	}
	m.give(len(m.held)-m.partial(), emit)
	return nil
}

// Flush implements Stage.
func (m *stopStage) Flush(emit func(Piece)) *End {
	m.give(len(m.held), emit)
	return nil
}

// give emits the first n bytes that are held.
func (m *stopStage) give(n int, emit func(Piece)) {
	out := m.held[:n]
	m.held = m.held[n:]
	if n > 0 {
		emit(Piece{Text: out, Covers: n})
	}
}

// partial is the length of the longest end of held that is a proper start of a stop string.
func (m *stopStage) partial() int {
	longest := 0
	for _, s := range m.stops {
		for n := min(len(s)-1, len(m.held)); n > longest; n-- {
			if strings.HasSuffix(m.held, s[:n]) {
				longest = n
			}
		}
	}
	return longest
}

// trimStage leaves a space at the very start of the answer out, which belongs to the template.
type trimStage struct{ begun bool }

// Push implements Stage.
func (t *trimStage) Push(text string, emit func(Piece)) *End {
	if !t.begun && text[0] == ' ' {
		emit(Piece{Covers: 1})
		text = text[1:]
	}
	t.begun = true
	if text != "" {
		emit(Piece{Text: text, Covers: len(text)})
	}
	return nil
}

// Flush implements Stage.
func (t *trimStage) Flush(func(Piece)) *End { return nil }
