package exporttest

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/model/families"
)

// Folder writes a folder with ready-made graphs of a model: files are its own, but for the weights.
func Folder(t testing.TB, files fs.FS, modelType string, s Source, o Options) string {
	t.Helper()
	dir := t.TempDir()
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() || strings.HasSuffix(e.Name(), ".safetensors") {
			continue
		}
		raw, err := fs.ReadFile(files, e.Name())
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, e.Name()), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	o.Tiles = modelType == "idefics3" || modelType == "smolvlm"
	o.FirstPosition = families.Lookup(modelType).Graphs.FirstPosition
	if err := Write(dir, s, o); err != nil {
		t.Fatal(err)
	}
	return dir
}
