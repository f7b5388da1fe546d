package synth

import (
	"bytes"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// A random checkpoint has the tensors of a real one, and is the same again for the same seed.
func TestWriteRandom(t *testing.T) {
	from := modeltest.TinyDir("idefics3")
	var files [3][]byte
	for i, seed := range []uint64{1, 1, 2} {
		dir := t.TempDir()
		config, err := os.ReadFile(filepath.Join(from, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		modeltest.WriteFile(t, filepath.Join(dir, "config.json"), config)
		if err := WriteRandom(dir, seed); err != nil {
			t.Fatal(err)
		}
		made, err := model.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer made.Close()
		real, err := model.Open(from)
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
	modeltest.StartLibrary(t)
	sample := modeltest.Sample(t, "sample0.png")
	names := append(slices.Collect(maps.Keys(modeltest.TinyCheckpoints)), "glm4v")
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			config, err := os.ReadFile(modeltest.Path("testdata", "tiny-hf", name, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "any-name.json")
			modeltest.WriteFile(t, path, config)
			temp := t.TempDir()
			t.Setenv("TMPDIR", temp)
			m, err := OpenDummy(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
				if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
					t.Errorf("the random weights were left behind: %v %v", left, err)
				}
			}()
			answer(t, m, sample)
		})
	}
}

// answer takes one image the whole way to a few ids.
func answer(t *testing.T, m *model.Model, data []byte) {
	t.Helper()
	text, err := m.OpenProcessor()
	if err != nil {
		t.Fatal(err)
	}
	tower, err := m.OpenTower(graph.FP32, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tower.Close()
	runner, err := m.OpenDecoder(decoder.OpenOptions{Slots: 1, Session: ort.Options{Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer runner.Close()
	img, err := text.Preprocessor.Prepare(context.Background(), data, vision.DefaultLimits(), true)
	if err != nil {
		t.Fatal(err)
	}
	parts := []chat.Part{{Image: true}, {Text: "What is it?"}}
	prompt := fusion.Prompt{Messages: []chat.Message{{Role: "user", Parts: parts}}}
	if text.Template == nil {
		prompt = fusion.Prompt{Raw: parts}
	}
	rendered, err := text.Render(t.Context(), prompt)
	if err != nil {
		t.Fatal(err)
	}
	in, err := text.Input(rendered, []*vision.Image{img})
	if err != nil {
		t.Fatal(err)
	}
	patches, err := vision.Encode(tower, img, text.Preprocessor.Normalize)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Attach(0, patches, m.Decoder.PatchWidth()); err != nil {
		t.Fatal(err)
	}
	out, err := runner.Run(t.Context(),
		&decoder.Batch{Rows: []decoder.Row{{IDs: in.IDs, Spans: in.Spans, Sampler: decoder.NewSampler(decoder.Sampling{})}}})
	if err != nil || len(out) != 1 {
		t.Errorf("%v %v", out, err)
	}
}

// Weights that have no room are refused before anything is taken.
func TestRandomWeightsNeedRoom(t *testing.T) {
	config := []byte(`{"model_type": "idefics3", "text_config": {"model_type": "llama", "num_hidden_layers": 1000, "hidden_size": 131072, "intermediate_size": 1048576,
		"vocab_size": 1048576, "num_attention_heads": 1024, "num_key_value_heads": 1024, "head_dim": 128}, "vision_config": {"image_size": 64, "patch_size": 16}}`)
	file := filepath.Join(t.TempDir(), "config.json")
	modeltest.WriteFile(t, file, config)
	before := modeltest.Allocated()
	if err := Init(file, filepath.Join(t.TempDir(), "out"), InitOptions{}); err == nil ||
		!strings.Contains(err.Error(), "parameters, whose weights take") {
		t.Errorf("Init: %v", err)
	}
	if m, err := OpenDummy(file); err == nil {
		m.Close()
		t.Error("OpenDummy took it")
	}
	if took := modeltest.Allocated() - before; took > 500<<20 {
		t.Errorf("that allocated %d MiB", took>>20)
	}
}
