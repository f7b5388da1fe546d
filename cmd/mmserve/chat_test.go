//go:build linux || darwin

package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
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
	racetest.Without(t)
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
	racetest.Without(t)
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
	racetest.Without(t)
	y := openTTY(t, window{}, "chat")
	y.prompted()
	y.key("\x1b[200~first line\rsecond line\x1b[201~")
	y.wants("> first line↵second line")
	y.key("\r")
	y.wants(" out · first after")
	y.prompted()
	y.enter("/show")
	y.wants("1 questions")
	y.key("and this: \x1b[200~" + strings.Repeat("a line\r", 10_000) + "end\x1b[201~ thanks")
	y.wants("and this: [paste 1: 10001 lines] thanks")
	y.key("\r")
	y.wants("Your message is kept: /retry sends it again, /edit changes it.") // it is longer than the context
	y.prompted()
	y.enter("/edit")
	y.wants("> [paste 2: 10001 lines]")
	y.key("\x15")
	y.enter(`"""`)
	y.wants("\n.")
	y.enter("one")
	y.enter(`two"""`)
	y.until("a second answer", func(s string) bool { return strings.Count(s, " out · first after") == 2 })
	y.prompted()
	y.key("a\x1b\rb")
	y.wants("> a↵b")
	y.key("\x15\x04")
	if code := y.exit(); code != 0 {
		t.Errorf("status %d", code)
	}
}

// A window that changes in the middle of an answer costs no word of it.
func TestChatResize(t *testing.T) {
	racetest.Without(t)
	y := openTTY(t, window{columns: 60, rows: 24}, "chat", "--pace", "1ms,10ms", "--max-tokens", "150")
	y.prompted()
	y.enter("go on")
	y.until("some of an answer", func(s string) bool { return strings.Count(s, "\n") > 6 })
	y.size(90, 30)
	before := len(y.all())
	y.until("more of it", func(string) bool { return len(y.all()) > before+200 })
	y.size(40, 20)
	y.wants("/set max_tokens N allows more.")
	y.prompted()
	y.enter("/save a.json")
	y.wants("saved 1 questions")
	y.key("\x04")
	y.exit()
	_, talk, err := loadConversation(filepath.Join(y.cmd.Dir, "a.json"))
	if err != nil {
		t.Fatal(err)
	}
	// What was written, without the escapes and the lines that were written twice as they grew.
	_, written, _ := strings.Cut(y.all(), "> \x1b[0Kgo on")
	for _, word := range strings.Fields(talk.Turns[0].Answer)[:100] {
		if !strings.Contains(written, word) {
			t.Errorf("no %q", word)
		}
	}
}

// Twenty columns are enough: nothing is wider than the window, and editing works in lines that are.
func TestChatNarrow(t *testing.T) {
	racetest.Without(t)
	y := openTTY(t, window{dir: star(t), columns: 20, rows: 24}, "chat")
	y.prompted()
	y.key("tell me all about my\\ star.png please")
	y.key(strings.Repeat("\x1b[D", 6) + "now \r") // before the last word
	y.wants("tokens/s")
	y.prompted()
	y.enter("/edit")
	y.until("the message again", func(s string) bool {
		return strings.HasSuffix(strings.Join(strings.Fields(s), " "), "tell me all about now please")
	})
	y.key("\x15\x04")
	if code := y.exit(); code != 0 {
		t.Errorf("status %d", code)
	}
}

// Characters of width 0 and 2, and such that run from the right, are edited as others.
func TestChatUnicode(t *testing.T) {
	racetest.Without(t)
	y := openTTY(t, window{}, "chat", "--system", "x", "--quiet")
	y.prompted()
	y.key("/system 你好e\u0301👍שלום!")
	y.key(strings.Repeat("\x1b[D", 5) + "\x7f") // over the exclamation mark and the word: the thumb goes
	y.key("世\r")
	y.prompted()
	y.enter("/system")
	y.wants("\n你好e\u0301世שלום!")
	y.enter("/system " + strings.Repeat("界", 60)) // over the end of the window
	y.prompted()
	y.enter("/system")
	y.until("the long one", func(string) bool {
		return strings.Contains(y.all(), "\b"+strings.Repeat("界", 60)+"\r\n")
	})
	y.key("\x04")
	y.exit()
}

