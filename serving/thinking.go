package serving

import (
	"strings"

	"github.com/mmserve/mmserve/fusion"
)

// thinkingStage tells a model's thoughts from its answer: what lies between two marks at the beginning, white space
// aside, or up to the second where the prompt has the first. The marks, and white space beside them, are left out. It
// is the last stage: the pieces of thoughts say so.
type thinkingStage struct {
	marks  fusion.Thinking
	inside bool // the thoughts have begun
	shown  bool // something of them, or of the answer behind them, was emitted
	over   bool // they have ended, or there are none
	held   string
}

// maxBlank is the most white space that is held back, in bytes; what is before that stays.
const maxBlank = 256

// blanks are white space.
const blanks = " \t\r\n"

// Push implements Stage.
func (t *thinkingStage) Push(text string, emit func(Piece)) *End {
	t.held += text
	if !t.inside && !t.over && !t.begins(emit) {
		return nil
	}
	if !t.over {
		t.think(emit)
	}
	if t.over {
		t.answer(emit)
	}
	return nil
}

// begins tells whether it is known if the answer begins with thoughts.
func (t *thinkingStage) begins(emit func(Piece)) bool {
	blank := len(t.held) - len(strings.TrimLeft(t.held, blanks))
	rest := t.held[blank:]
	switch {
	case blank > maxBlank, !strings.HasPrefix(t.marks.Open, rest[:min(len(rest), len(t.marks.Open))]):
		t.over, t.shown = true, true
	case len(rest) < len(t.marks.Open):
		return false
	default:
		t.inside = true
		t.drop(blank+len(t.marks.Open), emit)
	}
	return true
}

// think emits what is certain of the thoughts.
func (t *thinkingStage) think(emit func(Piece)) {
	t.skip(emit)
	if end := strings.Index(t.held, t.marks.Close); end >= 0 {
		thought := strings.TrimRight(t.held[:end], blanks)
		n := max(len(thought), end-maxBlank)
		t.give(n, emit)
		t.drop(end-n+len(t.marks.Close), emit)
		t.over, t.shown = true, false
		return
	}
	keep := 0 // bytes that may become the mark
	for n := min(len(t.marks.Close)-1, len(t.held)); n > 0; n-- {
		if strings.HasSuffix(t.held, t.marks.Close[:n]) {
			keep = n
			break
		}
	}
	certain := t.held[:len(t.held)-keep]
	n := len(strings.TrimRight(certain, blanks))
	t.give(max(n, len(certain)-maxBlank), emit)
}

// answer emits what follows the thoughts.
func (t *thinkingStage) answer(emit func(Piece)) {
	t.skip(emit)
	if n := len(t.held); n > 0 {
		emit(Piece{Text: t.held, Covers: n})
		t.held, t.shown = "", true
	}
}

// skip leaves out white space before anything is shown.
func (t *thinkingStage) skip(emit func(Piece)) {
	if !t.shown {
		t.drop(len(t.held)-len(strings.TrimLeft(t.held, blanks)), emit)
	}
}

// give emits the first n bytes that are held as thoughts, drop leaves them out.
func (t *thinkingStage) give(n int, emit func(Piece)) {
	if n > 0 {
		emit(Piece{Text: t.held[:n], Covers: n, thought: true})
		t.held, t.shown = t.held[n:], true
	}
}

func (t *thinkingStage) drop(n int, emit func(Piece)) {
	if n > 0 {
		emit(Piece{Covers: n, thought: t.inside && !t.over})
		t.held = t.held[n:]
	}
}

// Flush implements Stage.
func (t *thinkingStage) Flush(emit func(Piece)) *End {
	if t.inside && !t.over {
		t.give(len(t.held), emit)
		return nil
	}
	if !t.over { // of what may have been a mark
		t.over, t.shown = true, true
	}
	t.answer(emit)
	return nil
}
