package web

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// firstPaint is the most bytes that a browser gets before the page is there, as gzip has them.
const firstPaint = 100 << 10

// All that the page loads is small, and each file's two bodies are the same.
func TestFiles(t *testing.T) {
	files, sum := Files(), 0
	for path, f := range files {
		r, err := gzip.NewReader(bytes.NewReader(f.Zipped))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(body, f.Body) || len(body) == 0 {
			t.Errorf("%s: zipped it is another, %v", path, err)
		}
		if f.Type == "" || !strings.HasPrefix(f.ETag, `W/"`) {
			t.Errorf("%s: type %q, tag %q", path, f.Type, f.ETag)
		}
		sum += len(f.Zipped)
	}
	for _, path := range []string{"/", "/web/app.js", "/web/app.css", "/web/icon.svg"} {
		if files[path] == nil {
			t.Errorf("no %s", path)
		}
	}
	t.Logf("%d bytes", sum)
	if sum > firstPaint {
		t.Errorf("%d bytes, at most %d", sum, firstPaint)
	}
}

// The page's policy allows no script, style or markup but its own, and the page needs none.
func TestPageHasNoInlineCode(t *testing.T) {
	page := string(Files()["/"].Body)
	for _, bad := range []string{"<style", " style=", " onload=", "javascript:", "http:", "https:", "//"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if n := strings.Count(page, "<script"); n != 1 || !strings.Contains(page, `<script type="module" src="/web/app.js"></script>`) {
		t.Errorf("%d scripts", n)
	}
	for _, bad := range []string{"unsafe-", "*", "http:", "https:"} {
		if strings.Contains(Policy, bad) {
			t.Errorf("the policy has %q", bad)
		}
	}
	code := string(Files()["/web/app.js"].Body)
	for _, bad := range []string{"eval(", "new Function", "document.write", "insertAdjacentHTML"} {
		if strings.Contains(code, bad) {
			t.Errorf("the script has %q", bad)
		}
	}
}

// What is committed is what the sources build to.
func TestBuiltFilesAreFresh(t *testing.T) {
	if _, err := os.Stat(filepath.Join("node_modules", "esbuild", "package.json")); err != nil {
		t.Skipf("%v; make web-modules installs it", err)
	}
	out := t.TempDir()
	if text, err := exec.CommandContext(t.Context(), "node", "build.mjs", out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	built, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	committed, err := os.ReadDir("dist")
	if err != nil || len(built) != len(committed) {
		t.Fatalf("%d files are built, %d are there: %v", len(built), len(committed), err)
	}
	for _, e := range built {
		want, err := os.ReadFile(filepath.Join(out, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join("dist", e.Name())); err != nil || !bytes.Equal(got, want) {
			t.Errorf("dist/%s is not what src builds to: make web", e.Name())
		}
	}
}
