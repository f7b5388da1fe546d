package verify

import (
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
)

// int8 runs every family's graphs. These random weights are far from what a trained model has, and eight bits tell less
// of them: logits move by up to three tenths of the largest.
func TestFamiliesInt8(t *testing.T) {
	modeltest.StartLibrary(t)
	for name := range modeltest.TinyCheckpoints {
		t.Run(name, func(t *testing.T) {
			dir := modeltest.TinyDir(name)
			m, err := model.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if _, err := m.LoadQuantized(t.TempDir(), graph.INT8, graph.INT8); err != nil {
				t.Fatal(err)
			}
			want, err := safetensors.OpenFile(modeltest.References(name))
			if err != nil {
				t.Fatal(err)
			}
			defer want.Close()
			v, err := New(m, max(1.5, 0.3*largest(t, references{want}, "logits")), graph.INT8, ort.Options{Threads: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if err := v.File(filepath.Join(dir, "gold.safetensors"), func(c Case) {
				if n := 3 + m.Decoder.Deepstack; c.Err != nil || len(c.Checks) != n || !c.Checks[n-2].OK {
					t.Errorf("%+v %v", c.Checks, c.Err)
				}
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}
