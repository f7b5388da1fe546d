package markdown

import (
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/charmbracelet/x/vt"
)

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"plain\n\ttext":        "plain\n\ttext",
		"\x1b[2J\x1b]0;t\a":    "␛[2J␛]0;t␇",
		"a\rb\x00\x7f":         "ab␀␡",
		"\u009b31m":            "\uFFFD31m",
		"\u202Eevil\u202C":     "evil",
		"\u2066x\u2069\u2028y": "x\ny",
		"\xff\xfe":             "\uFFFD\uFFFD",
		"שלום 你好 👩‍👩‍👧":        "שלום 你好 👩‍👩‍👧",
	} {
		if got := Clean(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	var c Cleaner
	got := ""
	for _, b := range []byte("ä你👍\x1b") {
		got += c.Clean(string([]byte{b}))
	}
	if got != "ä你👍␛" {
		t.Errorf("byte by byte: %q", got)
	}
}

// plainly renders without styles.
func plainly(source string, width int) string {
	var rows []string
	for _, l := range render(source, width) {
		rows = append(rows, strings.TrimRight(l.render(true), " "))
	}
	return strings.Join(rows, "\n")
}

func TestRender(t *testing.T) {
	for _, c := range []struct {
		source, want string
		width        int
	}{
		{"# Title\nSome *text* and **more** `code`.", "# Title\n\nSome text and more code.", 40},
		{"one two three four", "one two\nthree four", 10},
		{"- a\n- b\n  1. x\n  2. y\n", "• a\n• b\n  1. x\n  2. y", 40},
		{"> quoted words", "│ quoted\n│ words", 10},
		{"```go\nfunc  f() {\n\tx\n}\n```", "  func  f() {\n      x\n  }", 40},
		{"| a | b |\n|---|--:|\n| 1 | 22 |\n", "a   │   b\n────┼────\n1   │  22", 40},
		{"| name | text |\n|---|---|\n| x | many words in here |\n", "name │ text\n─────┼───────\nx    │ many\n     │ words\n     │ in\n     │ here", 13},
		{"| a | b | c | d |\n|---|---|---|---|\n| 1 | 2 | 3 | 4 |\n", "a: 1\nb: 2\nc: 3\nd: 4", 10},
		{"[link](http://x.y) and <http://z>", "link (http://x.y) and http://z", 60},
		{"line one\nline two", "line one\nline two", 60},
		{"你好世界你好", "你好世\n界你好", 7},
		{"---", "──────────", 10},
		{"- [x] done\n- [ ] not", "• ☑ done\n• ☐ not", 40},
		{"a &#27;[31m \\* &amp; b", "a ␛[31m * & b", 40},
		{"<b>html</b> stays", "<b>html</b> stays", 40},
		{"averyveryverylongword", "averyveryv\nerylongwor\nd", 10},
		{"", "", 10},
	} {
		if got := plainly(c.source, c.width); got != c.want {
			t.Errorf("%q at %d:\n%s\nwant\n%s", c.source, c.width, got, c.want)
		}
	}
	if got := render("**b** _i_", 20)[0].render(false); got != "\x1b[1mb\x1b[0m \x1b[3mi\x1b[0m" {
		t.Errorf("styles: %q", got)
	}
}

// terminal is an emulator that takes line feeds as a terminal does whose driver adds the carriage return.
type terminal struct {
	*vt.Emulator
	columns, rows int
}

func newTerminal(columns, rows int) *terminal {
	return &terminal{vt.NewEmulator(columns, rows), columns, rows}
}

func (e *terminal) Write(p []byte) (int, error) {
	_, err := e.Emulator.Write([]byte(strings.ReplaceAll(string(p), "\n", "\r\n")))
	return len(p), err
}

func (e *terminal) WriteString(s string) (int, error) { return e.Write([]byte(s)) }

func (e *terminal) size() (int, int) { return e.columns, e.rows }

// text is what the screen has, and what left it.
func (e *terminal) text() string {
	var rows []string
	for _, l := range e.Scrollback().Lines() {
		rows = append(rows, strings.TrimRight(l.String(), " "))
	}
	for _, row := range strings.Split(e.String(), "\n") {
		rows = append(rows, strings.TrimRight(row, " "))
	}
	return strings.Trim(strings.Join(rows, "\n"), "\n")
}

const document = "# Fruits\n\nHere is **what** I _know_ about them:\n\n1. apples, which are round\n2. bananas\n   - yellow\n\n" +
	"| fruit | colour |\n|---|---|\n| apple | red |\n| 香蕉 | yellow |\n\n```\ncode  here\n```\n\nAnd that is all there is to say. שלום\n"

// An answer that comes character by character ends up on the screen as when it comes at once, in any window.
func TestWriterPieces(t *testing.T) {
	for _, columns := range []int{10, 20, 41, 80, 300} {
		for _, piece := range []int{1, 3, 7, 1000} {
			e := newTerminal(columns, 60)
			w := NewWriter(e, e.size, true)
			for at := 0; at < len(document); at += piece {
				if err := w.WriteString(document[at:min(at+piece, len(document))]); err != nil {
					t.Fatal(err)
				}
				w.next = w.next.Add(-1 << 40) // draw each piece
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			want := plainly(document, min(columns-1, maxWidth))
			if got := e.text(); got != want {
				t.Fatalf("%d columns, pieces of %d:\n%s\nwant\n%s", columns, piece, got, want)
			}
		}
	}
}

// A window that changes in the middle loses no word and shows none twice. What stands there already a narrower emulator
// crops, so that only later words are looked for.
func TestWriterResize(t *testing.T) {
	var words []string
	for i := range 60 {
		words = append(words, fmt.Sprintf("word%03d", i))
	}
	for _, c := range []struct{ columns, first int }{{100, 0}, {300, 0}, {40, 26}, {20, 26}, {8, 26}, {2, 60}} {
		e := newTerminal(80, 24)
		w := NewWriter(e, e.size, true)
		for i, r := range strings.Join(words, " ") {
			if i == 203 { // within word025
				e.columns = c.columns
				e.Resize(c.columns, 24)
			}
			if err := w.WriteString(string(r)); err != nil {
				t.Fatal(err)
			}
			w.next = w.next.Add(-1 << 40)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		letters := strings.Join(strings.Fields(e.text()), "")
		for _, word := range words[c.first:] {
			if n := strings.Count(letters, word); n != 1 {
				t.Errorf("%d columns: %s is there %d times in\n%s", c.columns, word, n, e.text())
			}
		}
	}
}

// Long answers are parted, so that drawing does not take longer with each word.
func TestWriterLong(t *testing.T) {
	e := newTerminal(80, 24)
	e.SetScrollbackSize(100_000)
	w := NewWriter(e, e.size, true)
	var want strings.Builder
	for i := range 120 {
		text := fmt.Sprintf("paragraph %d %s\n\n", i, strings.Repeat("x", 40+i%20))
		if i%2 == 0 {
			text += fmt.Sprintf("- %s\n\n", strings.Repeat("list ", 50))
		}
		want.WriteString(text)
		if err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		w.next = w.next.Add(-1 << 40)
		if len(w.source) > 2*maxLive {
			t.Fatalf("%d bytes are parsed anew", len(w.source))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(e.text()), " ")
	if all := strings.ReplaceAll(strings.Join(strings.Fields(want.String()), " "), " - ", " • "); got != all {
		t.Errorf("%d bytes, want %d: …%s", len(got), len(all), got[max(0, len(got)-100):])
	}
	if cut(strings.Repeat("x", 9*maxLive)) <= 0 {
		t.Error("a line without end is never parted")
	}
}

// Whatever a model writes, in whatever pieces, no byte of it reaches the terminal as a command.
func FuzzWriter(f *testing.F) {
	f.Add(document, 20, 3)
	f.Add("\x1b[31m&#27;[2J\x9b`\x1b`<\x1b>[\x07](\x1b)", 5, 1)
	f.Add("|\x1b|\n|-|\n", 1, 2)
	f.Fuzz(func(t *testing.T, source string, columns, piece int) {
		columns, piece = 1+abs(columns)%200, 1+abs(piece)%50
		if len(source) > 4<<10 {
			return
		}
		var out strings.Builder
		w := NewWriter(&out, func() (int, int) { return columns, 24 }, true)
		for at := 0; at < len(source); at += piece {
			_ = w.WriteString(source[at:min(at+piece, len(source))])
			w.next = w.next.Add(-1 << 40)
		}
		_ = w.Close()
		rest := strings.NewReplacer("\x1b[K", "", "\x1b[J", "").Replace(out.String())
		for {
			at := strings.Index(rest, "\x1b[")
			if at < 0 {
				break
			}
			var n int
			if _, err := fmt.Sscanf(rest[at:], "\x1b[%dA", &n); err != nil || n < 1 || n > 24 {
				t.Fatalf("%q has an escape", rest[at:])
			}
			rest = rest[:at] + rest[at+strings.IndexByte(rest[at:], 'A')+1:]
		}
		for _, r := range rest {
			if unicode.IsControl(r) && r != '\n' && r != '\r' {
				t.Fatalf("%q in %q", r, rest)
			}
		}
		for _, l := range render(Clean(source), columns) {
			if n := l.width(); n > max(columns, 2) {
				t.Fatalf("a line of %d columns in %d: %q", n, columns, l.render(true))
			}
		}
	})
}

func abs(n int) int { return max(n, -(n + 1)) }
