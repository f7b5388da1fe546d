package model

import (
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
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
	"vitgpt2":         {"encoder.pooler."},
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

// int8 keeps at least 99.5 % of the greedy ids. int4 is held to what it was measured at.
func TestDefaultModelQuantized(t *testing.T) {
	startLibrary(t)
	for _, c := range []struct {
		precision graph.Precision
		tolerance float64
		ids       float64 // share of the greedy ids that agree
	}{{graph.INT8, 2, 0.995}, {graph.INT4, 20, 0.98}} {
		t.Run(string(c.precision), func(t *testing.T) {
			m, err := Open("")
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

// Three prompts of other lengths give the same tokens alone and stepping together, in every family.
func TestFamiliesInBatch(t *testing.T) {
	startLibrary(t)
	for name := range tinyCheckpoints {
		t.Run(name, func(t *testing.T) {
			m, err := Open(filepath.Join("..", "testdata", "tiny-hf", name))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			const slots, steps = 3, 5
			r, err := m.OpenDecoder(decoder.OpenOptions{Slots: slots, Session: ort.Options{Threads: 1}})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			rng := rand.New(rand.NewPCG(7, 7))
			rows := make([]decoder.Row, slots)
			for i := range rows {
				rows[i] = loggedRow(i, 0, nil)
				for range m.Decoder.ShortestPrompt() + 3*i {
					rows[i].IDs = append(rows[i].IDs, int32(rng.IntN(80)))
				}
				if n := m.Decoder.EncoderStates; n > 0 {
					states := make([]float32, n*m.Decoder.Hidden)
					for j := range states {
						states[j] = float32(rng.NormFloat64())
					}
					rows[i].Spans = []fusion.Span{{Len: n, Patches: states}}
				}
			}
			next := func(row decoder.Row, tok picked) decoder.Row {
				row.Past, row.IDs = row.Past+len(row.IDs), []int32{tok.ID}
				return row
			}
			var alone [slots][]picked
			for i, row := range rows {
				row.Slot = (i + 1) % slots
				for range steps {
					tok := run(t, r, row)[0]
					alone[i] = append(alone[i], tok)
					row = next(row, tok)
				}
			}
			for i := range rows {
				rows[i] = next(rows[i], run(t, r, rows[i])[0])
			}
			for s := range steps - 1 {
				for i, tok := range run(t, r, rows...) {
					if want := alone[i][s+1]; tok.ID != want.ID || math.Abs(float64(tok.Logprob-want.Logprob)) > 1e-5 {
						t.Fatalf("row %d, step %d: %+v, alone %+v", i, s+1, tok, want)
					}
					rows[i] = next(rows[i], tok)
				}
			}
			if m.Decoder.WholePrompt {
				if _, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{loggedRow(0, 40, []int32{1, 2})}}); err == nil {
					t.Error("a second chunk of a prompt was taken")
				}
			}
			if m.Decoder.EncoderStates > 0 {
				if _, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{loggedRow(0, 0, []int32{1, 2})}}); err == nil {
					t.Error("a prompt without its image was taken")
				}
			}
		})
	}
}