// A server that is killed in the middle of an answer costs nothing: the message is kept, and goes to the next server.
func TestChatServerKilled(t *testing.T) {
	racetest.Without(t)
	addr := sockettest.FreeAddress(t)
	serve := func() *process {
		p := startProcess(t, "--log-level", "error", "serve", "--listen", addr, "--admin-address", "", "--pace", "1ms,30ms")
		if code, _, errs := mmserve(t, "bench", "--server", addr, "--wait", "60s", "--requests", "1", "--duration", "1s",
			"--warm-up", "0s", "--quiet"); code != 0 {
			t.Fatalf("no server: %s", errs)
		}
		return p
	}
	p := serve()
	y := openTTY(t, window{dir: star(t)}, "chat", "--server", addr, "--max-tokens", "100")
	y.prompted()
	y.enter("go on about 'my star.png'")
	y.wants("added my star.png")
	before := len(y.all())
	y.until("an answer", func(string) bool { return len(y.all()) > before+100 })
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	y.wants("Your message is kept: /retry sends it again, /edit changes it.")
	y.prompted()
	y.enter("/retry")
	y.wants("no server answers at " + addr)
	serve()
	y.prompted()
	y.enter("/retry")
	y.wants("30 tokens in (16 of images")
	y.prompted()
	y.enter("/show")
	y.wants("1 questions, 1 images")
	y.key("\x04")
	if code := y.exit(); code != 0 {
		t.Errorf("status %d", code)
	}
}

// An image that is none is refused when it is named, and the message can be put right; images are dropped by name.
func TestChatImages(t *testing.T) {
	racetest.Without(t)
	dir := star(t)
	if err := os.WriteFile(filepath.Join(dir, "cut.png"), sample(t, 0)[:2000], 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	paste := "#!/bin/sh\ncase \"$*\" in *image/png*) cat '" + filepath.Join(dir, "my star.png") + "' ;; esac\n"
	edit := "#!/bin/sh\nprintf ' and more\nlines' >> \"$1\"\n"
	for name, script := range map[string]string{"wl-paste": paste, "edit": edit} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "note.txt"), []byte("\ufeffa note\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	y := openTTY(t, window{dir: dir, env: []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "WAYLAND_DISPLAY=x", "EDITOR=edit", "VISUAL=",
	}}, "chat")
	y.prompted()
	y.enter("what is cut.png here?")
	y.wants("message was not sent")
	y.until("the message again", func(s string) bool { return strings.HasSuffix(s, "> what is cut.png here?") })
	y.key("\x15what is ./gone.png here?\r")
	y.wants("./gone.png: no such file. The message was not sent")
	y.key("\x15")
	y.enter("/image my\\ st\t")
	y.wants("[1 image] >")
	y.enter("/paste")
	y.wants("added clipboard.png: png, 256×256 pixels")
	y.wants("[2 images] >")
	y.enter("/read gone.txt")
	y.wants("/read: there is no file gone.txt")
	y.enter("/read my\\ star.png")
	y.wants("is an image: /image adds it")
	y.enter("/read no*.txt")
	y.wants("> a note↵")
	y.key("\x15")
	y.enter("/drop clipboard.png")
	y.wants("dropped clipboard.png")
	y.key("describe\x07")
	y.wants("describe and more↵lines")
	y.key("\r")
	y.wants("(16 of images)")
	y.enter("/timing")
	y.wants("images encoded")
	y.enter("/tokens")
	y.wants("16 of images. The context has 512")
	y.enter("/undo")
	y.wants("0 are left")
	y.enter("/hlep")
	y.wants("Did you mean /help?")
	y.enter("/set temprature 1")
	y.wants("Did you mean temperature?")
	y.enter("/set temperature 3")
	y.wants("want a number from 0 to 2")
	y.enter("/bye")
	if code := y.exit(); code != 0 {
		t.Errorf("status %d", code)
	}
}

