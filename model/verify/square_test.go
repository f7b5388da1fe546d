package verify

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
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
	for _, name := range []string{"internvl", "llava_next"} {
		for _, config := range []string{"config.json", "config.4x.json"} {
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
				v, err := New(m, 0, graph.FP32, ort.Options{Threads: 1})
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
