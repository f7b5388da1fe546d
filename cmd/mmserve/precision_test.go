package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var autoChose = regexp.MustCompile(`--precision auto chose (\w+): `)

// Without a flag the precision is auto, and what it took is said once; a run records it as the flag that gives it.
func TestPrecisionByDefault(t *testing.T) {
	cache := t.TempDir()
	sample := filepath.Join(tinyVLM, "samples", "sample0.png")
	code, out, errs := mmserve(t, "caption", "--cache-dir", cache, sample)
	chose := autoChose.FindStringSubmatch(errs)
	if code != 0 || len(chose) == 0 || strings.Count(errs, "auto chose") != 1 ||
		!strings.Contains(out, "A large orange star") {
		t.Fatalf("status %d, %s%s", code, out, errs)
	}
	code, _, errs = mmserve(t, "caption", "--precision", "fp32", sample)
	if code != 0 || strings.Contains(errs, "chose") {
		t.Errorf("fp32: status %d, %s", code, errs)
	}
	run := func(args ...string) (int, string) {
		args = append([]string{"caption", "--cache-dir", cache, "-o", filepath.Join(cache, "out.jsonl"), sample}, args...)
		code, _, errs := mmserve(t, args...)
		return code, errs
	}
	if code, errs := run(); code != 0 {
		t.Fatalf("status %d, %s", code, errs)
	}
	if code, errs := run("--precision", chose[1]); code != 0 {
		t.Errorf("--precision %s does not go on with what auto began: status %d, %s", chose[1], code, errs)
	}
	other := map[bool]string{true: "int8", false: "fp32"}[chose[1] == "fp32"]
	if code, _ := run("--precision", other); code == 0 {
		t.Errorf("--precision %s goes on with a run in %s", other, chose[1])
	}
}
