package serving

import (
	"strings"

	"github.com/mmserve/mmserve/safety"
)

// classifierStage has models look at an answer, a few sentences at a time. What it holds back it lets go, replaces or
// ends the answer before; where nothing would be held back, text passes at once.
type classifierStage struct {
	*policed
	holds bool
	held  strings.Builder
	tally safety.Tally
}

// Bounds of what models look at together, in bytes: a sentence's end ends it from the first on, and anything does at
// the second.
const leastClassified, mostClassified = 200, 1000

// Push implements Stage.
func (s *classifierStage) Push(text string, emit func(Piece)) *End {
	for len(text) > 0 {
		n := s.boundary(text)
		if s.held.WriteString(text[:n]); !s.holds {
			emit(Piece{Text: text[:n], Covers: n})
		}
		if text = text[n:]; s.full() {
			if end := s.look(emit); end != nil {
				return end
			}
		}
	}
	return nil
}

// boundary is how many bytes of a text may join what is held until that is looked at.
func (s *classifierStage) boundary(text string) int {
	for i := range len(text) {
		n := s.held.Len() + i + 1
		if n >= mostClassified || n >= leastClassified && strings.IndexByte(".!?\n", text[i]) >= 0 {
			return i + 1
		}
	}
	return len(text)
}

// full says whether what is held is to be looked at.
func (s *classifierStage) full() bool {
	text := s.held.String()
	return len(text) >= mostClassified ||
		len(text) >= leastClassified && strings.IndexByte(".!?\n", text[len(text)-1]) >= 0
}

// Flush implements Stage.
func (s *classifierStage) Flush(emit func(Piece)) *End { return s.look(emit) }

// look has the models look at what is held. Where they fail nothing of it leaves.
func (s *classifierStage) look(emit func(Piece)) *End {
	text := s.held.String()
	s.held.Reset()
	if text == "" {
		return nil
	}
	list, err := s.texts.InspectText(s.ctx, s.rules, safety.Output, strings.ToValidUTF8(text, "\ufffd"))
	if err != nil && s.holds {
		return &End{Reason: FinishContentFilter}
	}
	var worst *safety.Finding
	for i, f := range list {
		s.tally.Add(f.Category, safety.Output, f.Action)
		if worst == nil || f.Action > worst.Action {
			worst = &list[i]
		}
	}
	switch {
	case !s.holds:
	case worst != nil && worst.Action == safety.Block:
		return &End{Reason: FinishContentFilter}
	case worst != nil && worst.Action == safety.Redact:
		emit(Piece{Text: worst.Mark(), Covers: len(text), Hides: true})
	default:
		emit(Piece{Text: text, Covers: len(text)})
	}
	return nil
}

var _ Stage = (*classifierStage)(nil)
