package termimage_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// screen is a terminal: enough of one to see what the package makes it show.
type screen struct {
	t          testing.TB
	cols, rows int
	cells      [][]cell
	x, y       int
	savedX     int
	savedY     int
	isImage    bool // cells written now are of an image
}

type cell struct {
	r       rune
	isImage bool
}

func newScreen(t testing.TB, cols, rows int) *screen {
	s := &screen{t: t, cols: cols, rows: rows}
	for range rows {
		s.cells = append(s.cells, make([]cell, cols))
	}
	return s
}

var (
	csi   = regexp.MustCompile(`^\x1b\[([0-9;]*)([A-Za-z])`)
	apc   = regexp.MustCompile(`^\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\`)
	osc   = regexp.MustCompile(`^\x1b\]1337;File=inline=1;size=\d+;width=(\d+);height=(\d+);preserveAspectRatio=0:[A-Za-z0-9+/=]+\a`)
	place = regexp.MustCompile(`c=(\d+),r=(\d+)`)
)

// Write does what a terminal does with b, and fails the test if it holds a sequence
// that no terminal was asked to know, or if text and image overlap.
func (s *screen) Write(b []byte) (int, error) {
	text := string(b)
	for text != "" {
		if m := csi.FindStringSubmatch(text); m != nil {
			n, _ := strconv.Atoi(m[1])
			switch m[2] {
			case "A":
				s.y = max(0, s.y-n)
			case "B":
				s.y = min(s.rows-1, s.y+n)
			case "G":
				s.x = n - 1
			case "m":
				s.isImage = m[1] != "0"
			default:
				s.t.Fatalf("sequence %q", m[0])
			}
			text = text[len(m[0]):]
			continue
		}
		if m := apc.FindStringSubmatch(text); m != nil {
			if p := place.FindStringSubmatch(m[1]); p != nil {
				s.place(p[1], p[2])
			}
			text = text[len(m[0]):]
			continue
		}
		if m := osc.FindStringSubmatch(text); m != nil {
			s.place(m[1], m[2])
			s.x, s.y = 3, s.rows-1 // where iTerm2 leaves the cursor must not matter
			text = text[len(m[0]):]
			continue
		}
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case strings.HasPrefix(text, "\x1b7"):
			s.savedX, s.savedY = s.x, s.y
			size = 2
		case strings.HasPrefix(text, "\x1b8"):
			s.x, s.y = s.savedX, s.savedY
			size = 2
		case r == '\r':
			s.x = 0
		case r == '\n':
			if s.y++; s.y == s.rows {
				s.y--
				s.cells = append(s.cells[1:], make([]cell, s.cols))
			}
		case unicode.IsControl(r):
			s.t.Fatalf("control character %q in %.40q", r, text)
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf): // takes no place
		default:
			s.put(r)
		}
		text = text[size:]
	}
	return len(b), nil
}

func (s *screen) put(r rune) {
	n := 1
	if k := width.LookupRune(r).Kind(); k == width.EastAsianWide || k == width.EastAsianFullwidth {
		n = 2
	}
	for i := range n {
		if s.x >= s.cols {
			s.t.Fatalf("%q goes over the edge of line %d", r, s.y)
		}
		if c := &s.cells[s.y][s.x]; c.isImage != s.isImage && c.r != 0 {
			s.t.Fatalf("%q is written over %q at %d, %d", r, c.r, s.x, s.y)
		}
		s.cells[s.y][s.x] = cell{r, s.isImage}
		if i == 1 {
			s.cells[s.y][s.x].r = 0xfffe // the second half
		}
		s.x++
	}
}

// place puts an image of the terminal's own at the cursor.
func (s *screen) place(cols, rows string) {
	c, _ := strconv.Atoi(cols)
	r, _ := strconv.Atoi(rows)
	if s.y+r > s.rows {
		s.t.Fatalf("an image of %d lines at line %d of %d", r, s.y, s.rows)
	}
	for y := range r {
		for x := range c {
			s.cells[s.y+y][s.x+x] = cell{'█', true}
		}
	}
}

// String is the screen's text, an image as "█", without empty lines at the end.
func (s *screen) String() string {
	var b strings.Builder
	for _, line := range s.cells {
		var l strings.Builder
		for _, c := range line {
			switch {
			case c.isImage:
				l.WriteRune('█')
			case c.r == 0:
				l.WriteRune(' ')
			case c.r != 0xfffe:
				l.WriteRune(c.r)
			}
		}
		fmt.Fprintln(&b, strings.TrimRight(l.String(), " "))
	}
	return strings.TrimRight(b.String(), "\n")
}
