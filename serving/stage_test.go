package serving_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/serving/servingtest"
)

// maskStage puts *** in the place of each occurrence of a word: what a filter that redacts does.
type maskStage struct{ word, held string }

func (m *maskStage) Push(text string, emit func(serving.Piece)) *serving.End {
	m.held += text
	for {
		at := strings.Index(m.held, m.word)
		if at < 0 {
			break
		}
		m.pass(at, emit)
		m.held = m.held[len(m.word):]
		emit(serving.Piece{Text: "***", Covers: len(m.word), Hides: true})
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
	texts := []string{"", " ", "a", "  two", " one END two", "aaab", "ENEND", "ENDEND", "no secret here, secrets", "secre", "cafés é", "x\n\ny"}
	for name, create := range map[string]func() serving.Stage{
		"trim":        serving.NewTrimStage,
		"stop":        func() serving.Stage { return serving.NewStopStage("END", "aab", "\n\n") },
		"stop longer": func() serving.Stage { return serving.NewStopStage("b", "aab", "é", "s é") },
		"stop left in": func() serving.Stage {
			return serving.NewIncludingStopStage("b", "aab", "é", "END")
		},
		"mask":       func() serving.Stage { return &maskStage{word: "secret"} },
		"mask twins": func() serving.Stage { return &maskStage{word: "aa"} },
		"judge":      func() serving.Stage { return &judgeStage{word: "secret"} },
	} {
		t.Run(name, func(t *testing.T) { servingtest.TestStage(t, create, texts...) })
	}
}

// The text that leaves and the log-probabilities that leave belong together: a token is told once all its text is out, in
// whatever stage it was held, and not if some of it was hidden or came after the end.
func TestChain(t *testing.T) {
	trim, mask := func() serving.Stage { return serving.NewTrimStage() }, func() serving.Stage { return &maskStage{word: "secret"} }
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
		"none":                          {nil, []string{"a", "", "b"}, "ab", []int{0, 1, 2}, false},
		"a space is left out":           {[]func() serving.Stage{trim}, []string{" red", " one"}, "red one", []int{0, 1}, false},
		"a token of the space alone":    {[]func() serving.Stage{trim, stop("x")}, []string{" ", "red"}, "red", []int{0, 1}, false},
		"only a space":                  {[]func() serving.Stage{trim, stop("x")}, []string{" "}, "", []int{0}, false},
		"stop":                          {[]func() serving.Stage{stop("END")}, []string{"a", " E", "N", "D", "b"}, "a ", []int{0}, true},
		"stop left in":                  {[]func() serving.Stage{include}, []string{"a", " E", "N", "D", "b"}, "a END", []int{0, 1, 2, 3}, true},
		"within a token":                {[]func() serving.Stage{include}, []string{"a", " ENDb", "c"}, "a END", []int{0}, true},
		"left in, then masked":          {[]func() serving.Stage{include, mask}, []string{"a secret", "END", "b"}, "a ***END", []int{1}, true},
		"masked, left in":               {[]func() serving.Stage{mask, include}, []string{"a secret", "END", "b"}, "a ***END", []int{1}, true},
		"left in, judged":               {[]func() serving.Stage{include, judge("bad")}, []string{"bad", "END"}, "", nil, true},
		"held, then let go":             {[]func() serving.Stage{stop("END")}, []string{"a", " E", "N", "x"}, "a ENx", []int{0, 1, 2, 3}, false},
		"trim, then stop at the start":  {[]func() serving.Stage{trim, stop("no")}, []string{" no", "x"}, "", nil, true},
		"masked":                        {[]func() serving.Stage{mask}, []string{"my ", "sec", "ret", " is"}, "my *** is", []int{0, 3}, false},
		"a token that is partly masked": {[]func() serving.Stage{mask}, []string{"my", " sec", "rets", " are"}, "my ***s are", []int{0, 3}, false},
		"no text, before what is masked": {
			[]func() serving.Stage{mask}, []string{"my ", "", "secret", "", "!"}, "my ***!", []int{0, 3, 4}, false,
		},
		"masked, then a stop":           {[]func() serving.Stage{mask, stop("**")}, []string{"my ", "secret", " is"}, "my ", []int{0}, true},
		"masked, then held":             {[]func() serving.Stage{mask, stop("** x")}, []string{"my ", "secret", " is"}, "my *** is", []int{0, 2}, false},
		"trim, mask, stop":              {[]func() serving.Stage{trim, mask, stop("END")}, []string{" secret", " E", "ND"}, "*** ", nil, true},
		"a stop before the mask":        {[]func() serving.Stage{stop("END"), mask}, []string{"a sec", "END", "x"}, "a sec", []int{0}, true},
		"judged":                        {[]func() serving.Stage{judge("bad")}, []string{"a ", "bad", " b"}, "", nil, true},
		"judged well":                   {[]func() serving.Stage{judge("bad"), mask}, []string{"a ", "b"}, "a b", []int{0, 1}, false},
		"a stop, judged":                {[]func() serving.Stage{stop("END"), judge("bad")}, []string{"bad", "END"}, "", nil, true},
		"a judge before the last stage": {[]func() serving.Stage{judge("bad"), stop("END")}, []string{"a bEN", "D"}, "a b", []int{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var stages []serving.Stage
			for _, create := range c.stages {
				stages = append(stages, create())
			}
			text, logprobs, end := serving.Let(stages, c.tokens)
			if text != c.text || !slices.Equal(logprobs, c.logprobs) || (end != nil) != c.ends {
				t.Errorf("%q, log-probabilities of %v, end %+v; want %q, %v, an end: %t", text, logprobs, end, c.text, c.logprobs, c.ends)
			}
		})
	}
}
