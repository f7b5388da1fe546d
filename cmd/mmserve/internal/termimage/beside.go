package termimage

import (
	"fmt"
	"image"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
	"golang.org/x/text/width"
)

// The layout, in character cells. The image takes at most half the width.
const (
	maxCols  = 40
	maxRows  = 16
	gap      = 2  // between image and text
	minText  = 20 // of a column of text; if there is no room for it, text goes below
	noWidth  = 80 // of a terminal that does not tell
	noHeight = 24
)

// Beside is an image with a column of text at its right, to which Write adds: it is
// wrapped at words and may go on below the end of the image. A word shows when it is
// complete. Nothing else may write to the terminal until Close. It is for one goroutine.
type Beside struct {
	w      io.Writer
	rows   int // lines of the image
	left   int // column where the text starts
	width  int // columns of the text
	row    int // line of the cursor, from the top of the image
	col    int // column of the cursor in the text
	spaces int // written before word, if it is not the first of a line
	word   []byte
	wide   int    // columns of word
	rest   []byte // of a character that is not complete
}

// NewBeside draws img on the terminal that w is, sized for its window. A w that is no
// terminal is taken for one of 80 by 24.
func NewBeside(w io.Writer, img image.Image, p Protocol) (*Beside, error) {
	if f, ok := w.(interface{ Fd() uintptr }); ok {
		if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
			return newBeside(w, img, p, cols, rows)
		}
	}
	return newBeside(w, img, p, noWidth, noHeight)
}

// newBeside is NewBeside for a window of cols by rows.
func newBeside(w io.Writer, img image.Image, p Protocol, cols, rows int) (*Beside, error) {
	// The last column stays free: terminals differ in when they wrap there.
	b := &Beside{w: w, width: max(1, cols-1)}
	if p == None {
		return b, nil
	}
	maxC, maxR := max(1, min(maxCols, cols/2)), max(1, min(maxRows, rows-2))
	if err := Draw(w, img, maxC, maxR, p); err != nil {
		return nil, err
	}
	c, r := fit(img, maxC, maxR)
	if left := c + gap; b.width-left >= minText {
		b.rows, b.left = r, left
		b.width -= left
		_, err := fmt.Fprintf(w, "\x1b[%dA\x1b[%dG", r, left+1)
		return b, err
	}
	return b, nil
}

// Write adds text. Control characters in it are left out, but for line ends and tabs:
// what a model writes must not command the terminal.
func (b *Beside) Write(text []byte) (int, error) {
	var out strings.Builder
	rest := append(b.rest, text...)
	for len(rest) > 0 && utf8.FullRune(rest) {
		r, size := utf8.DecodeRune(rest)
		b.add(&out, r)
		rest = rest[size:]
	}
	b.rest = append([]byte(nil), rest...)
	if _, err := io.WriteString(b.w, out.String()); err != nil {
		return 0, err
	}
	return len(text), nil
}

func (b *Beside) add(out *strings.Builder, r rune) {
	n := columns(r)
	switch {
	case r == '\n', r == '\u2028', r == '\u2029':
		b.flush(out)
		b.newLine(out)
		b.spaces = 0
	case r == ' ' || r == '\t':
		b.flush(out)
		b.spaces++
	case unicode.IsControl(r):
	case n == 2: // scripts of wide characters break anywhere
		b.flush(out)
		b.word, b.wide = utf8.AppendRune(b.word, r), n
	default:
		if b.wide+n > b.width { // longer than a line
			b.flush(out)
		}
		b.word, b.wide = utf8.AppendRune(b.word, r), b.wide+n
	}
}

// flush writes the word.
func (b *Beside) flush(out *strings.Builder) {
	if len(b.word) == 0 {
		return
	}
	if b.col > 0 && b.col+b.spaces+b.wide > b.width {
		b.newLine(out)
		b.spaces = 0
	}
	b.spaces = max(0, min(b.spaces, b.width-b.col-b.wide))
	out.WriteString(strings.Repeat(" ", b.spaces))
	out.Write(b.word)
	b.col += b.spaces + b.wide
	b.spaces, b.word, b.wide = 0, nil, 0
}

func (b *Beside) newLine(out *strings.Builder) {
	fmt.Fprintf(out, "\r\n\x1b[%dG", b.left+1)
	b.row++
	b.col = 0
}

// Close writes what is left and moves the cursor to the start of the line below the
// image and the text.
func (b *Beside) Close() error {
	var out strings.Builder
	b.flush(&out)
	out.WriteString("\r")
	// Draw made the lines down to the one below the image.
	if down := b.rows - b.row; down > 0 {
		fmt.Fprintf(&out, "\x1b[%dB", down)
	} else {
		out.WriteString("\n")
	}
	_, err := io.WriteString(b.w, out.String())
	return err
}

// columns returns how many columns of a terminal r takes.
func columns(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case width.LookupRune(r).Kind() == width.EastAsianWide, width.LookupRune(r).Kind() == width.EastAsianFullwidth:
		return 2
	}
	return 1
}
