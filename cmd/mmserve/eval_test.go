package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A few questions of the embedded set, by way of the server: the answers, and the ids that PyTorch gave.
func TestModelEval(t *testing.T) {
	code, out, errs := mmserve(t, "model", "eval", "--limit", "4",
		"--kind", "caption, 1 object", "--kind", "follow-up", "--kind", "two pictures", "--kind", "as JSON",
		"--kind", "small talk")
	if code != 0 {
		t.Fatalf("status %d: %s", code, errs)
	}
	for _, want := range []string{"caption, 1 object  4 ", "as JSON            4 ", "all                20",
		"95 % interval", "as recorded: 100.00 % of "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", "model", "tiny-vlm"))); err != nil {
		t.Fatal(err)
	}
	if err := replaceIn("config.json", `"rms_norm_eps": 1e-05`, `"rms_norm_eps": 1.0`)(dir); err != nil {
		t.Fatal(err)
	}
	code, out, errs = mmserve(t, "model", "eval", "--limit", "2", "--kind", "sign", "--model", dir, "--no-self-test",
		"--wrong", "1")
	if code != 0 || !strings.Contains(out, "no recorded ids of this model") || !strings.Contains(out, "\n  want ") {
		t.Errorf("another model: status %d\n%s%s", code, out, errs)
	}
}

func TestModelEvalErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "set.zip")
	if err := os.WriteFile(file, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--set", file}, "--set " + file + ": zip:"},
		{[]string{"--set", file + "x"}, "no such file"},
		{[]string{"--kind", "riddle"}, "--kind riddle: the set has no such questions"},
		{[]string{"--parallel", "0"}, "--parallel 0"},
	} {
		code, _, errs := mmserve(t, append([]string{"model", "eval"}, c.args...)...)
		if code != 1 && code != 2 || !strings.Contains(errs, c.want) { // 2: out of range, before anything was begun
			t.Errorf("%v: status %d, %q; want %q", c.args, code, errs, c.want)
		}
	}
}
