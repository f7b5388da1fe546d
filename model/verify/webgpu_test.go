package verify

import (
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
)

// The gold cases of the embedded model, which transformers computed, on the device: in fp32 all tokens, in fp16 99 %.
func TestWebGPUGold(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	for _, p := range []struct {
		graph.Precision
		tolerance, least float64
	}{{graph.FP32, 1e-4, 1}, {graph.FP16, 0.1, 0.99}} {
		t.Run(string(p.Precision), func(t *testing.T) {
			m, err := model.Open("")
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			v, err := New(m, p.tolerance, p.Precision, o)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			cases, same, worst := 0, 0.0, 0.0
			err = v.File(modeltest.Path("testdata", "tiny-vlm-gold", "gold.jsonl"), func(c Case) {
				if cases++; c.Err != nil {
					t.Errorf("%s: %v", c.ID, c.Err)
				}
				for _, k := range c.Checks {
					switch k.Name {
					case "generated_ids":
						same += k.Value
						continue
					case "logits":
						worst = max(worst, k.Value)
					}
					if !k.OK {
						t.Errorf("%s: %+v", c.ID, k)
					}
				}
			})
			if err != nil || cases == 0 {
				t.Fatalf("%d cases, %v", cases, err)
			}
			t.Logf("%.2f %% of the tokens of %d cases, logits off by %.2g at most", 100*same/float64(cases), cases, worst)
			if same < p.least*float64(cases) {
				t.Errorf("%.2f %% of the tokens are the same, want %g", 100*same/float64(cases), 100*p.least)
			}
		})
	}
}

// Towers of square tiles on the device: layer scale, RMS norms, several feature layers, means of blocks.
func TestWebGPUSquareTowers(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	for _, name := range []string{"internvl", "internvl-rms", "llava_next", "llava_next-granite", "gemma3"} {
		for p, share := range map[graph.Precision]float64{graph.FP32: 1e-4, graph.FP16: 1e-2} {
			t.Run(name+"/"+string(p), func(t *testing.T) {
				m, err := model.Open(modeltest.TinyDir(name))
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				want, err := safetensors.OpenFile(modeltest.References(name))
				if err != nil {
					t.Fatal(err)
				}
				defer want.Close()
				tower, err := m.OpenTower(p, o)
				if err != nil {
					t.Fatal(err)
				}
				defer tower.Close()
				v := &Verifier{Sessions: Sessions{Model: m, Tower: tower}}
				_, patches, err := v.features(references{want})
				if err != nil {
					t.Fatal(err)
				}
				c, err := v.compare("image_features", slices.Concat(patches...), references{want})
				most := largest(t, references{want}, "image_features")
				t.Logf("off by %.2g of the largest", c.Value/most)
				if err != nil || !(c.Value <= share*most) {
					t.Errorf("off by %g of %g, %v", c.Value, most, err)
				}
			})
		}
	}
}

// Features of towers for images of any size on the device, with windows, tables and deepstack.
func TestWebGPUAnySize(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	for name := range anySizeCheckpoints {
		t.Run(name, func(t *testing.T) {
			want, err := safetensors.OpenFile(modeltest.References(name))
			if err != nil {
				t.Fatal(err)
			}
			defer want.Close()
			m, err := model.Open(modeltest.TinyDir(name))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			v := Verifier{Sessions: Sessions{Model: m}}
			if v.Tower, err = m.OpenTower(graph.FP32, o); err != nil {
				t.Fatal(err)
			}
			defer v.Tower.Close()
			_, patches, err := v.features(references{want})
			if err != nil {
				t.Fatal(err)
			}
			checks, err := v.compareFeatures("image_features", slices.Concat(patches...), references{want})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range checks {
				if most := largest(t, references{want}, c.Name); !(c.Value <= 1e-4*most) {
					t.Errorf("%s differ by %g, the largest is %g", c.Name, c.Value, most)
				}
			}
		})
	}
}
