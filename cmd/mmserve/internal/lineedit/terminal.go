// Package lineedit reads what a person types at a terminal: lines, pastes, Ctrl-C in the middle of an answer. The
// editing itself is ergochat/readline's: it is small, kept up, knows the width of characters, and leaves reading and
// raw mode to its caller, which Ctrl-C during an answer and pastes of many lines need.
package lineedit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/ergochat/readline"
	"golang.org/x/term"
)

// ErrInterrupt is ReadLine's error for Ctrl-C.
var ErrInterrupt = errors.New("interrupted")

// Options are what a Terminal is opened with.
type Options struct {
	History  *History // nil: none is kept
	Complete func(line string) (shared int, candidates []string)
	Getenv   func(string) string // of the external editor
}

// Terminal is a person's, in raw mode from Open to Close: keys that are typed while nothing is read wait for the next
// ReadLine, and do not show. Its methods are for one goroutine, but for Close.
type Terminal struct {
	in, out *os.File
	options Options
	restore func() error
	rl      *readline.Instance
	stop    func()

	mode    sync.Mutex // held while the terminal's mode changes
	mu      sync.Mutex
	ready   *sync.Cond // something below has changed
	queue   []byte     // for the line editor
	closed  bool       // no more input
	reading bool       // ReadLine runs
	cancel  func()     // of the answer under way; nil if there is none
	folds   folds
	// Ctrl-G may start an editor, beside which nothing may read the keyboard: pump waits until the line editor, having
	// got the key, asks for another one.
	paused, delivered bool
}

// Open takes a terminal over. It fails where there is no raw mode.
func Open(in, out *os.File, o Options) (*Terminal, error) {
	t := &Terminal{in: in, out: out, options: o, folds: folds{}}
	t.ready = sync.NewCond(&t.mu)
	if t.options.History == nil {
		t.options.History = new(History)
	}
	var err error
	if t.restore, err = rawMode(in); err != nil {
		return nil, err
	}
	t.rl, err = readline.NewFromConfig(&readline.Config{
		Stdin: (*input)(t), Stdout: (*screen)(t), Stderr: out, Undo: true,
		HistoryLimit: 2 * maxEntries, HistorySearchFold: true, DisableAutoSaveHistory: true,
		AutoComplete: completer(o.Complete), Listener: t.listen, Painter: paint, FuncFilterInputRune: filterRune,
		FuncIsTerminal: func() bool { return true }, FuncGetSize: t.Size,
		FuncMakeRaw: func() error { return nil }, FuncExitRaw: func() error { return nil }, // Open and Close do
		FuncOnWidthChanged: func(changed func()) { t.stop = watchSize(func() { t.resized(changed) }) },
	})
	if err != nil {
		return nil, errors.Join(err, t.restore())
	}
	for _, text := range t.options.History.entries {
		_ = t.rl.SaveToHistory(folds{}.fold(text))
	}
	_, _ = io.WriteString(out, "\x1b[?2004h") // have pastes marked
	go t.pump()
	return t, nil
}

// Close gives the terminal back as it was. A ReadLine that runs ends with io.EOF.
func (t *Terminal) Close() error {
	t.Interrupt()
	t.mode.Lock()
	defer t.mode.Unlock()
	if t.restore == nil {
		return nil
	}
	t.stop()
	err := t.rl.Close()
	_, _ = io.WriteString(t.out, "\x1b[?2004l")
	restore := t.restore
	t.restore = nil
	return errors.Join(err, restore())
}

// Interrupt ends a ReadLine that runs, and all later ones, with io.EOF.
func (t *Terminal) Interrupt() {
	t.mu.Lock()
	t.closed = true
	t.ready.Broadcast()
	t.mu.Unlock()
}

// Size is the window's; 80 by 24 if the terminal does not tell.
func (t *Terminal) Size() (columns, rows int) {
	columns, rows, err := term.GetSize(int(t.out.Fd()))
	if err != nil || columns <= 0 || rows <= 0 {
		return 80, 24
	}
	return columns, rows
}

// ReadLine reads a message, which may have several lines where they were pasted, came from an editor or were made with
// Alt-Enter. initial is there to begin with. The error is ErrInterrupt or io.EOF.
func (t *Terminal) ReadLine(prompt, initial string) (string, error) {
	t.mu.Lock()
	t.reading = true
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		t.reading = false
		t.mu.Unlock()
	}()
	t.rl.SetPrompt(prompt)
	line, err := t.rl.ReadLineWithDefault(t.fold(initial))
	if errors.Is(err, readline.ErrInterrupt) {
		return "", ErrInterrupt
	}
	if err != nil {
		return "", err
	}
	return t.unfold(line), nil
}

// Remember keeps a message for the arrow keys, and for later runs if the history is kept.
func (t *Terminal) Remember(text string) error {
	_ = t.rl.SaveToHistory(t.fold(text)) // in memory
	return t.options.History.Add(text)
}

// Answering gives a context that Ctrl-C ends, until stop.
func (t *Terminal) Answering(ctx context.Context) (answering context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel = cancel
	if bytes.IndexByte(t.queue, keyInterrupt) >= 0 { // typed in the moment between
		t.queue = bytes.ReplaceAll(t.queue, []byte{keyInterrupt}, nil)
		cancel()
	}
	return ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.cancel = nil
		cancel()
	}
}

func (t *Terminal) fold(text string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.folds.fold(text)
}

func (t *Terminal) unfold(line string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.folds.unfold(line)
}

