package markdown

import (
	"strings"
	"unicode"

	"github.com/rivo/uniseg"
)

// span is a text in one style.
type span struct {
	text  string
	style string // arguments of SGR, such as "1;4"; empty for none
	frame bool   // drawn around the text, not part of it
}

// line is what one row of a terminal shows.
type line []span

// String has the escapes of the styles, unless plain.
func (l line) render(plain bool) string {
	var b strings.Builder
	for _, s := range l {
		if s.style == "" || plain || s.text == "" {
			b.WriteString(s.text)
			continue
		}
		b.WriteString("\x1b[" + s.style + "m" + s.text + "\x1b[0m")
	}
	return b.String()
}

func (l line) width() (n int) {
	for _, s := range l {
		n += Width(s.text)
	}
	return n
}

// Width is how many columns a text takes, by grapheme clusters.
func Width(text string) int { return uniseg.StringWidth(text) }

// visible counts the clusters of a line that are no spaces and no frame.
func (l line) visible() (n int) {
	for _, s := range l {
		if s.frame {
			continue
		}
		for g := uniseg.NewGraphemes(s.text); g.Next(); {
			if !unicode.IsSpace(g.Runes()[0]) {
				n++
			}
		}
	}
	return n
}

// skip leaves out the first n clusters that visible counts, and the spaces between them.
func (l line) skip(n int) (rest line) {
	for _, s := range l {
		if n == 0 {
			rest = append(rest, s)
			continue
		}
		if s.frame {
			continue
		}
		g := uniseg.NewGraphemes(s.text)
		for n > 0 && g.Next() {
			if !unicode.IsSpace(g.Runes()[0]) {
				n--
			}
		}
		if n == 0 {
			_, to := g.Positions()
			if s.text = s.text[to:]; s.text != "" {
				rest = append(rest, s)
			}
		}
	}
	if len(rest) > 0 {
		rest[0].text = strings.TrimLeft(rest[0].text, " ")
	}
	return rest
}

// wrap breaks spans into lines of at most width columns: at spaces, after characters of two columns, or within a word
// that is longer than a line. A line feed in a text ends its line.
func wrap(spans []span, width int) []line {
	w := wrapper{width: max(width, 1)}
	for _, s := range spans {
		s.text = strings.ReplaceAll(s.text, "\t", "    ")
		for g := uniseg.NewGraphemes(s.text); g.Next(); {
			w.add(g.Str(), g.Width(), s)
		}
	}
	w.flush()
	return append(w.lines, w.line)
}

type wrapper struct {
	width  int
	lines  []line
	line   line // being filled, of col columns
	col    int
	spaces []span // before word
	word   line
	wide   int // columns of word
}

func (w *wrapper) add(cluster string, columns int, s span) {
	piece := span{cluster, s.style, s.frame}
	switch {
	case cluster == "\n" || cluster == "\r\n":
		w.flush()
		w.newLine()
	case cluster == " ":
		w.flush()
		w.spaces = append(w.spaces, piece)
	default:
		if columns == 2 || w.wide+columns > w.width {
			w.flush()
		}
		w.word = appendSpan(w.word, piece)
		w.wide += columns
		if columns == 2 {
			w.flush()
		}
	}
}

func (w *wrapper) flush() {
	if len(w.word) == 0 {
		return
	}
	if w.col > 0 && w.col+len(w.spaces)+w.wide > w.width {
		w.newLine()
	}
	if w.col > 0 || len(w.lines) == 0 || len(w.line) > 0 || len(w.spaces) > 0 {
		for _, s := range w.spaces {
			if w.col+w.wide < w.width {
				w.line = appendSpan(w.line, s)
				w.col++
			}
		}
	}
	for _, s := range w.word {
		w.line = appendSpan(w.line, s)
	}
	w.col += w.wide
	w.word, w.wide, w.spaces = nil, 0, nil
}

func (w *wrapper) newLine() {
	w.lines = append(w.lines, w.line)
	w.line, w.col, w.spaces = nil, 0, nil
}

func appendSpan(l line, s span) line {
	if n := len(l); n > 0 && l[n-1].style == s.style && l[n-1].frame == s.frame {
		l[n-1].text += s.text
		return l
	}
	return append(l, s)
}

// Wrap breaks a text into lines of at most width columns.
func Wrap(text string, width int) (rows []string) {
	for _, l := range wrap([]span{{text: text}}, width) {
		rows = append(rows, l.render(true))
	}
	return rows
}
