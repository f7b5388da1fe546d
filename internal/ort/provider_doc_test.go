package ort

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/providers.md names each provider and each of its settings.
func TestProvidersAreDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "providers.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range kinds {
		_, row, ok := strings.Cut(string(b), "\n| `"+name+"` | `")
		row, _, _ = strings.Cut(row, "\n")
		for key := range k.options {
			if !ok || !strings.Contains("`"+row, "`"+key+"`") {
				t.Errorf("%s: no setting %s", name, key)
			}
		}
		if !strings.Contains(string(b), "\n| `"+name+"` | ") {
			t.Errorf("no %s", name)
		}
	}
}

// The tests that docs/providers.md names are there.
func TestNamedTestsAreThere(t *testing.T) {
	root := os.DirFS(filepath.Join("..", ".."))
	text, err := fs.ReadFile(root, "docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, pattern := range []string{"*/*_test.go", "*/*/*_test.go"} {
		files, err := fs.Glob(root, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := fs.ReadFile(root, file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(source, -1) {
				there[string(m[1])] = true
			}
		}
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(text, -1)
	if len(named) < 20 {
		t.Errorf("%d tests are named", len(named))
	}
	for _, m := range named {
		if !there[string(m[1])] {
			t.Errorf("docs/providers.md names %s, which is no test", m[1])
		}
	}
}
