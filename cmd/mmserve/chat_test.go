//go:build linux || darwin

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// star is a folder with an image of an orange star, under a name with a space.
func star(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "my star.png"), sample(t, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A person asks about an image, edits with the arrow keys, leaves with Ctrl-D, and finds what was typed again.
func TestChatTerminal(t *testing.T) {
	dir := star(t)
	y := openTTY(t, window{dir: dir}, "chat")
	y.wants("tiny-vlm in this process")
	y.prompted()
	y.enter("what is this? 'my star.png'")
	screen := y.wants("tokens in (16 of images)")
	for _, want := range []string{"added my star.png: png, 256×256 pixels", "A large orange star", "first after", "tokens/s"} {
		if !strings.Contains(screen, want) {
			t.Errorf("no %q", want)
		}
	}
	y.prompted()
	y.key("/shox\x1b[D\x1b[3~w\r") // left, delete, and the right letter
	y.wants("1 questions, 1 images")
	y.prompted()
	y.key("/sh\t\r")
	y.until("completion", func(s string) bool { return strings.Count(s, "1 questions, 1 images") == 2 })
	y.prompted()
	y.key("\x04")
	if code := y.exit(); code != 0 {
		t.Errorf("status %d", code)
	}
	if strings.Contains(y.all(), "\x1b[38;") || strings.Contains(y.all(), "\x1b[2m") {
		t.Error("colours in spite of NO_COLOR")
	}
	history := filepath.Join(dir, "state", "mmserve", "chat_history")
	if st, err := os.Stat(history); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("history: %v %v", st, err)
	}
	y = openTTY(t, window{dir: dir}, "chat")
	y.prompted()
	y.key("\x1b[A\x1b[A\x1b[A")
	y.wants("> what is this? 'my star.png'")
	y.key("\x15/bye\r")
	if code := y.exit(); code != 0 {
		t.Errorf("status %d", code)
	}
}

// Ctrl-C clears a line and says how to leave; in an answer it stops that, twice or not, and nothing is lost.
func TestChatInterrupt(t *testing.T) {
	y := openTTY(t, window{}, "chat", "--pace", "1ms,20ms", "--max-tokens", "400")
	y.prompted()
	y.key("half a mess\x03")
	y.wants("Leave with Ctrl-D or /bye.")
	y.prompted()
	y.enter("go on for long")
	began := strings.Count(y.text(), "\n")
	y.until("an answer", func(s string) bool { return strings.Count(s, "\n") > began+2 })
	y.key("\x03\x03")
	y.wants("Stopped. What there is of the answer is kept")
	y.prompted()
	y.enter("/show")
	y.wants("1 questions, 0 images")
	y.key("typed while the answer comes")
	y.key("\x15")
	y.prompted()
	y.enter("again")
	y.key("typed ahead")
	y.key("\x03")
	y.until("a second stop", func(s string) bool { return strings.Count(s, "Stopped.") == 2 })
	y.wants("> typed ahead")
	y.key("\x15\x04")
	if code := y.exit(); code != 0 {
		t.Errorf("status %d", code)
	}
}

// What is pasted is one message, whatever its lines: a few are shown, many are folded, and all are sent.
func TestChatPaste(t *testing.T) {
	y := openTTY(t, window{}, "chat")
	y.prompted()
	y.key("\x1b[200~/choices red,green\x1b[201~\r")
	y.wants("held to the choices")
	y.key("\x1b[200~first line\rsecond line\x1b[201~")
	y.wants("> first line↵second line")
	y.key("\r")
	y.wants(" out · first after")
	y.enter("/show")
	y.wants("1 questions")
	y.key("and this: \x1b[200~" + strings.Repeat("a line\r", 10_000) + "end\x1b[201~ thanks\r")
	y.wants("and this: [paste 1: 10001 lines] thanks")
	y.wants("The message is kept")
	y.key("\x03")
}

