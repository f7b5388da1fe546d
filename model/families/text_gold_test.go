package families

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/modeltest"
)

// tinyText is the decoder of a tiny checkpoint, as its config.json says, and what transformers computed with it over
// image features that the file has: nothing of a tower is in the way.
type tinyText struct {
	config  decoder.Config
	weights *graph.Weights
	in      fusion.Input
	logits  []float32
	ids     []int32 // greedy
}

// textOf reads the text model of a config.json as a family does: under text_config, or beside the vision tower's.
func textOf(t *testing.T, file string) (decoder.Config, error) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Type string          `json:"model_type"`
		Text json.RawMessage `json:"text_config"`
		Tied *bool           `json:"tie_word_embeddings"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	if c.Text == nil {
		c.Text = raw
	}
	d, _, err := parseText(c.Text, "llama")
	d.Tied = *c.Tied
	d.ImageBlocks = c.Type == "gemma3"
	if c.Type == "qwen3_vl" {
		d.Deepstack = 2
	}
	return d, err
}

func openTinyText(t *testing.T, name string) *tinyText {
	t.Helper()
	modeltest.StartLibrary(t)
	dir := modeltest.TinyDir(name)
	if _, err := os.Stat(dir); err != nil {
		t.Skip("the checkpoint comes with its family")
	}
	c, err := textOf(t, filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if file := filepath.Join(dir, "config.4x.json"); modeltest.Exists(file) {
		older, err := textOf(t, file)
		c.Rope.OriginalMaxLen, older.Rope.OriginalMaxLen = 0, 0 // of ropes that do not read it
		if err != nil || !reflect.DeepEqual(c, older) {
			t.Errorf("config.4x.json gives %+v, config.json %+v (%v)", older, c, err)
		}
	}
	weights, err := safetensors.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { weights.Close() })
	var parts []graph.Part
	var prefixes []graph.Prefix
	if name == "lfm2_vl" {
		prefixes = lfm2TextPrefixes("model.language_model.")
	}
	if strings.HasPrefix(name, "glm") {
		parts = glmTextParts
	}
	d := &tinyText{config: c}
	if d.weights, err = graph.NewWeights(weights, append(prefixes, []graph.Prefix{
		{From: "language_model.lm_head.", To: "lm_head."}, {From: "language_model.model.", To: "text."},
		{From: "model.language_model.", To: "text.", Parts: parts}, {From: "model.visual.", To: "vision."},
		{From: "model.vision", To: "vision"}, {From: "model.", To: "text."},
	}...)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.weights.Close() })
	d.read(t, name)
	return d
}

// read reads the reference values. Each run of image tokens is a span, which for decoders of three axes is an image.
func (d *tinyText) read(t *testing.T, name string) {
	t.Helper()
	gold, err := safetensors.OpenFile(modeltest.References(name))
	if err != nil {
		t.Fatal(err)
	}
	defer gold.Close()
	ints := func(name string) []int32 {
		tensor, _ := gold.Tensor(name)
		wide, err := tensor.Ints()
		list := make([]int32, len(wide))
		for i, v := range wide {
			list[i] = int32(v)
		}
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	floats := func(name string) []float32 {
		tensor, _ := gold.Tensor(name)
		values, err := tensor.Floats()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return values
	}
	const imageToken = 90
	d.logits, d.ids, d.in.IDs = floats("logits"), ints("generated"), ints("input_ids")
	features := [][]float32{floats("image_features")}
	for i := range d.config.Deepstack {
		features = append(features, floats(fmt.Sprintf("deepstack_features.%d", i)))
	}
	hidden := d.config.Hidden
	for at, id := range d.in.IDs {
		if id != imageToken {
			continue
		}
		if n := len(d.in.Spans); n == 0 || d.in.Spans[n-1].Start+d.in.Spans[n-1].Len != at {
			d.in.Spans = append(d.in.Spans, fusion.Span{Start: at})
		}
		s := &d.in.Spans[len(d.in.Spans)-1]
		s.Len++
		for i := range features {
			s.Patches = append(s.Patches, features[i][:hidden]...)
			features[i] = features[i][hidden:]
		}
	}
	if len(features[0]) > 0 {
		t.Fatalf("%d features are left", len(features[0])/hidden)
	}
	if d.config.MRope != nil {
		grid := ints("image_grid_thw")
		for i := range d.in.Spans {
			d.in.Spans[i].Rows, d.in.Spans[i].Cols = int(grid[3*i+1]/2), int(grid[3*i+2]/2)
		}
	}
}

func (d *tinyText) open(t *testing.T, c decoder.Config) *decoder.HostRunner {
	t.Helper()
	r, err := decoder.OpenHost(c, d.weights, decoder.OpenOptions{Slots: 1, Session: ort.Options{Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// off is the largest difference from the reference's logits, in parts of their largest value.
func (d *tinyText) off(t *testing.T, r *decoder.HostRunner) float64 {
	t.Helper()
	got, err := r.Logits(d.in)
	if err != nil || len(got) != len(d.logits) {
		t.Fatalf("%d logits, want %d: %v", len(got), len(d.logits), err)
	}
	largest, off := 0.0, 0.0
	for i, want := range d.logits {
		largest, off = max(largest, math.Abs(float64(want))), max(off, math.Abs(float64(got[i]-want)))
	}
	return off / largest
}

// textParts are the parts of each tiny checkpoint's decoder, with how to leave them out.
var textParts = map[string]map[string]func(*decoder.Config){
	"gemma3": {
		"query and key norms": func(c *decoder.Config) { c.QKNorm = false },
		"the rope of windows": func(c *decoder.Config) { c.LocalRope = nil },
		"windows":             func(c *decoder.Config) { c.Windows = []int{512, 512, 0, 512} },
		"a window's length":   func(c *decoder.Config) { c.Windows = []int{8, 8, 0, 9} },
		"rope scaling":        func(c *decoder.Config) { c.Rope.Scaling = decoder.RopeUnscaled },
		"the attention scale": func(c *decoder.Config) { c.AttentionScale = 0 },
		"norms of 1 + weight": func(c *decoder.Config) { c.UnitNorms = false },
		"sandwich norms":      func(c *decoder.Config) { c.SandwichNorms = false },
		"the embedding scale": func(c *decoder.Config) { c.EmbedScale = 0 },
		"blocks of images":    func(c *decoder.Config) { c.ImageBlocks = false },
	},
	"internvl": {"biases": func(c *decoder.Config) { c.QKVBias = false }},
	"llava_next-granite": {
		"embedding_multiplier": func(c *decoder.Config) { c.InputScale = 0 },
		"attention_multiplier": func(c *decoder.Config) { c.AttentionScale = 0 },
		"residual_multiplier":  func(c *decoder.Config) { c.ResidualScale = 0 },
	},
	"llava_next":  {"the rope's base": func(c *decoder.Config) { c.Rope.Theta = 1e4 }},
	"lighton_ocr": {"query and key norms": func(c *decoder.Config) { c.QKNorm = false }},
	"mistral3":    {"the rope's base": func(c *decoder.Config) { c.Rope.Theta = 1e4 }},
	"qwen2_vl": {
		"three axes": func(c *decoder.Config) { c.MRope = nil },
		"biases":     func(c *decoder.Config) { c.QKVBias = false },
	},
	"qwen2_5_vl": {"three axes": func(c *decoder.Config) { c.MRope = nil }},
	"qwen3_vl": {
		"three axes":          func(c *decoder.Config) { c.MRope = nil },
		"interleaving":        func(c *decoder.Config) { c.MRope = &decoder.MRope{Sections: c.MRope.Sections} },
		"query and key norms": func(c *decoder.Config) { c.QKNorm = false },
	},
	"lfm2_vl": {
		"query and key norms": func(c *decoder.Config) { c.QKNorm = false },
		"the rope's base":     func(c *decoder.Config) { c.Rope.Theta = 1e4 },
	},
	"paddleocr_vl": {"three axes": func(c *decoder.Config) { c.MRope = nil }},
	"glm_ocr": {
		"three axes":     func(c *decoder.Config) { c.MRope = nil },
		"pairs":          func(c *decoder.Config) { c.RopePairs = false },
		"sandwich norms": func(c *decoder.Config) { c.SandwichNorms = false },
	},
	"glm4v": {
		"three axes": func(c *decoder.Config) { c.MRope = nil },
		"pairs":      func(c *decoder.Config) { c.RopePairs = false },
		"a still part of each head": func(c *decoder.Config) {
			c.RotaryDim, c.MRope = 0, &decoder.MRope{Sections: [3]int{2, 2, 4}}
		},
		"biases": func(c *decoder.Config) { c.QKVBias = false },
	},
}

// Logits and greedy ids are the reference's, with mmserve's own attention and without.
func TestTextGold(t *testing.T) {
	defer func(had bool) { graph.HasKernels = had }(graph.HasKernels)
	for _, own := range slices.Compact([]bool{false, graph.HasKernels}) {
		for name := range textParts {
			t.Run(fmt.Sprintf("%s/kernels=%t", name, own), func(t *testing.T) {
				graph.HasKernels = own
				d := openTinyText(t, name)
				r := d.open(t, d.config)
				if exact := r.Capacity().Exact; exact != own {
					t.Errorf("exact is %t, want %t", exact, own)
				}
				off := d.off(t, r)
				t.Logf("logits are off by %.2g of the largest", off)
				if !(off <= 1e-4) {
					t.Errorf("logits are off by %.2g of the largest", off)
				}
				row := modeltest.GreedyRow(0, 0, d.in.IDs)
				row.Spans = d.in.Spans
				for i, want := range d.ids {
					out, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{row}})
					if err != nil {
						t.Fatal(err)
					}
					if out[0].ID != want {
						t.Fatalf("greedy id %d is %d, want %d", i, out[0].ID, want)
					}
					row.Past, row.IDs = row.Past+len(row.IDs), []int32{out[0].ID}
				}
			})
		}
	}
}

// Without any one part the logits are far off.
func TestTextPartsMatter(t *testing.T) {
	for name, parts := range textParts {
		for part, leaveOut := range parts {
			t.Run(name+" without "+part, func(t *testing.T) {
				d := openTinyText(t, name)
				c := d.config
				leaveOut(&c)
				off := d.off(t, d.open(t, c))
				t.Logf("logits are off by %.2g of the largest", off)
				if !(off > 1e-2) {
					t.Errorf("logits are off by %.2g of the largest only", off)
				}
			})
		}
	}
}
