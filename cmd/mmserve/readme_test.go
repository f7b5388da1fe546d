package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

// readmeBlock is the README's only block in a language that has a text in it, in the section on calling the server.
func readmeBlock(t *testing.T, language, has string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Call it from your service\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var found []string
	for _, m := range regexp.MustCompile("(?s)\n```"+language+"\n(.*?)\n```\n").FindAllStringSubmatch(section, -1) {
		if strings.Contains(m[1], has) {
			found = append(found, m[1])
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d blocks of %s with %q", len(found), language, has)
	}
	return found[0]
}

// TestReadme does what the README says to call a server, as far as this machine has what it takes: each block gives the
// answer.
func TestReadme(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	photo, err := os.ReadFile(filepath.Join(root, "model", "tiny-vlm", "samples", "sample0.png"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "photo.jpg"), photo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "node_modules"), 0o700); err != nil {
		t.Fatal(err)
	}
	// What npm install makes of a folder.
	if err := os.Symlink(filepath.Join(root, "clients", "node"),
		filepath.Join(dir, "node_modules", "mmserve-client")); err != nil {
		t.Fatal(err)
	}
	addr := serveAt(t)
	for _, c := range []struct {
		language, has, file string
		run                 []string
		need                []string // a command that fails where something is missing
	}{
		{"go", "client.Dial", "main.go", []string{"./call"}, []string{"go", "version"}},
		{"python", "mmserve.Client", "call.py", []string{python(), "call.py"}, []string{python(), "-c", "import grpc"}},
		{"js", "mmserve-client", "call.mjs", []string{"node", "call.mjs"}, []string{"node", "-e", `import("mmserve-client")`}},
		{"bash", "grpcurl", "call.sh", []string{"bash", "call.sh"}, []string{"grpcurl", "-version"}},
	} {
		t.Run(c.file, func(t *testing.T) {
			text := strings.ReplaceAll(readmeBlock(t, c.language, c.has), "127.0.0.1:8080", addr)
			if err := os.WriteFile(filepath.Join(dir, c.file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			command := func(in string, args ...string) ([]byte, error) {
				cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
				cmd.Dir = in
				cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "clients", "python"), "PYTHONDONTWRITEBYTECODE=1")
				return cmd.CombinedOutput()
			}
			if out, err := command(dir, c.need...); err != nil {
				t.Skipf("%v: %v: %s", c.need, err, lastLine(string(out)))
			}
			if c.language == "go" { // within the module, as after go get
				build := []string{"go", "build", "-o", filepath.Join(dir, "call")}
				if racetest.Enabled { // as this test was: its packages are compiled then
					build = append(build, "-race")
				}
				if out, err := command(root, append(build, filepath.Join(dir, c.file))...); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			out, err := command(dir, c.run...)
			if err != nil || !strings.Contains(string(out), "A large orange star in the center on a beige background.") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
