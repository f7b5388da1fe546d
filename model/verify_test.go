package model

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
)

// startLibrary loads ONNX Runtime, which `make ort` fetched.
func startLibrary(t testing.TB) {
	t.Helper()
	lib, err := ort.FindLibrary(os.Getenv("MMSERVE_ORT_LIB"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ort.Start(lib); err != nil {
		t.Fatal(err)
	}
}

// tinyCheckpoints are the folders of testdata/tiny-hf, with parts of the names of tensors that their models do not use.
var tinyCheckpoints = map[string][]string{
	"idefics3":        nil,
	"smolvlm":         nil,
	"paligemma":       nil,
	"paligemma2":      nil,
	"llava_onevision": {"vision_tower.post_layernorm."},
	"llava":           {"vision_tower.encoder.layers.1.", "vision_tower.post_layernorm."},
}

// Features, logits and greedy ids of random tiny checkpoints against what transformers computed.
func TestTinyCheckpoints(t *testing.T) {
	startLibrary(t)
	for name, unused := range tinyCheckpoints {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("..", "testdata", "tiny-hf", name)
			m, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			v, err := NewVerifier(m, 2e-4, graph.FP32, ort.Options{})
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
func gold(t *testing.T, m *Model, tolerance float64, p graph.Precision) []Case {
	t.Helper()
	v, err := NewVerifier(m, tolerance, p, ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var cases []Case
	if err := v.File(filepath.Join("..", "testdata", "tiny-vlm-gold", "gold.jsonl"), func(c Case) { cases = append(cases, c) }); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 87 {
		t.Fatalf("%d gold cases, want 87", len(cases))
	}
	return cases
}

// The embedded model against what transformers answers: prompt, pixels, first logits and every generated id.
func TestDefaultModel(t *testing.T) {
	startLibrary(t)
	m, err := Open("")
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

// int8 keeps at least 99.5 % of the greedy ids.
func TestDefaultModelInt8(t *testing.T) {
	startLibrary(t)
	m, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cache := t.TempDir()
	for _, wantFresh := range []bool{true, false} {
		if fresh, err := m.LoadInt8(cache); err != nil || fresh != wantFresh {
			t.Fatalf("LoadInt8: fresh %t %v, want %t", fresh, err, wantFresh)
		}
	}
	var agree, n float64
	for _, c := range gold(t, m, 2, graph.INT8) {
		if c.Err != nil {
			t.Errorf("%s: %v", c.ID, c.Err)
		}
		for _, k := range c.Checks {
			switch {
			case k.Name == "generated_ids":
				agree, n = agree+k.Value, n+1
			case !k.OK:
				t.Errorf("%s: %+v", c.ID, k)
			}
		}
	}
	t.Logf("%.2f %% of the ids agree", 100*agree/n)
	if agree/n < 0.995 {
		t.Errorf("%.2f %% of the ids agree, want 99.5", 100*agree/n)
	}
}
