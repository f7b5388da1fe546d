package serving_test

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/serving/servingtest"
)

// maskStage puts *** in the place of each occurrence of a word, or what it is to put: what a filter that redacts does.
type maskStage struct{ word, put, held string }

func (m *maskStage) Push(text string, emit func(serving.Piece)) *serving.End {
	m.held += text
	for {
		at := strings.Index(m.held, m.word)
		if at < 0 {
			break
		}
		m.pass(at, emit)
		m.held = m.held[len(m.word):]
		emit(serving.Piece{Text: cmp.Or(m.put, "***"), Covers: len(m.word), Hides: true})
	}
	keep := min(len(m.held), len(m.word)-1)
	for ; keep > 0 && !strings.HasPrefix(m.word, m.held[len(m.held)-keep:]); keep-- {
	}
	m.pass(len(m.held)-keep, emit)
	return nil
}

func (m *maskStage) Flush(emit func(serving.Piece)) *serving.End {
	m.pass(len(m.held), emit)
	return nil
}

func (m *maskStage) pass(n int, emit func(serving.Piece)) {
	out := m.held[:n]
	m.held = m.held[n:]
	if n > 0 {
		emit(serving.Piece{Text: out, Covers: n})
	}
}

// judgeStage holds everything back until the end, and lets nothing out of a text that has a word in it.
type judgeStage struct{ word, held string }

func (j *judgeStage) Push(text string, _ func(serving.Piece)) *serving.End {
	j.held += text
	return nil
}

func (j *judgeStage) Flush(emit func(serving.Piece)) *serving.End {
	if strings.Contains(j.held, j.word) {
		return &serving.End{Reason: serving.FinishStop}
	}
	emit(serving.Piece{Text: j.held, Covers: len(j.held)})
	return nil
}

func TestStages(t *testing.T) {
	texts := []string{
		"", " ", "a", "  two", " one END two", "aaab", "ENEND", "ENDEND", "no secret here, secrets", "secre", "cafés é",
		"x\n\ny", "<think>a</think>b", " \n<think>\n a b \n</think>\n\nc </think> d", "<think", "<thinking", "\n ", "a<think>b</think>",
		"<think>a </thin </think", "a \n</think> ", "<think></think>",
	}
	for name, create := range map[string]func() serving.Stage{
		"trim":        serving.NewTrimStage,
		"stop":        func() serving.Stage { return serving.NewStopStage("END", "aab", "\n\n") },
		"stop longer": func() serving.Stage { return serving.NewStopStage("b", "aab", "é", "s é") },
		"stop left in": func() serving.Stage {
			return serving.NewIncludingStopStage("b", "aab", "é", "END")
		},
		"thinking":      func() serving.Stage { return serving.NewThinkingStage(false) },
		"amid thoughts": func() serving.Stage { return serving.NewThinkingStage(true) },
		"mask":          func() serving.Stage { return &maskStage{word: "secret"} },
		"mask twins":    func() serving.Stage { return &maskStage{word: "aa"} },
		"judge":         func() serving.Stage { return &judgeStage{word: "secret"} },
	} {
		t.Run(name, func(t *testing.T) { servingtest.TestStage(t, create, texts...) })
	}
}

