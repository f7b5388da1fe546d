package modeltest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/model"
)

func TestWriteRandom(t *testing.T) {
	dir := t.TempDir()
	if err := Copy(dir, filepath.Join("..", "..", "testdata", "tiny-hf", "idefics3"), "config.json"); err != nil {
		t.Fatal(err)
	}
	if err := WriteRandom(dir, 1); err != nil {
		t.Fatal(err)
	}
	made, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	real, err := model.Open(filepath.Join("..", "..", "testdata", "tiny-hf", "idefics3"))
	if err != nil {
		t.Fatal(err)
	}
	defer real.Close()
	// The untied head of the real checkpoint is the one tensor that config.json alone asks for as well.
	if made.Parameters() != real.Parameters() || made.Tensors() != real.Tensors() {
		t.Errorf("made %d tensors of %d parameters, the real checkpoint has %d of %d", made.Tensors(), made.Parameters(), real.Tensors(), real.Parameters())
	}
	if first, err := os.ReadFile(filepath.Join(dir, "model.safetensors")); err != nil || len(first) < 1000 {
		t.Error(err)
	}
}
