package markdown

import (
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	// maxWidth is where lines end in a window that is wider: longer ones are hard to read.
	maxWidth = 100
	// maxLive bounds the source that is parsed anew for each piece of an answer.
	maxLive = 8 << 10
	// share is how much of the time drawing may take: 1 in so many.
	share = 5
)

// Writer shows an answer that comes in pieces, each time rendering what is not final and drawing what differs. Nothing
// else may write to the terminal until Close. It is for one goroutine.
type Writer struct {
	w     io.Writer
	size  func() (columns, rows int)
	plain bool // no styles
	clean Cleaner

	source string   // not final
	shown  []string // the lines of source on the screen; the cursor is at the end of the last
	count  int      // visible clusters of shown
	width  int      // that shown was drawn for
	skip   int      // visible clusters of source that stand above shown, from before the window changed
	begun  bool     // something was written
	next   time.Time
}

// NewWriter draws on w, a terminal whose size is asked for each time.
func NewWriter(w io.Writer, size func() (columns, rows int), plain bool) *Writer {
	return &Writer{w: w, size: size, plain: plain}
}

// WriteString takes the next piece.
func (w *Writer) WriteString(piece string) error {
	w.source += w.clean.Clean(piece)
	now := time.Now()
	if now.Before(w.next) {
		return nil
	}
	err := w.draw(false)
	end := time.Now()
	w.next = end.Add(share * end.Sub(now))
	return err
}

// Close draws what is left and ends the last line.
func (w *Writer) Close() error {
	w.source += Clean(w.clean.rest)
	if err := w.draw(true); err != nil || !w.begun {
		return err
	}
	_, err := io.WriteString(w.w, "\n")
	return err
}

// draw shows the source as it is now.
func (w *Writer) draw(last bool) error {
	for len(w.source) > maxLive {
		at := cut(w.source)
		if at < 0 {
			break
		}
		if err := w.final(at); err != nil {
			return err
		}
	}
	source := w.source
	if !last {
		source = settled(source)
	}
	return w.show(source)
}

// settled is a source without an end that could soon mean something else: a line of marks alone would turn the line
// above into a heading or a table.
func settled(source string) string {
	at := strings.LastIndexByte(source, '\n') + 1
	if strings.Trim(source[at:], "-=|:*_#+>`~ \t0123456789.") == "" {
		return source[:at]
	}
	return source
}

// cut is where a source can be parted: behind an empty line outside of fenced code, or else within the last line end;
// -1 if it has to wait.
func cut(source string) int {
	fenced, best := false, -1
	for at := 0; at < len(source); {
		end := strings.IndexByte(source[at:], '\n')
		if end < 0 {
			break
		}
		row := strings.TrimSpace(source[at : at+end])
		at += end + 1
		if strings.HasPrefix(row, "```") || strings.HasPrefix(row, "~~~") {
			fenced = !fenced
		}
		if row == "" && !fenced && at < len(source) && source[at] != ' ' {
			best = at
		}
	}
	if best < 0 && len(source) > 8*maxLive {
		best = max(strings.LastIndexByte(source, '\n')+1, 4*maxLive)
		for best < len(source) && source[best]&0xC0 == 0x80 { // within a character
			best++
		}
	}
	return best
}

// final shows the source up to a place for the last time.
func (w *Writer) final(at int) error {
	head, rest := w.source[:at], w.source[at:]
	if err := w.show(head); err != nil {
		return err
	}
	w.source, w.shown, w.count, w.skip = rest, nil, 0, 0
	if w.begun {
		_, err := io.WriteString(w.w, "\n\n")
		return err
	}
	return nil
}

// show draws the lines of a source that differ from those that are shown.
func (w *Writer) show(source string) error {
	columns, rows := w.size()
	width := max(1, min(columns-1, maxWidth)) // the last column stays free: terminals differ in when they wrap there
	var out strings.Builder
	if w.width != 0 && width != w.width && len(w.shown) > 0 {
		// What the terminal made of the lines above cannot be known: they stay, and the rest goes below.
		out.WriteString("\n")
		w.skip += w.count
		w.shown, w.count = nil, 0
	}
	w.width = width
	lines, count := w.lines(source, width)
	if len(lines) == 0 && len(w.shown) == 0 {
		_, err := io.WriteString(w.w, out.String())
		return err
	}
	w.update(&out, lines, rows)
	w.shown, w.count, w.begun = lines, count, true
	_, err := io.WriteString(w.w, out.String())
	return err
}

// lines renders a source, without what stands above already.
func (w *Writer) lines(source string, width int) (out []string, count int) {
	skip := w.skip
	for _, l := range render(source, width) {
		if n := l.visible(); skip > 0 {
			if n <= skip {
				skip -= n
				continue
			}
			l, skip = l.skip(skip), 0
		}
		count += l.visible()
		out = append(out, l.render(w.plain))
	}
	return out, count
}

// update writes what turns the lines on the screen into others. Lines that have left the window stay as they are.
func (w *Writer) update(out *strings.Builder, lines []string, rows int) {
	same := 0
	for same < len(lines) && same < len(w.shown) && lines[same] == w.shown[same] {
		same++
	}
	last := len(w.shown) - 1
	if same == len(lines) && same == len(w.shown) {
		return
	}
	if same == len(lines) && same > 0 { // the cursor has to be at the end of the last one
		same--
	}
	switch {
	case last < 0:
	case same > last: // all of them stay
		out.WriteString("\n")
	case same == last && same < len(lines) && !strings.Contains(w.shown[same], "\x1b") &&
		strings.HasPrefix(lines[same], w.shown[same]): // the last one grows
		out.WriteString(lines[same][len(w.shown[same]):])
		if same++; same < len(lines) {
			out.WriteString("\n")
		}
	default:
		up := last - same
		if most := max(0, rows-1); up > most {
			same, up = last-most, most
		}
		if up > 0 {
			fmt.Fprintf(out, "\x1b[%dA", up)
		}
		out.WriteString("\r")
		if len(lines) <= last { // fewer than before
			out.WriteString("\x1b[J")
		}
	}
	for i := same; i < len(lines); i++ {
		out.WriteString(lines[i])
		out.WriteString("\x1b[K")
		if i < len(lines)-1 {
			out.WriteString("\n")
		}
	}
}
