// Package markdown shows Markdown on a terminal while it is being written. The parser is goldmark; the renderer is our
// own, because glamour takes whole documents, pads lines, and brings twenty modules with it. What comes from a model
// cannot command the terminal: Clean holds for every text that is shown.
package markdown

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes a text harmless to a terminal: control characters become visible ones, and those that turn the direction
// of what follows are left out. Line ends and tabs stay.
func Clean(text string) string {
	if strings.IndexFunc(text, harmful) < 0 && utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\u2028' || r == '\u2029':
			b.WriteByte('\n')
		case r == '\r':
		case !harmful(r):
			b.WriteRune(r) // U+FFFD for a byte that is no UTF-8
		case r < ' ':
			b.WriteRune('\u2400' + r)
		case r == 0x7F:
			b.WriteRune('\u2421')
		case r < 0xA0:
			b.WriteRune(utf8.RuneError)
		}
	}
	return b.String()
}

// harmful tells a character that a terminal obeys, or that reorders its neighbours.
func harmful(r rune) bool {
	switch {
	case r == '\n' || r == '\t':
		return false
	case r >= '\u202A' && r <= '\u202E', r >= '\u2066' && r <= '\u2069', r == '\u2028', r == '\u2029':
		return true
	}
	return unicode.IsControl(r)
}

// Cleaner cleans a text that comes in pieces, which may end within a character.
type Cleaner struct{ rest string }

// Clean gives what is complete.
func (c *Cleaner) Clean(piece string) string {
	text := c.rest + piece
	c.rest = ""
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if tail := text[len(text)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRuneInString(tail) {
				text, c.rest = text[:len(text)-n], tail
			}
			break
		}
	}
	return Clean(text)
}
