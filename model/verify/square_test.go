package verify

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// largest is the largest magnitude of a tensor.
func largest(t *testing.T, want references, name string) (most float64) {
	t.Helper()
	values, _, err := want.floats(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range values {
		most = max(most, math.Abs(float64(x)))
	}
	return most
}

// Image features and logits are within a ten-thousandth of the reference's largest, ids the same, with config.json as
// transformers 5 and 4 write it.
func TestRelativeReferences(t *testing.T) {
	modeltest.StartLibrary(t)
	for _, name := range []string{"internvl", "internvl-rms", "llava_next", "llava_next-granite", "gemma3"} {
		for _, config := range []string{"config.json", "config.4x.json"} {
			if _, err := os.Stat(filepath.Join(modeltest.TinyDir(name), config)); err != nil {
				continue
			}
			t.Run(name+"/"+config, func(t *testing.T) {
				dir := withConfig(t, modeltest.TinyDir(name), config)
				want, err := safetensors.OpenFile(modeltest.References(name))
				if err != nil {
					t.Fatal(err)
				}
				defer want.Close()
				m, err := model.Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				v, err := New(m, 2e-4, graph.FP32, ort.Options{Threads: 1})
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				checks, err := v.tensors(references{want})
				if err != nil || len(checks) != 3 || !checks[2].OK {
					t.Fatalf("%+v %v", checks, err)
				}
				for _, c := range checks[:2] {
					most := largest(t, references{want}, c.Name)
					t.Logf("%s: %.1e of %.1f", c.Name, c.Value, most)
					if c.Value > 1e-4*most {
						t.Errorf("%s differ by %g, the largest is %g", c.Name, c.Value, most)
					}
				}
			})
		}
	}
}

// Leaving out any one part, or doing it otherwise, turns the reference values red: by more than a hundredth of the
// largest, or by other numbers of patch embeddings.
func TestEveryPartOfSquareFamiliesCounts(t *testing.T) {
	modeltest.StartLibrary(t)
	for _, c := range []struct {
		family, part string
		change       func(*families.Spec)
	}{
		{"internvl", "layer scale", func(s *families.Spec) { s.Tower.LayerScale = false }},
		{"internvl", "positions", func(s *families.Spec) { s.Tower.NoPositions = true }},
		{"internvl", "query, key and value biases", func(s *families.Spec) { s.Tower.NoQKVBias = true }},
		{"internvl", "bias of the patches", func(s *families.Spec) { s.Tower.PatchBias = false }},
		{"internvl", "layer norms", func(s *families.Spec) { s.Tower.RMSNorm = true }},
		{"internvl", "last layer", func(s *families.Spec) { s.Tower.Layers-- }},
		{"internvl", "class token left out", func(s *families.Spec) { s.Tower.DropFirst = false }},
		{"internvl", "tower's activation", func(s *families.Spec) { s.Tower.Activation = "silu" }},
		{"internvl", "norm and MLP after the shuffle", func(s *families.Spec) {
			s.Connector = vision.PixelShuffle{Scale: 2, TextHidden: s.Decoder.Hidden}
		}},
		{"internvl", "connector's activation", func(s *families.Spec) {
			s.Connector = vision.ShuffleMLP{Scale: 2, TextHidden: s.Decoder.Hidden, Activation: "silu"}
		}},
		{"internvl-rms", "query and key norms of the tower", func(s *families.Spec) { s.Tower.QKNorm = false }},
		{"internvl-rms", "layer scale", func(s *families.Spec) { s.Tower.LayerScale = false }},
		{"internvl-rms", "query and key norms", func(s *families.Spec) { s.Decoder.QKNorm = false }},
		{"llava_next", "layer", func(s *families.Spec) { s.Tower.Layers++ }},
		{"llava_next", "norm before the first layer", func(s *families.Spec) { s.Tower.PreNorm = false }},
		{"llava_next", "quick GELU", func(s *families.Spec) { s.Tower.Activation = "silu" }},
		{"llava_next", "packing", func(s *families.Spec) { s.Connector = s.Connector.(vision.AnyRes).MLP }},
		{"llava_next", "map at its own size", func(s *families.Spec) {
			c := s.Connector.(vision.AnyRes)
			c.MaxTiles = 1
			s.Connector = c
		}},
		{"llava_next", "best resolution", func(s *families.Spec) {
			c := s.Connector.(vision.AnyRes)
			c.Pinpoints = c.Pinpoints[:1]
			s.Connector = c
		}},
		{"llava_next", "projector's bias", func(s *families.Spec) {
			c := s.Connector.(vision.AnyRes)
			c.Bias = false
			s.Connector = c
		}},
		{"llava_next-granite", "order of the layers", func(s *families.Spec) { slices.Reverse(s.Tower.FeatureLayers) }},
		{"llava_next-granite", "first layers", func(s *families.Spec) {
			s.Tower.FeatureLayers = slices.Repeat(s.Tower.FeatureLayers[3:], 4)
		}},
		{"llava_next-granite", "embedding_multiplier", func(s *families.Spec) { s.Decoder.InputScale = 1 }},
		{"llava_next-granite", "embedding_multiplier of patches", func(s *families.Spec) {
			s.Decoder.EmbedScale, s.Decoder.InputScale = s.Decoder.InputScale, 1
		}},
		{"llava_next-granite", "attention_multiplier", func(s *families.Spec) { s.Decoder.AttentionScale = 0 }},
		{"llava_next-granite", "residual_multiplier", func(s *families.Spec) { s.Decoder.ResidualScale = 1 }},
		{"gemma3", "pooling", func(s *families.Spec) {
			s.Connector = vision.AveragePool{TextHidden: s.Decoder.Hidden, TokensPerSide: 8}
		}},
		{"gemma3", "norm after the tower", func(s *families.Spec) { s.Tower.PostNorm = false }},
		{"gemma3", "attention both ways", func(s *families.Spec) { s.Decoder.ImageBlocks = false }},
		{"gemma3", "windows", func(s *families.Spec) { s.Decoder.Windows = nil }},
		{"gemma3", "rope of windowed layers", func(s *families.Spec) { s.Decoder.LocalRope = nil }},
		{"gemma3", "scaling of the rope", func(s *families.Spec) { s.Decoder.Rope.Scaling = decoder.RopeUnscaled }},
		{"gemma3", "query_pre_attn_scalar", func(s *families.Spec) { s.Decoder.AttentionScale = 0 }},
		{"gemma3", "query and key norms", func(s *families.Spec) { s.Decoder.QKNorm = false }},
		{"gemma3", "one plus weight", func(s *families.Spec) { s.Decoder.UnitNorms = false }},
		{"gemma3", "embedding scale", func(s *families.Spec) { s.Decoder.EmbedScale = 1 }},
		{"gemma3", "unscaled patches", func(s *families.Spec) {
			s.Decoder.EmbedScale, s.Decoder.InputScale = 1, s.Decoder.EmbedScale
		}},
	} {
		t.Run(c.family+" without "+c.part, func(t *testing.T) {
			m, err := model.Open(modeltest.TinyDir(c.family))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			c.change(&m.Spec)
			if off, err := farthest(t, m); err == nil && off < 1e-2 {
				t.Errorf("off by %.2g of the largest", off)
			} else {
				t.Logf("off by %.2g of the largest; %v", off, err)
			}
		})
	}
}

// The vector after each row counts.
func TestNewlineCounts(t *testing.T) {
	modeltest.StartLibrary(t)
	without := func(tensor *safetensors.Tensor, values []float32) {
		for _, x := range values {
			if tensor.Name == "image_newline" {
				x = 0
			}
			tensor.Data = binary.LittleEndian.AppendUint32(tensor.Data, math.Float32bits(x))
		}
	}
	if c := against(t, rewritten(t, "llava_next", "5.x", without, false), "llava_next"); c.Checks[0].Value < 1e-2 {
		t.Errorf("%+v", c.Checks)
	}
}

// farthest is how far a model is from its reference values at most, in parts of the largest.
func farthest(t *testing.T, m *model.Model) (off float64, err error) {
	t.Helper()
	want, err := safetensors.OpenFile(modeltest.References(m.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	v, err := New(m, 2e-4, graph.FP32, ort.Options{Threads: 1})
	if err != nil {
		return 0, err
	}
	defer v.Close()
	checks, err := v.tensors(references{want})
	for _, c := range checks {
		if !c.Exact {
			off = max(off, c.Value/largest(t, references{want}, c.Name))
		}
	}
	return off, err
}

// withConfig is a folder with the weights of another and one of its configurations.
func withConfig(t *testing.T, from, config string) string {
	t.Helper()
	to := t.TempDir()
	raw, err := os.ReadFile(filepath.Join(from, config))
	if err != nil {
		t.Fatal(err)
	}
	modeltest.WriteFile(t, filepath.Join(to, "config.json"), raw)
	abs, err := filepath.Abs(filepath.Join(from, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(abs, filepath.Join(to, "model.safetensors")); err != nil {
		t.Fatal(err)
	}
	return to
}
