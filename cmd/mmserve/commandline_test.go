package main

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/racetest"
)

func TestVersionAndHelp(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--version"}, "mmserve "}, {[]string{"serve", "--version"}, "mmserve "}, {[]string{"version"}, "mmserve "},
		{[]string{"help"}, "Ask one question"}, {[]string{"help", "ask"}, "mmserve ask \"What is on the label?\" label.jpg"},
		{[]string{"help", "model", "pull"}, "ORG/NAME"}, {[]string{"chat", "--help"}, "Examples:"},
	} {
		if code, out, errs := mmserve(t, c.args...); code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("%v: status %d: %s%s", c.args, code, out, errs)
		}
	}
}

// A file's name may have any bytes, and begin with a dash.
func TestNamesOfAnyBytes(t *testing.T) {
	racetest.Without(t)
	dir := t.TempDir()
	for _, name := range []string{"\xff\xfe.png", "-dash.png", "a,b.png", "two\nlines.png", "--", "üñ ☆.png"} {
		if err := os.WriteFile(filepath.Join(dir, name), sample(t, 0), 0o600); err != nil {
			t.Skip(err) // not every system has such names
		}
	}
	t.Setenv("MMSERVE_ORT_LIB", ortLibraryFrom(t, filepath.Join("..", "..")))
	t.Chdir(dir)
	for _, args := range [][]string{
		{"image", "\xff\xfe.png"}, {"image", "--", "-dash.png"}, {"image", "a,b.png", "two\nlines.png", "üñ ☆.png"},
		{"image", "--", "--"}, {"image", "--detail", "low", "--", "-dash.png", "\xff\xfe.png"},
		{"ask", "what is it?", "\xff\xfe.png"}, {"ask", "what is it?", "--", "-dash.png"}, {"caption", "\xff\xfe.png"},
	} {
		if code, out, errs := mmserve(t, args...); code != 0 {
			t.Errorf("%q: status %d: %s%s", args, code, out, errs)
		} else if strings.Contains(out, "\xff") || strings.Count(out, "\n") > 3 {
			t.Errorf("%q: %q", args, out)
		}
	}
}

// Each shell reads its completions, and bash completes with them.
func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	for shell, check := range map[string][]string{"bash": {"bash", "-n"}, "zsh": {"zsh", "-n"}, "fish": {"fish", "-n"}} {
		code, out, errs := mmserve(t, "completion", shell)
		if code != 0 || !strings.Contains(out, "max-tokens") || !strings.Contains(out, "verify") {
			t.Fatalf("%s: status %d: %s", shell, code, errs)
		}
		file := filepath.Join(dir, shell)
		if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not here: its completions were not read", shell)
			continue
		}
		if out, err := exec.Command(check[0], append(check[1:], file)...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip(err)
	}
	for typed, want := range map[string]string{
		"mmserve ch": "chat", "mmserve model ver": "verify", "mmserve serve --max-im": "--max-images",
		"mmserve --log-level w": "warn", "mmserve model verify --precision int": "int4", "mmserve completion f": "fish",
	} {
		words := strings.Fields(typed)
		script := `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _mmserve; printf '%s\n' "${COMPREPLY[@]}"`
		args := append([]string{"-c", script, "bash", filepath.Join(dir, "bash")}, words...)
		out, err := exec.Command("bash", args...).CombinedOutput()
		if err != nil || !strings.Contains("\n"+string(out), "\n"+want) {
			t.Errorf("%s: %s %v; want %s", typed, out, err, want)
		}
	}
}

// The manual page has each command and flag, and man takes it without a complaint.
func TestMan(t *testing.T) {
	code, out, errs := mmserve(t, "man")
	for _, want := range []string{
		".TH MMSERVE 1", ".SS mmserve model verify DIR", "MMSERVE_MAX_IMAGES", ".SH EXIT STATUS", "NO_COLOR",
	} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, no %q: %s", code, want, errs)
		}
	}
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command("groff", "-Kutf8", "-man", "-Tutf8", "-w", "all", "-W", "break", "-z")
	cmd.Stdin = strings.NewReader(out)
	said, err := cmd.CombinedOutput()
	if text := string(said); err != nil || strings.Contains(text, "rror") || strings.Contains(text, "macro") {
		t.Errorf("%v: %.2000s", err, said)
	}
}

// Two servers on one machine do not collide on an admin address that none of them asked for.
func TestAdminAddressTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	f := telemetryFlags{AdminAddress: taken.Addr().String()}
	var lines logtest.Buffer
	log := slog.New(slog.NewTextHandler(&lines, nil))
	lis, err := f.listenAdmin(listenFlags{}.listen, log)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if !strings.Contains(lines.String(), "the default admin address is taken") || !strings.Contains(lines.String(), lis.Addr().String()) {
		t.Errorf("the log has %s", lines.String())
	}
	f.adminAsked = true
	if lis, err := f.listenAdmin(listenFlags{}.listen, log); err == nil {
		lis.Close()
		t.Error("another port than the one that was asked for")
	}
	code, _, errs := mmserve(t, "serve", "--listen", "127.0.0.1:0", "--admin-address", taken.Addr().String())
	if code != 1 || !strings.Contains(errs, "address already in use") {
		t.Errorf("status %d: %s", code, errs)
	}
	t.Setenv("MMSERVE_ADMIN_ADDRESS", taken.Addr().String())
	if code, _, errs := mmserve(t, "serve", "--listen", "127.0.0.1:0"); code != 1 ||
		!strings.Contains(errs, "address already in use") {
		t.Errorf("by variable: status %d: %s", code, errs)
	}
}
