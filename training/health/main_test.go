package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// The weights that safety has are those that the texts give.
func TestRecipe(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("other processors round sums of products otherwise")
	}
	out := filepath.Join(t.TempDir(), "model")
	if err := run("train.txt", "held.txt", out); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join("..", "..", "safety", "lexicon", "health.ngram"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("go run ./training/health -out safety/lexicon/health.ngram writes other bytes, %v", err)
	}
}