// A terminal that obeys nothing gets plain lines.
func TestChatDumb(t *testing.T) {
	racetest.Without(t)
	y := openTTY(t, window{env: []string{"TERM=dumb"}}, "chat")
	y.prompted()
	y.key("half\x03")
	y.wants("Leave with Ctrl-D or /bye.")
	y.enter("red?")
	y.wants(" out · first after")
	y.enter("/bye")
	if code := y.exit(); code != 0 || strings.Contains(y.all(), "\x1b") {
		t.Errorf("status %d, %q", code, y.all())
	}
}

// What /save writes is read by --load, by OpenAI's API and by gRPC.
func TestChatSaved(t *testing.T) {
	racetest.Without(t)
	dir := star(t)
	talk := filepath.Join(dir, "talk.json")
	wire := filepath.Join(dir, "grpc.json")
	code, out, errs := chatBy(t, dir, "Describe the image. my\\ star.png\n/save "+talk+"\n/save "+wire+" grpc\n")
	if code != 0 || out != "A large orange star in the center on a beige background.\n" {
		t.Fatalf("status %d: %q %q", code, out, errs)
	}
	addr, web := serveWithHTTP(t)
	body, err := os.ReadFile(talk)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.Post("http://"+web+"/v1/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if answer, _ := io.ReadAll(r.Body); r.StatusCode != http.StatusOK {
		t.Errorf("OpenAI: %s: %s", r.Status, answer)
	}
	data, err := os.ReadFile(wire)
	if err != nil {
		t.Fatal(err)
	}
	in := new(pb.GenerateRequest)
	if err := protojson.Unmarshal(data, in); err != nil { // strictly, as grpcurl
		t.Fatal(err)
	}
	c, err := client.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Generate(t.Context(), in); err != nil {
		t.Errorf("gRPC: %v", err)
	}
	for _, file := range []string{talk, wire} {
		code, out, errs := chatBy(t, dir, "/show\n/retry\n", "--load", file)
		if code != 0 || !strings.Contains(out, "1 questions, 1 images") || !strings.Contains(out, "A large orange star") {
			t.Errorf("%s: status %d: %q %q", file, code, out, errs)
		}
	}
}

// By pipe each line is a message; what goes wrong is told with its line, and the status with it.
func TestChatPipe(t *testing.T) {
	racetest.Without(t)
	dir := star(t)
	for _, c := range []struct {
		in, out, errs string
		code          int
	}{
		{"", "", "", 0},
		{"/bye\nred?\n", "", "", 0},
		{"Describe the image. './my star.png'", "A large orange star in the center on a beige background.\n", "", 0},
		{"/nope\n", "", "line 1: /nope: there is no such command", 1},
		{"\n/image gone.png\n", "", "line 2: gone.png: no such file", 1},
		{"/set temperature 9\n", "", "want a number from 0 to 2", 1},
		{"\"\"\"half\n", "", "has no \"\"\" at its end", 1},
		{"\"\"\"Describe the image.\n\"\"\"\n", "\n", "", 0},
		{strings.Repeat("long ", 3000) + "\n", "", "line 1: ", 1},
	} {
		code, out, errs := chatBy(t, dir, c.in)
		if code != c.code || !strings.Contains(errs, c.errs) || out != c.out && c.out != "\n" ||
			strings.Contains(out, "\x1b") {
			t.Errorf("%.40q: status %d: %q %q", c.in, code, out, errs)
		}
	}
}

// chatBy is a chat whose input is a pipe.
func chatBy(t *testing.T, dir, in string, args ...string) (code int, out, errs string) {
	t.Helper()
	return commandBy(t, dir, in, append([]string{"chat"}, args...)...)
}

// commandBy is a command in a process of its own, whose input is a pipe.
func commandBy(t *testing.T, dir, in string, args ...string) (code int, out, errs string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"--log-level", "warn"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asCommand+"=1", "MMSERVE_ORT_LIB="+ortLibrary(t), "MMSERVE_PRECISION=fp32")
	cmd.Stdin = strings.NewReader(in)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // the status tells
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

// serveWithHTTP serves the embedded model on both edges.
func serveWithHTTP(t *testing.T) (addr, web string) {
	t.Helper()
	web = sockettest.FreeAddress(t)
	return serveAt(t, "--http-listen", web), web
}
