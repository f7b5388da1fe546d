package importtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestArchitectureNamesPackages holds that docs/architecture.md has a row for each package that is not a command, a
// test helper or a deployment.
func TestArchitectureNamesPackages(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	seen := map[string]bool{}
	err = eachFile(func(file string, _ []string) {
		dir := filepath.ToSlash(filepath.Dir(file))
		if seen[dir] || strings.HasSuffix(dir, "test") || under(dir, "deploy") || under(dir, "cmd") && dir != "cmd/mmserve" {
			return
		}
		seen[dir] = true
		found++
		if !strings.Contains(string(text), "| `"+dir+"` |") {
			t.Errorf("docs/architecture.md has no row for %s", dir)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 15 {
		t.Errorf("found %d packages only", found)
	}
}
