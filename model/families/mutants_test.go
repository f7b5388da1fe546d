package families

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// leaves calls visit for each value in c, which may change it and has to put it back.
func leaves(c any, path string, visit func(path string, set func(any), value any)) {
	switch c := c.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(c)) {
			v := c[k]
			visit(path+"."+k, func(x any) { c[k] = x }, v)
			leaves(v, path+"."+k, visit)
		}
	case []any:
		for i, v := range c {
			visit(fmt.Sprintf("%s[%d]", path, i), func(x any) { c[i] = x }, v)
			if i > 2 {
				break
			}
		}
	}
}

// No value of a field has reading a config.json, laying an image out or building the graphs panic or take long.
func TestMutants(t *testing.T) {
	values := []any{0, -1, 7, int64(1) << 62, 1e300, nil, []any{}, "x"}
	for name := range modeltest.TinyCheckpoints {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(modeltest.Path("testdata", "tiny-hf", name, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			st, err := safetensors.Open(modeltest.TinyDir(name))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			var c map[string]any
			if err := json.Unmarshal(raw, &c); err != nil {
				t.Fatal(err)
			}
			try := func(path string, v any) {
				began := time.Now()
				mutated, _ := json.Marshal(c)
				defer func() {
					if r := recover(); r != nil {
						t.Errorf("%s = %v: %v\n%s", path, v, r, debug.Stack())
					}
					if d := time.Since(began); d > 2*time.Second {
						t.Errorf("%s = %v took %v", path, v, d)
					}
				}()
				_, s, err := Read(mutated)
				if err != nil {
					return
				}
				s.CutContext()
				s.Layout.Expand(vision.Grid{Width: 64, Height: 64})
				w, err := graph.NewWeights(st, s.Prefixes...)
				if err != nil {
					return
				}
				defer w.Close()
				// A checkpoint of other shapes is refused: the graphs are built, or not.
				_, _ = s.Decoder.Graph(w, graph.FP32)
				switch {
				case s.AnySize != nil:
					s.AnySize.MostPatches(1<<30, true)
					_, _ = vision.AnySizeGraph(w, *s.AnySize, graph.FP32)
				case s.DaViT != nil:
					_, _ = vision.DaViTGraph(w, *s.DaViT, graph.FP32)
				default:
					_, _ = vision.TowerGraph(w, s.Tower, s.Connector, graph.FP32)
				}
			}
			next := len(name) // values differ by model
			leaves(c, "", func(path string, set func(any), value any) {
				for range racetest.Part(2) { // the others are tried elsewhere
					v := values[next%len(values)]
					next++
					set(v)
					try(path, v)
				}
				set(value)
			})
		})
	}
}
