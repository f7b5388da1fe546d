package verify

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
)

// Features, logits and greedy ids of random tiny checkpoints against what transformers computed.
func TestTinyCheckpoints(t *testing.T) {
	modeltest.StartLibrary(t)
	for name, unused := range modeltest.TinyCheckpoints {
		t.Run(name, func(t *testing.T) {
			dir := modeltest.TinyDir(name)
			m, err := model.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			v, err := New(m, 2e-4, graph.FP32, ort.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			for _, u := range m.Weights.Unused() {
				if !slices.ContainsFunc(unused, func(part string) bool { return strings.Contains(u, part) }) {
					t.Errorf("unused tensor %s", u)
				}
			}
			cases := 0
			err = v.File(filepath.Join(dir, "gold.safetensors"), func(c Case) {
				cases++
				t.Logf("%s: %+v", c.ID, c.Checks)
				if !c.OK() {
					t.Errorf("%s: %+v %v", c.ID, c.Checks, c.Err)
				}
			})
			if err != nil || cases != 1 {
				t.Errorf("%d cases, %v", cases, err)
			}
		})
	}
}

// gold runs every case of tiny-vlm's gold file and gives them in order.
func gold(t *testing.T, m *model.Model, tolerance float64, p graph.Precision) []Case {
	t.Helper()
	v, err := New(m, tolerance, p, ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var cases []Case
	if err := v.File(modeltest.Path("testdata", "tiny-vlm-gold", "gold.jsonl"),
		func(c Case) { cases = append(cases, c) }); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 87 {
		t.Fatalf("%d gold cases, want 87", len(cases))
	}
	return cases
}

// The embedded model against what transformers answers: prompt, pixels, first logits and every generated id.
func TestDefaultModel(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, c := range gold(t, m, 2e-4, graph.FP32) {
		if !c.OK() {
			t.Errorf("%s: %+v %v", c.ID, c.Checks, c.Err)
		}
		for _, k := range c.Checks {
			if k.Name == "pixel_values" && k.Value != 0 {
				t.Errorf("%s: pixel values of a PNG differ", c.ID)
			}
		}
	}
}

// int8 keeps at least 99.5 % of the greedy ids. int4 is held to what it was measured at.
func TestDefaultModelQuantized(t *testing.T) {
	modeltest.StartLibrary(t)
	for _, c := range []struct {
		precision graph.Precision
		tolerance float64
		ids       float64 // share of the greedy ids that agree
	}{{graph.INT8, 2, 0.995}, {graph.INT4, 20, 0.98}} {
		t.Run(string(c.precision), func(t *testing.T) {
			m, err := model.Open("")
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			cache := t.TempDir()
			for _, wantFresh := range []bool{true, false} {
				from, err := m.LoadQuantized(cache, c.precision.Vision(), c.precision)
				if errors.Is(err, graph.ErrSaturates) || errors.Is(err, graph.ErrNoInt4) {
					t.Skip(err)
				}
				if err != nil || from.Fresh != wantFresh || from.Why != "" {
					t.Fatalf("LoadQuantized: %+v %v, want fresh %t", from, err, wantFresh)
				}
			}
			var agree, n float64
			for _, g := range gold(t, m, c.tolerance, c.precision) {
				if g.Err != nil {
					t.Errorf("%s: %v", g.ID, g.Err)
				}
				for _, k := range g.Checks {
					switch {
					case k.Name == "generated_ids":
						agree, n = agree+k.Value, n+1
					case !k.OK:
						t.Errorf("%s: %+v", g.ID, k)
					}
				}
			}
			t.Logf("%.2f %% of the ids agree", 100*agree/n)
			if agree/n < c.ids {
				t.Errorf("%.2f %% of the ids agree, want %g", 100*agree/n, 100*c.ids)
			}
		})
	}
}
