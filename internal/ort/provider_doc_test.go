package ort

import (
	"os"
	"path/filepath"
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
