package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/lineedit"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/markdown"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/termimage"
)

// view is where answers are shown, and what may be shown there.
type view struct {
	in       *os.File
	out, err io.Writer
	terminal bool // out is a terminal
	escapes  bool // it obeys escapes
	styles   bool // colours and the like are wanted
	person   bool // a person types
	edits    bool // with a line editor
	quiet    bool // answers alone
	source   bool // Markdown as it is
	images   termimage.Protocol
}

// newView goes by what the files are and by TERM and NO_COLOR.
func newView(in *os.File, out, err io.Writer, getenv func(string) string) *view {
	v := &view{in: in, out: out, err: err, terminal: isTerminal(out), person: isTerminal(in)}
	dumb := getenv("TERM") == "dumb" || getenv("TERM") == ""
	v.escapes = v.terminal && !dumb
	v.styles = v.escapes && getenv("NO_COLOR") == ""
	v.edits = v.person && v.escapes
	v.images = termimage.Detect(getenv, v.escapes)
	return v
}

// size is that of the window.
func (v *view) size() (columns, rows int) {
	if f, ok := v.out.(interface{ Fd() uintptr }); ok {
		if columns, rows, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 && rows > 0 {
			return columns, rows
		}
	}
	return 80, 24
}

// dim is a text that is less important than an answer.
func (v *view) dim(text string) string {
	if !v.styles {
		return text
	}
	return "\x1b[2m" + text + "\x1b[0m"
}

// answer is where an answer goes: rendered on a terminal, as it is elsewhere.
func (v *view) answer() answerSink {
	switch {
	case !v.terminal:
		return &rawAnswer{w: v.out}
	case v.escapes && !v.source:
		return markdown.NewWriter(v.out, v.size, !v.styles)
	}
	return &rawAnswer{w: v.out, clean: new(markdown.Cleaner)}
}

// answerSink shows an answer that comes in pieces.
type answerSink interface {
	WriteString(piece string) error
	Close() error
}

// rawAnswer writes an answer as it is, and a line end. clean is set where a terminal would obey it.
type rawAnswer struct {
	w     io.Writer
	clean *markdown.Cleaner
	any   bool
}

func (a *rawAnswer) WriteString(piece string) error {
	if a.clean != nil {
		piece = a.clean.Clean(piece)
	}
	a.any = a.any || piece != ""
	_, err := io.WriteString(a.w, piece)
	return err
}

func (a *rawAnswer) Close() error {
	if !a.any {
		return nil
	}
	_, err := io.WriteString(a.w, "\n")
	return err
}

// console is where messages come from.
type console interface {
	// ReadLine reads a message. The error is io.EOF, lineedit.ErrInterrupt, or that of reading.
	ReadLine(prompt, initial string) (string, error)
	// Remember keeps a message for the arrow keys.
	Remember(text string) error
	// Answering gives a context that Ctrl-C ends, until stop.
	Answering(ctx context.Context) (answering context.Context, stop func())
	// Interrupt ends a ReadLine under way with io.EOF.
	Interrupt()
	Close() error
}

// console opens the line editor where there is a person and a terminal that can.
func (v *view) console(h *lineedit.History, complete func(string) (int, []string)) (console, error) {
	if out, ok := v.out.(*os.File); ok && v.edits {
		t, err := lineedit.Open(v.in, out, lineedit.Options{History: h, Complete: complete, Getenv: os.Getenv})
		if err == nil {
			return t, nil
		}
		v.edits = false
	}
	return newLines(v), nil
}

// maxLine bounds a line of input, in bytes.
const maxLine = 8 << 20

// lines are those of a file, a pipe, or a terminal without a line editor.
type lines struct {
	view *view
	next chan string
	err  error // set before next is closed
	gone chan struct{}
	once sync.Once
}

func newLines(v *view) *lines {
	l := &lines{view: v, next: make(chan string), gone: make(chan struct{})}
	go func() { // ends with the input, or with the process: a read cannot be ended
		defer close(l.next)
		s := bufio.NewScanner(v.in)
		s.Buffer(make([]byte, 0, 64<<10), maxLine)
		for s.Scan() {
			select {
			case l.next <- s.Text():
			case <-l.gone:
				return
			}
		}
		if l.err = s.Err(); errors.Is(l.err, bufio.ErrTooLong) {
			l.err = fmt.Errorf("a line has more than %d MiB", maxLine>>20)
		}
	}()
	return l
}

// ReadLine has a prompt only for a person, who can clear a line with Ctrl-C.
func (l *lines) ReadLine(prompt, _ string) (string, error) {
	var interrupts chan os.Signal
	if l.view.person {
		fmt.Fprint(l.view.out, prompt)
		interrupts = make(chan os.Signal, 1)
		signal.Notify(interrupts, os.Interrupt)
		defer signal.Stop(interrupts)
	}
	select {
	case text, ok := <-l.next:
		if !ok && l.err != nil {
			return "", l.err
		}
		if !ok {
			return "", io.EOF
		}
		return strings.TrimSuffix(text, "\r"), nil
	case <-interrupts:
		fmt.Fprintln(l.view.out)
		return "", lineedit.ErrInterrupt
	case <-l.gone:
		return "", io.EOF
	}
}

func (l *lines) Remember(string) error { return nil }

func (l *lines) Answering(ctx context.Context) (context.Context, func()) {
	if !l.view.person { // Ctrl-C ends the program
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, os.Interrupt)
}

func (l *lines) Interrupt()   { l.once.Do(func() { close(l.gone) }) }
func (l *lines) Close() error { l.Interrupt(); return nil }

// untilHangup gives a context that SIGTERM, or a terminal that goes away, ends. Interrupts are the chat's own.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGHUP)
}
