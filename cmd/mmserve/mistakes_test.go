package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

var rewriteMistakes = flag.Bool("rewrite-mistakes", false, "write testdata/mistakes.txt anew")

// TestMistakes holds what typical mistakes are answered with: the status and the message, which says what to do next.
// They are read, one after the other, in testdata/mistakes.txt.
func TestMistakes(t *testing.T) {
	racetest.Without(t)
	star, dir := sample(t, 0), t.TempDir()
	t.Chdir(dir)
	t.Setenv("HF_HUB_CACHE", filepath.Join(dir, "hub"))
	t.Setenv("MMSERVE_ORT_LIB", ortLibraryFrom(t, filepath.Join(packageFolder, "..", "..")))
	for name, data := range map[string]string{
		"notes.txt": "hello", "cut.png": string(star[:2000]), "-dash.png": string(star), "empty.jpg": "",
		"bad.json": "{", "schema.json": `{"type": "strange"}`, "talk.json": `{"hello": 1}`, "key.txt": "a b\n",
		"star.png": string(star), "page.jpg": "<!DOCTYPE html><html></html>",
	} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir("empty", 0o700); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, args := range [][]string{
		{},
		{"chta"},
		{"serve", "--lisen", ":80"},
		{"--prot", "serve"},
		{"caption", "-dash.png"},
		{"caption", "--temperature", "7", "star.png"},
		{"caption", "--top-p=0", "star.png"},
		{"caption", "--limit=0", "star.png"},
		{"caption", "--max-tokens", "many", "star.png"},
		{"caption", "--precision", "fp8", "star.png"},
		{"caption", "--slots", "0", "star.png"},
		{"ask"},
		{"ask", " "},
		{"ask", "what?", "gone.png"},
		{"ask", "what?", "notes.txt"},
		{"ask", "what?", "cut.png"},
		{"ask", "what?", "empty.jpg"},
		{"ask", "what?", "page.jpg"},
		{"ask", "what?", "."},
		{"ask", "-", "-"},
		{"ask", "what?", "star.png", "--schema", "none.json"},
		{"ask", "what?", "star.png", "--schema", "bad.json"},
		{"ask", "what?", "star.png", "--schema", "schema.json"},
		{"ask", "what?", "--choices", "a,b", "--schema", "schema.json"},
		{"ask", "what?", "--server", "localhost"},
		{"ask", "what?", "--server", "127.0.0.1:1"},
		{"ask", "what?", "--server", "localhost:8080", "--api-key-file", "key.txt"},
		{"ask", strings.Repeat("word ", 2000)},
		{"chat", "--load", "none.json"},
		{"chat", "--load", "talk.json"},
		{"chat", "--model", "nofolder/"},
		{"model", "inspect", "notes.txt"},
		{"model", "verfy", "x"},
		{"completion", "tcsh"},
		{"keys"},
		{"health", "--timeout=0s"},
		{"health", "--server", "127.0.0.1:1", "--timeout=1s"},
		{"serve", "--listen", "8080"},
		{"serve", "--listen", "127.0.0.1:99999"},
		{"serve", "--model", "no/such/folder"},
		{"serve", "--model", "empty"},
		{"serve", "--config", "none.yaml"},
		{"serve", "--config", "bad.json"},
		{"serve", "--tls-cert", "none.pem"},
		{"serve", "--api-keys-file", "none.txt"},
		{"serve", "--policy", "none.yaml"},
		{"serve", "--grace=-1s"},
		{"caption", "empty"},
		{"caption", "star.png", "-o", "no/such/out.jsonl"},
		{"batch", "none.jsonl"},
		{"batch", "notes.txt", "-o", "out.jsonl"},
		{"bench", "--rate", "0"},
		{"bench", "--rate", "4", "--duration=-1s"},
		{"bench", "--slo", "ttft=fast"},
		{"model", "inspect", "empty"},
		{"model", "verify", "no/such/folder"},
		{"model", "remove", "Nobody/Nothing"},
		{"model", "init", "--config", "none.json", "--out", "made"},
		{"audit", "verify", "none.jsonl"},
		{"subject", "delete"},
		{"replay"},
	} {
		code, out, errs := mmserve(t, args...)
		var typed []string
		for _, a := range args {
			if len(a) > 40 {
				a = a[:10] + "…"
			}
			if strings.ContainsAny(a, " ?") {
				a = `"` + a + `"`
			}
			typed = append(typed, a)
		}
		var kept []string // without the lines of the log
		for _, line := range strings.SplitAfter(errs, "\n") {
			if !strings.HasPrefix(line, "time=") {
				kept = append(kept, line)
			}
		}
		fmt.Fprintf(&got, "$ mmserve %s\n%s%s[%d]\n\n", strings.Join(typed, " "), out, strings.Join(kept, ""), code)
	}
	golden := filepath.Join(packageFolder, "testdata", "mistakes.txt")
	holds(t, golden, strings.ReplaceAll(got.String(), dir, "DIR"), *rewriteMistakes)
}

// holds compares with a golden file.
func holds(t *testing.T, golden, got string, rewrite bool) {
	t.Helper()
	if rewrite {
		if err := os.WriteFile(golden, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	a, b := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(a), len(b)) {
		x, y := "", ""
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			t.Fatalf("line %d of %s:\n%s\nwant\n%s", i+1, golden, x, y)
		}
	}
}