// pump reads the keyboard until its end.
func (t *Terminal) pump() {
	var d decoder
	buf := make([]byte, 32<<10)
	for {
		n, err := t.in.Read(buf)
		for _, e := range d.feed(buf[:n]) {
			t.take(e)
		}
		if err != nil {
			t.Interrupt()
			return
		}
	}
}

// take does what an event is for.
func (t *Terminal) take(e event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e.kind {
	case typed:
		t.push(e.data)
	case newline:
		t.push([]byte(string(returnMark)))
	case pasted:
		t.push([]byte(t.folds.fold(plainText(e.data))))
	case interrupt:
		if t.reading || t.cancel == nil {
			t.push([]byte{keyInterrupt})
		} else {
			t.cancel()
		}
	case editor:
		if !t.reading {
			return
		}
		t.push([]byte{keyEditor})
		for t.paused = true; t.paused && !t.closed; {
			t.ready.Wait()
		}
	case suspend:
		t.mu.Unlock()
		t.suspend()
		t.mu.Lock()
	}
}

func (t *Terminal) push(data []byte) {
	t.queue = append(t.queue, data...)
	t.ready.Broadcast()
}

// suspend stops the process as Ctrl-Z does, with the terminal as the shell expects it.
func (t *Terminal) suspend() {
	_ = t.release(func() error { stopSelf(); return nil })
	t.rl.Refresh()
}

// release has the terminal as it was while do runs.
func (t *Terminal) release(do func() error) error {
	t.mode.Lock()
	defer t.mode.Unlock()
	if t.restore == nil { // closed
		return nil
	}
	_, _ = io.WriteString(t.out, "\x1b[?2004l")
	err := errors.Join(t.restore(), do())
	restore, raw := rawMode(t.in)
	if raw == nil {
		t.restore = restore
	}
	_, _ = io.WriteString(t.out, "\x1b[?2004h")
	return errors.Join(err, raw)
}

func (t *Terminal) resized(changed func()) {
	changed()
	t.mu.Lock()
	reading := t.reading
	t.mu.Unlock()
	if reading && t.rl != nil {
		t.rl.Refresh()
	}
}

// listen has Ctrl-G edit the message in an editor.
func (t *Terminal) listen(line []rune, pos int, key rune) ([]rune, int, bool) {
	if key != keyEditor {
		return nil, 0, false
	}
	text, err := t.edit(t.unfold(string(line)))
	if err != nil {
		_, _ = io.WriteString(t.out, "\r\n"+err.Error()+"\r\n")
		return line, pos, true
	}
	now := []rune(t.fold(text))
	return now, len(now), true
}

// edit runs the user's editor over a text.
func (t *Terminal) edit(text string) (string, error) {
	command := editorCommand(t.options.Getenv)
	if command == nil {
		return "", errors.New("there is no editor: want one in the variable EDITOR")
	}
	f, err := os.CreateTemp("", "mmserve-*.md") // 0600
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	if _, err = io.WriteString(f, text); err == nil {
		err = f.Close()
	}
	if err != nil {
		return "", err
	}
	cmd := exec.Command(command[0], append(command[1:], f.Name())...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = t.in, t.out, t.out
	if err := t.release(cmd.Run); err != nil {
		return "", errors.New(command[0] + ": " + err.Error())
	}
	changed, err := os.Open(f.Name())
	if err != nil {
		return "", err
	}
	defer changed.Close()
	data, err := io.ReadAll(io.LimitReader(changed, maxPaste))
	return strings.TrimRight(plainText(data), "\n"), err
}

// editorCommand is the user's editor with its arguments, or one that is there.
func editorCommand(getenv func(string) string) []string {
	for _, name := range []string{"VISUAL", "EDITOR"} {
		if words := strings.Fields(getenv(name)); len(words) > 0 {
			return words
		}
	}
	for _, name := range []string{"nano", "vim", "vi"} {
		if path, err := exec.LookPath(name); err == nil {
			return []string{path}
		}
	}
	return nil
}

// filterRune leaves out what no key gives.
func filterRune(r rune) (rune, bool) { return r, r != 0 }

// input is what the line editor reads: one byte at a time, so that what it does not need yet stays in the queue.
type input Terminal

func (in *input) Read(p []byte) (int, error) {
	t := (*Terminal)(in)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.delivered {
		t.paused, t.delivered = false, false
		t.ready.Broadcast()
	}
	for len(t.queue) == 0 && !t.closed {
		t.ready.Wait()
	}
	if len(t.queue) == 0 {
		return 0, io.EOF
	}
	p[0] = t.queue[0]
	t.queue = t.queue[1:]
	t.delivered = t.paused && p[0] == keyEditor
	return 1, nil
}

// screen is what the line editor writes to. It asks the terminal where the cursor is, which not all answer; here a line
// always begins in the first column, so the answer is given in the terminal's place.
type screen Terminal

func (s *screen) Write(p []byte) (int, error) {
	t := (*Terminal)(s)
	if string(p) == "\x1b[6n" {
		t.mu.Lock()
		t.queue = append([]byte("\x1b[1;1R"), t.queue...)
		t.ready.Broadcast()
		t.mu.Unlock()
		return len(p), nil
	}
	return t.out.Write(p)
}

// completer is what completes a line, as the line editor wants it.
type completer func(line string) (shared int, candidates []string)

// Do gives what could follow the line up to pos.
func (c completer) Do(line []rune, pos int) (list [][]rune, shared int) {
	if c == nil {
		return nil, 0
	}
	shared, candidates := c(string(line[:pos]))
	for _, text := range candidates {
		list = append(list, []rune(text))
	}
	return list, shared
}
