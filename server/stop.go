package server

import "strings"

// stopMatcher finds stop strings in text that arrives in pieces. It holds back what may become one, so that no
// part of a stop string is ever given out, and gives out held text as soon as it no longer can.
//
// The match that is complete first wins, and of those that are complete together the longest: a rule that does
// not depend on where the pieces were cut.
type stopMatcher struct {
	stops []string
	held  string // the longest end of the text that is a proper start of a stop string
}

// push takes more text and returns what can be given out. Once a stop string is found it returns the rest of the
// text before it and the stop string; nothing may be pushed after.
func (m *stopMatcher) push(text string) (out, stop string, found bool) {
	m.held += text
	end := len(m.held) + 1
	for _, s := range m.stops {
		// Only the first occurrence of s matters: any later one is complete later.
		if at := strings.Index(m.held, s); at >= 0 && (at+len(s) < end || at+len(s) == end && len(s) > len(stop)) {
			end, stop = at+len(s), s
		}
	}
	if stop != "" {
		out, m.held = m.held[:end-len(stop)], ""
		return out, stop, true
	}
	cut := len(m.held) - m.partial()
	out, m.held = m.held[:cut], m.held[cut:]
	return out, "", false
}

// flush gives out what is held when the text ends.
func (m *stopMatcher) flush() string {
	out := m.held
	m.held = ""
	return out
}

// partial is the length of the longest end of held that is a proper start of a stop string.
func (m *stopMatcher) partial() int {
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
