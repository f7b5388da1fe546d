package model

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/vision"
)

// A random checkpoint has the tensors of a real one, and is the same again for the same seed.
func TestWriteRandom(t *testing.T) {
	from := filepath.Join("..", "testdata", "tiny-hf", "idefics3")
	var files [3][]byte
	for i, seed := range []uint64{1, 1, 2} {
		dir := t.TempDir()
		config, err := os.ReadFile(filepath.Join(from, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "config.json"), config)
		if err := WriteRandom(dir, seed); err != nil {
			t.Fatal(err)
		}
		made, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer made.Close()
		real, err := Open(from)
		if err != nil {
			t.Fatal(err)
		}
		defer real.Close()
		if made.Parameters() != real.Parameters() || made.Tensors() != real.Tensors() {
			t.Errorf("made %d tensors of %d parameters, the real checkpoint has %d of %d", made.Tensors(), made.Parameters(), real.Tensors(), real.Parameters())
		}
		if files[i], err = os.ReadFile(filepath.Join(dir, "model.safetensors")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files[0], files[1]) || bytes.Equal(files[0], files[2]) {
		t.Error("the weights do not follow from the seed")
	}
}

// Every family answers from a bare config.json: a tokenizer is made up for the one that is not there.
func TestOpenDummy(t *testing.T) {
	startLibrary(t)
	sample, err := os.ReadFile(filepath.Join("tiny-vlm", "samples", "sample0.png"))
	if err != nil {
		t.Fatal(err)
	}
	for name := range tinyCheckpoints {
		t.Run(name, func(t *testing.T) {
			config, err := os.ReadFile(filepath.Join("..", "testdata", "tiny-hf", name, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "any-name.json")
			write(t, path, config)
			m, err := OpenDummy(path)
			if err != nil {
				t.Fatal(err)
			}
			made := m.made
			defer func() {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(made); !os.IsNotExist(err) {
					t.Errorf("the random weights were left behind: %v", err)
				}
			}()
			answer(t, m, sample)
		})
	}
}

// answer takes one image the whole way to a few ids.
func answer(t *testing.T, m *Model, data []byte) {
	t.Helper()
	text, err := m.OpenText()
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(m, 0, graph.FP32, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	img, err := text.Preprocessor.Prepare(context.Background(), data, vision.DefaultLimits(), true)
	if err != nil {
		t.Fatal(err)
	}
	prompt, err := m.Layout.ExpandPrompt("<image>What is it?", []vision.Grid{img.Grid})
	if err != nil {
		t.Fatal(err)
	}
	in, err := m.Layout.Locate(text.Tokenizer.Encode(prompt, text.AddSpecial), []*vision.Image{img})
	if err != nil {
		t.Fatal(err)
	}
	patches, err := vision.Encode(v.tower, img, text.Preprocessor.Normalize)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Attach(0, patches, m.Decoder.Hidden); err != nil {
		t.Fatal(err)
	}
	out, err := v.runner.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{{IDs: in.IDs, Spans: in.Spans, Sampler: decoder.NewSampler(decoder.Sampling{})}}})
	if err != nil || len(out) != 1 {
		t.Errorf("%v %v", out, err)
	}
}
