package lineedit

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// returnMark stands for a line feed in the line that is edited: a private character, shown as returnSign.
const (
	returnMark = '\uF8A5'
	returnSign = '↵'
)

// A longer text is shown as a note of its size, which stands for it until the line is sent.
const (
	maxShownLines = 8
	maxShownRunes = 600
)

// folds are the texts that notes stand for.
type folds map[string]string

// fold gives what is shown of a text in the line.
func (f folds) fold(text string) string {
	lines := strings.Count(text, "\n") + 1
	if lines <= maxShownLines && utf8.RuneCountInString(text) <= maxShownRunes {
		return strings.ReplaceAll(strings.ReplaceAll(text, "\t", "    "), "\n", string(returnMark))
	}
	for note, was := range f {
		if was == text {
			return note
		}
	}
	size := fmt.Sprintf("%d lines", lines)
	if lines == 1 {
		size = fmt.Sprintf("%d characters", utf8.RuneCountInString(text))
	}
	note := fmt.Sprintf("[paste %d: %s]", len(f)+1, size)
	f[note] = text
	return note
}

// unfold gives the text that a line stands for.
func (f folds) unfold(line string) string {
	line = strings.ReplaceAll(line, string(returnMark), "\n")
	if len(f) == 0 || !strings.Contains(line, "[paste ") {
		return line
	}
	var pairs []string
	for note, text := range f {
		pairs = append(pairs, note, text)
	}
	return strings.NewReplacer(pairs...).Replace(line)
}

// paint shows line feeds.
func paint(line []rune, _ int) []rune {
	out := make([]rune, len(line))
	for i, r := range line {
		if out[i] = r; r == returnMark {
			out[i] = returnSign
		}
	}
	return out
}
