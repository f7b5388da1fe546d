//go:build linux || darwin

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
)

// tty is mmserve at a terminal of its own, whose screen is someone else's emulator.
type tty struct {
	t      *testing.T
	cmd    *exec.Cmd
	pty    *os.File
	screen *vt.SafeEmulator
	waited chan struct{}

	mu  sync.Mutex
	raw strings.Builder // all that was written
}

// window is how a tty is started.
type window struct {
	columns, rows int
	dir           string   // where it runs; "" for an empty folder
	env           []string // on top of the environment
}

// openTTY starts a command in a window.
func openTTY(t *testing.T, w window, args ...string) *tty {
	t.Helper()
	if w.columns == 0 {
		w.columns, w.rows = 80, 24
	}
	if w.dir == "" {
		w.dir = t.TempDir()
	}
	y := &tty{t: t, screen: vt.NewSafeEmulator(w.columns, w.rows), waited: make(chan struct{})}
	y.cmd = exec.Command(os.Args[0], args...)
	y.cmd.Dir = w.dir
	y.cmd.Env = append(os.Environ(), asCommand+"=1", "MMSERVE_ORT_LIB="+ortLibrary(t), "TERM=xterm-256color", "NO_COLOR=1",
		"XDG_STATE_HOME="+filepath.Join(w.dir, "state"), "MMSERVE_PRECISION=fp32", "TMUX=")
	y.cmd.Env = append(y.cmd.Env, w.env...)
	var err error
	y.pty, err = pty.StartWithSize(y.cmd, &pty.Winsize{Cols: uint16(w.columns), Rows: uint16(w.rows)})
	if err != nil {
		t.Fatal(err)
	}
	go y.show()
	go func() { // what the terminal answers by itself
		buf := make([]byte, 256)
		for {
			n, err := y.screen.Read(buf)
			if err != nil {
				return
			}
			_, _ = y.pty.Write(buf[:n])
		}
	}()
	go func() { _ = y.cmd.Wait(); close(y.waited) }()
	t.Cleanup(func() {
		_ = y.cmd.Process.Kill()
		<-y.waited
		_ = y.pty.Close()
		if t.Failed() {
			t.Logf("it wrote %q", tail(y.all(), 2000))
		}
	})
	return y
}

// show draws what comes until the terminal is closed.
func (y *tty) show() {
	buf := make([]byte, 32<<10)
	for {
		n, err := y.pty.Read(buf)
		y.mu.Lock()
		y.raw.Write(buf[:n])
		_, _ = y.screen.Write(buf[:n])
		y.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func ortLibrary(t *testing.T) string { t.Helper(); return ortLibraryFrom(t, filepath.Join("..", "..")) }

// key types bytes as they come from a keyboard.
func (y *tty) key(keys string) {
	y.t.Helper()
	if _, err := y.pty.Write([]byte(keys)); err != nil {
		y.t.Fatal(err)
	}
}

// enter types a line.
func (y *tty) enter(line string) { y.t.Helper(); y.key(line + "\r") }

// text is what the window shows, and what has left it above.
func (y *tty) text() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	var b strings.Builder
	for _, line := range y.screen.Scrollback().Lines() {
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	b.WriteString(strings.TrimRight(y.screen.String(), " \n"))
	return b.String()
}

// wants waits until the screen has a text, and gives all of it.
func (y *tty) wants(text string) string {
	y.t.Helper()
	y.until(text, func(screen string) bool { return strings.Contains(screen, text) })
	return y.text()
}

func (y *tty) until(what string, ok func(screen string) bool) {
	y.t.Helper()
	for deadline := time.Now().Add(ttyPatience); !ok(y.text()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			y.t.Fatalf("no %q on\n%s", what, y.text())
		}
	}
}

// prompted waits for an empty prompt at the end of the screen.
func (y *tty) prompted() {
	y.t.Helper()
	y.until("prompt", func(screen string) bool {
		return strings.HasSuffix("\n"+strings.TrimRight(screen, " \n"), "\n>")
	})
}

// size changes the window.
func (y *tty) size(columns, rows int) {
	y.t.Helper()
	y.mu.Lock()
	y.screen.Resize(columns, rows)
	y.mu.Unlock()
	if err := pty.Setsize(y.pty, &pty.Winsize{Cols: uint16(columns), Rows: uint16(rows)}); err != nil {
		y.t.Fatal(err)
	}
}

// exit waits for the end and gives the status.
func (y *tty) exit() int {
	y.t.Helper()
	select {
	case <-y.waited:
	case <-time.After(time.Minute):
		y.t.Fatalf("it does not end:\n%s", y.text())
	}
	return y.cmd.ProcessState.ExitCode()
}

// all is every byte that was written to the terminal.
func (y *tty) all() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.raw.String()
}

// ttyPatience is far above what anything here takes on a busy machine.
const ttyPatience = 40 * time.Second

func tail(text string, n int) string { return text[max(0, len(text)-n):] }