// The text that leaves and the log-probabilities that leave belong together: a token is told once all its text is out,
// in whatever stage it was held, and not if some of it was hidden or came after the end.
func TestChain(t *testing.T) {
	type stages = []func() serving.Stage
	type tokens = []string
	trim := func() serving.Stage { return serving.NewTrimStage() }
	mask := func() serving.Stage { return &maskStage{word: "secret"} }
	dot := func() serving.Stage { return &maskStage{word: "secret", put: "."} }
	stop := func(stops ...string) func() serving.Stage {
		return func() serving.Stage { return serving.NewStopStage(stops...) }
	}
	include := func() serving.Stage { return serving.NewIncludingStopStage("END") }
	judge := func(word string) func() serving.Stage {
		return func() serving.Stage { return &judgeStage{word: word} }
	}
	for name, c := range map[string]struct {
		stages   []func() serving.Stage
		tokens   []string
		text     string
		logprobs []int
		ends     bool
	}{
		"none":                       {nil, tokens{"a", "", "b"}, "ab", []int{0, 1, 2}, false},
		"a space is left out":        {stages{trim}, tokens{" red", " one"}, "red one", []int{0, 1}, false},
		"a token of the space alone": {stages{trim, stop("x")}, tokens{" ", "red"}, "red", []int{0, 1}, false},
		"only a space":               {stages{trim, stop("x")}, tokens{" "}, "", []int{0}, false},
		"stop":                       {stages{stop("END")}, tokens{"a", " E", "N", "D", "b"}, "a ", []int{0}, true},
		"stop left in": {
			stages{include}, tokens{"a", " E", "N", "D", "b"}, "a END", []int{0, 1, 2, 3}, true,
		},
		"within a token":       {stages{include}, tokens{"a", " ENDb", "c"}, "a END", []int{0}, true},
		"left in, then masked": {stages{include, mask}, tokens{"a secret", "END", "b"}, "a ***END", []int{1}, true},
		"masked, left in":      {stages{mask, include}, tokens{"a secret", "END", "b"}, "a ***END", []int{1}, true},
		"left in, judged":      {stages{include, judge("bad")}, tokens{"bad", "END"}, "", nil, true},
		"held, then let go": {
			stages{stop("END")}, tokens{"a", " E", "N", "x"}, "a ENx", []int{0, 1, 2, 3}, false,
		},
		"trim, then stop at the start":  {stages{trim, stop("no")}, tokens{" no", "x"}, "", nil, true},
		"masked":                        {stages{mask}, tokens{"my ", "sec", "ret", " is"}, "my *** is", []int{0, 3}, false},
		"a token that is partly masked": {stages{mask}, tokens{"my", " sec", "rets", " are"}, "my ***s are", []int{0, 3}, false},
		"no text, before what is masked": {
			stages{mask}, tokens{"my ", "", "secret", "", "!"}, "my ***!", []int{0, 3, 4}, false,
		},
		"masked, then a stop": {stages{mask, stop("**")}, tokens{"my ", "secret", " is"}, "my ", []int{0}, true},
		"masked, then held": {
			stages{mask, stop("** x")}, tokens{"my ", "secret", " is"}, "my *** is", []int{0, 2}, false,
		},
		"masked by a byte, then held": {
			stages{dot, stop("ab.x")}, tokens{"ab", "secret", "!"}, "ab.!", []int{0, 2}, false,
		},
		"trim, mask, stop":              {stages{trim, mask, stop("END")}, tokens{" secret", " E", "ND"}, "*** ", nil, true},
		"a stop before the mask":        {stages{stop("END"), mask}, tokens{"a sec", "END", "x"}, "a sec", []int{0}, true},
		"judged":                        {stages{judge("bad")}, tokens{"a ", "bad", " b"}, "", nil, true},
		"judged well":                   {stages{judge("bad"), mask}, tokens{"a ", "b"}, "a b", []int{0, 1}, false},
		"a stop, judged":                {stages{stop("END"), judge("bad")}, tokens{"bad", "END"}, "", nil, true},
		"a judge before the last stage": {stages{judge("bad"), stop("END")}, tokens{"a bEN", "D"}, "a b", []int{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var stages []serving.Stage
			for _, create := range c.stages {
				stages = append(stages, create())
			}
			text, logprobs, end := serving.Let(stages, c.tokens)
			if text != c.text || !slices.Equal(logprobs, c.logprobs) || (end != nil) != c.ends {
				t.Errorf("%q, log-probabilities of %v, end %+v; want %q, %v, an end: %t",
					text, logprobs, end, c.text, c.logprobs, c.ends)
			}
		})
	}
}
