package model

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// Decoders that treat the positions of images otherwise than text, over the reference's own image features, so that
// nothing of a tower is in the way.

const tinyImageToken = 90 // of all tiny checkpoints

// tinyDecoder is the decoder of a tiny checkpoint and what transformers computed with it.
type tinyDecoder struct {
	config  decoder.Config
	weights *graph.Weights
	input   fusion.Input
	logits  []float32
	ids     []int32 // greedy
}

// imageDecoders are the settings of the tiny checkpoints' decoders, as their config.json says.
var imageDecoders = map[string]decoder.Config{
	"qwen2_vl":   qwen2Decoder,
	"qwen2_5_vl": qwen2Decoder,
	"qwen3_vl": {
		Layers: 3, Hidden: 48, Intermediate: 64, Heads: 4, KVHeads: 2, HeadDim: 32, Vocab: 100, MaxLen: 512,
		Rope: decoder.Rope{Theta: 5e6}, Eps: 1e-6, Activation: "silu", QKNorm: true, Tied: true,
		MRope: &decoder.MRope{Sections: [3]int{6, 5, 5}, Interleaved: true}, Deepstack: 2,
	},
	"gemma3": {
		Layers: 4, Hidden: 64, Intermediate: 80, Heads: 4, KVHeads: 2, HeadDim: 32, Vocab: 104, MaxLen: 512,
		Rope:      decoder.Rope{Theta: 1e6, Scaling: decoder.RopeLinear, Factor: 8},
		LocalRope: &decoder.Rope{Theta: 1e4}, Windows: []int{8, 8, 0, 8}, Eps: 1e-6, Activation: "gelu_pytorch_tanh",
		QKNorm: true, UnitNorms: true, SandwichNorms: true, Tied: true, EmbedScale: 8,
		AttentionScale: float32(1 / math.Sqrt(24)), ImageBlocks: true,
	},
	"paddleocr_vl": {
		Layers: 2, Hidden: 48, Intermediate: 64, Heads: 4, KVHeads: 2, HeadDim: 32, Vocab: 100, MaxLen: 512,
		Rope: decoder.Rope{Theta: 5e5}, Eps: 1e-5, Activation: "silu",
		MRope: &decoder.MRope{Sections: [3]int{4, 6, 6}},
	},
}

func init() {
	glm := imageDecoders["paddleocr_vl"]
	glm.Rope.Theta, glm.RopePairs, glm.GateUp, glm.SandwichNorms = 1e4, true, true, true
	imageDecoders["glm_ocr"] = glm
	glm.Heads, glm.KVHeads, glm.HeadDim, glm.QKVBias = 3, 1, 16, true
	glm.RotaryDim, glm.MRope = 8, &decoder.MRope{Sections: [3]int{1, 1, 2}}
	imageDecoders["glm4v"] = glm
}

var qwen2Decoder = decoder.Config{
	Layers: 2, Hidden: 64, Intermediate: 96, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 100, MaxLen: 512,
	Rope: decoder.Rope{Theta: 1e6}, Eps: 1e-6, Activation: "silu", QKVBias: true,
	MRope: &decoder.MRope{Sections: [3]int{2, 3, 3}},
}

// glmNorms name the norms before and after attention and MLP as Gemma does.
var glmNorms = []graph.Part{
	{From: "post_attention_layernorm", To: "pre_feedforward_layernorm"},
	{From: "post_self_attn_layernorm", To: "post_attention_layernorm"},
	{From: "post_mlp_layernorm", To: "post_feedforward_layernorm"},
}

func tinyPrefixes(name string) []graph.Prefix {
	var norms []graph.Part
	if strings.HasPrefix(name, "glm") {
		norms = glmNorms
	}
	return []graph.Prefix{
		{From: "language_model.model.", To: "text."}, {From: "model.language_model.", To: "text.", Parts: norms},
		{From: "model.visual.", To: "vision."}, {From: "model.", To: "text."},
	}
}

func openTiny(t *testing.T, name string) *tinyDecoder {
	t.Helper()
	modeltest.StartLibrary(t)
	if _, err := os.Stat(modeltest.TinyDir(name)); err != nil {
		t.Skip("the checkpoint comes with its family")
	}
	weights, err := safetensors.Open(modeltest.TinyDir(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { weights.Close() })
	d := &tinyDecoder{config: imageDecoders[name]}
	if d.weights, err = graph.NewWeights(weights, tinyPrefixes(name)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.weights.Close() })
	gold, err := safetensors.OpenFile(modeltest.References(name))
	if err != nil {
		t.Fatal(err)
	}
	defer gold.Close()
	d.read(t, gold)
	return d
}

func (d *tinyDecoder) read(t *testing.T, gold *safetensors.Checkpoint) {
	t.Helper()
	ints := func(name string) []int32 {
		tensor, _ := gold.Tensor(name)
		wide, err := tensor.Ints()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		list := make([]int32, len(wide))
		for i, v := range wide {
			list[i] = int32(v)
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
	d.logits, d.ids = floats("logits"), ints("generated")
	l := fusion.Layout{ImageTokenID: tinyImageToken, ImageTokens: func(g vision.Grid) int { return g.Width * g.Height }}
	var images []*vision.Image
	if _, ok := gold.Tensor("image_grid_thw"); ok {
		l.Map = func(g vision.Grid) (rows, cols int) { return g.Height, g.Width }
		for thw := range slices.Chunk(ints("image_grid_thw"), 3) {
			images = append(images, &vision.Image{Grid: vision.Grid{Width: int(thw[2] / 2), Height: int(thw[1] / 2)}})
		}
	} else {
		images = []*vision.Image{{Grid: vision.Grid{Width: 4, Height: 4}}, {Grid: vision.Grid{Width: 4, Height: 4}}}
	}
	for i, img := range images {
		img.Digest = [32]byte{1, byte(i)}
	}
	var err error
	if d.input, err = l.Locate(ints("input_ids"), images); err != nil {
		t.Fatal(err)
	}
	parts := [][]float32{floats("image_features")}
	for i := range d.config.Deepstack {
		parts = append(parts, floats(fmt.Sprintf("deepstack_features.%d", i)))
	}
	for i, img := range images {
		var patches []float32
		for range l.Patches(img.Grid) {
			for p := range parts {
				patches = append(patches, parts[p][:d.config.Hidden]...)
				parts[p] = parts[p][d.config.Hidden:]
			}
		}
		if err := d.input.Attach(i, patches, d.config.PatchWidth()); err != nil {
			t.Fatal(err)
		}
	}
}

const tinyMaxLen = 256

func (d *tinyDecoder) open(t *testing.T, c decoder.Config, slots int, p graph.Precision) *decoder.HostRunner {
	t.Helper()
	o := decoder.OpenOptions{Slots: slots, MaxLen: tinyMaxLen, Precision: p, Session: ort.Options{Threads: 1}}
	r, err := decoder.OpenHost(c, d.weights, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// farthest is the largest difference of logits, in parts of the largest value.
func (d *tinyDecoder) farthest(t *testing.T, r *decoder.HostRunner, in fusion.Input) float64 {
	t.Helper()
	got, err := r.Logits(in)
	if err != nil || len(got) != len(d.logits) {
		t.Fatalf("%d logits, want %d: %v", len(got), len(d.logits), err)
	}
	largest, off := 0.0, 0.0
	for i, want := range d.logits {
		largest = max(largest, math.Abs(float64(want)))
		off = max(off, math.Abs(float64(got[i]-want)))
	}
	return off / largest
}

func withAndWithoutKernels(t *testing.T, try func(t *testing.T)) {
	t.Run("kernels", func(t *testing.T) {
		if !graph.HasKernels {
			t.Skip("there are none")
		}
		try(t)
	})
	t.Run("without", func(t *testing.T) {
		had := graph.HasKernels
		graph.HasKernels = false
		defer func() { graph.HasKernels = had }()
		try(t)
	})
}

// The decoder's logits and ids are the reference's over the reference's features.
func TestImagePositionsGold(t *testing.T) {
	for name := range imageDecoders {
		t.Run(name, func(t *testing.T) {
			withAndWithoutKernels(t, func(t *testing.T) {
				d := openTiny(t, name)
				r := d.open(t, d.config, 1, graph.FP32)
				if off := d.farthest(t, r, d.input); !(off <= 1e-4) {
					t.Errorf("logits are off by %.2g of the largest", off)
				}
				row := modeltest.GreedyRow(0, 0, d.input.IDs)
				row.Spans = d.input.Spans
				var ids []int32
				for range d.ids {
					next := modeltest.Greedy(t, r, row)
					ids = append(ids, next)
					row.Past, row.IDs = row.Past+len(row.IDs), []int32{next}
				}
				if !slices.Equal(ids, d.ids) {
					t.Errorf("greedy ids %v, want %v", ids, d.ids)
				}
			})
		})
	}
}

// Without any one part the logits are far off: what this package's gold tests would show.
func TestImagePositionsMatter(t *testing.T) {
	for _, c := range []struct {
		family, without string
		change          func(*decoder.Config, *fusion.Input)
	}{
		{"qwen2_vl", "places", func(_ *decoder.Config, in *fusion.Input) { noMaps(in) }},
		{"qwen2_5_vl", "places", func(_ *decoder.Config, in *fusion.Input) { noMaps(in) }},
		{"paddleocr_vl", "places", func(_ *decoder.Config, in *fusion.Input) { noMaps(in) }},
		{"qwen2_vl", "the right shape", func(_ *decoder.Config, in *fusion.Input) { turnMaps(in) }},
		{"qwen2_5_vl", "the right shape", func(_ *decoder.Config, in *fusion.Input) { turnMaps(in) }},
		{"qwen3_vl", "places", func(_ *decoder.Config, in *fusion.Input) { noMaps(in) }},
		{"qwen3_vl", "the right shape", func(_ *decoder.Config, in *fusion.Input) { turnMaps(in) }},
		{"qwen3_vl", "interleaving", func(c *decoder.Config, _ *fusion.Input) { c.MRope = &decoder.MRope{Sections: c.MRope.Sections} }},
		{"qwen3_vl", "deepstack", func(c *decoder.Config, in *fusion.Input) { clearDeep(c, in, 0); clearDeep(c, in, 1) }},
		{"qwen3_vl", "the first layer's deepstack", func(c *decoder.Config, in *fusion.Input) { clearDeep(c, in, 0) }},
		{"qwen3_vl", "the second layer's deepstack", func(c *decoder.Config, in *fusion.Input) { clearDeep(c, in, 1) }},
		{"glm_ocr", "places", func(_ *decoder.Config, in *fusion.Input) { noMaps(in) }},
		{"glm4v", "places", func(_ *decoder.Config, in *fusion.Input) { noMaps(in) }},
		{"gemma3", "attention both ways", func(c *decoder.Config, _ *fusion.Input) { c.ImageBlocks = false }},
		{"gemma3", "two images", func(_ *decoder.Config, in *fusion.Input) { joinImages(in) }},
	} {
		t.Run(c.family+" without "+c.without, func(t *testing.T) {
			withAndWithoutKernels(t, func(t *testing.T) {
				d := openTiny(t, c.family)
				config, in := d.config, fusion.Input{IDs: d.input.IDs, Spans: slices.Clone(d.input.Spans)}
				c.change(&config, &in)
				if off := d.farthest(t, d.open(t, config, 1, graph.FP32), in); off < 1e-2 {
					t.Errorf("logits are off by %.2g of the largest only", off)
				}
			})
		})
	}
}

func noMaps(in *fusion.Input) {
	for i := range in.Spans {
		in.Spans[i].Rows, in.Spans[i].Cols = 0, 0
	}
}

func turnMaps(in *fusion.Input) {
	for i := range in.Spans {
		in.Spans[i].Rows, in.Spans[i].Cols = in.Spans[i].Cols, in.Spans[i].Rows
	}
}

func clearDeep(c *decoder.Config, in *fusion.Input, layer int) {
	for i := range in.Spans {
		p := slices.Clone(in.Spans[i].Patches)
		for at := (1 + layer) * c.Hidden; at < len(p); at += c.PatchWidth() {
			clear(p[at : at+c.Hidden])
		}
		in.Spans[i].Patches = p
	}
}

// joinImages has each image see a position more, which is text.
func joinImages(in *fusion.Input) {
	for i, s := range in.Spans {
		hidden := len(s.Patches) / s.Len
		in.Spans[i].Len--
		in.Spans[i].Patches = s.Patches[:(s.Len-1)*hidden]
		in.Spans = append(in.Spans, fusion.Span{Start: s.Start + s.Len - 1, Len: 1, Patches: s.Patches[(s.Len-1)*hidden:]})
	}
	slices.SortFunc(in.Spans, func(a, b fusion.Span) int { return a.Start - b.Start })
}

// Sequences of other lengths and images give the same bits alone and together, in chunks of any length, from cached
// prefixes, after preemptions and with drafts.
func TestImagePositionsInEngine(t *testing.T) {
	for _, name := range []string{"qwen2_vl", "qwen3_vl", "glm4v", "gemma3"} {
		for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
			t.Run(fmt.Sprintf("%s/%s", name, p), func(t *testing.T) { imagesInEngine(t, openTiny(t, name), p) })
		}
	}
}

func imagesInEngine(t *testing.T, d *tinyDecoder, p graph.Precision) {
	const requests = 20
	if p.Quantized() {
		_, err := d.weights.LoadQuantized(t.TempDir(), func(w *graph.Weights) error {
			_, err := d.config.Graph(w, p)
			return err
		})
		if errors.Is(err, graph.ErrSaturates) || errors.Is(err, graph.ErrNoInt4) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	list := make([]batching.Request, requests)
	for i := range list {
		list[i] = d.request(rng, i, list[:i])
	}
	alone := d.open(t, d.config, 1, p)
	if !alone.Capacity().Exact {
		t.Skip("without own kernels nothing is promised of chunks of other lengths")
	}
	want := make([][]modeltest.Picked, requests)
	e, stop := runEngine(t, alone, batching.Options{NoPrefixCache: true, PrefillChunk: tinyMaxLen, MaxWaiting: 1})
	for i, r := range list {
		want[i] = receive(t, submit(t, e, r))
	}
	stop()
	many := d.open(t, d.config, 6, p)
	for _, o := range []batching.Options{
		{PrefillChunk: 1}, {PrefillChunk: 5, NoPrefixCache: true}, {PrefillChunk: 13, Drafts: 3},
		{PrefillChunk: tinyMaxLen, NoPrefixCache: true}, {PrefillChunk: 7, KVTokens: tinyMaxLen, Drafts: 5},
	} {
		o.MaxWaiting = requests
		still := time.Now()
		o.Clock = func() time.Time { return still }
		e, stop := runEngine(t, many, o)
		streams := make([]*batching.Stream, requests)
		for i, r := range list {
			streams[i] = submit(t, e, r)
		}
		for i, s := range streams {
			if got := receive(t, s); !slices.Equal(got, want[i]) {
				t.Errorf("chunks of %d: request %d gives\n%v, alone\n%v", o.PrefillChunk, i, got, want[i])
			}
		}
		stats := e.Stats()
		stop()
		if o.KVTokens > 0 && stats.Preemptions == 0 || !o.NoPrefixCache && stats.CachedTokens == 0 {
			t.Errorf("chunks of %d: the run did not do what it is for: %+v", o.PrefillChunk, stats)
		}
	}
}

// request is text, the reference's prompt, a part of it, or that with its images turned, and more text.
func (d *tinyDecoder) request(rng *rand.Rand, i int, earlier []batching.Request) batching.Request {
	r := batching.Request{ID: fmt.Sprint(i), MaxTokens: 6 + rng.IntN(40)}
	r.Sampling = decoder.Sampling{Logprobs: true, Seed: uint64(i)}
	text := make([]int32, 1+rng.IntN(40))
	for j := range text {
		text[j] = int32(3 + rng.IntN(80))
	}
	switch kind := rng.IntN(5); {
	case kind == 0:
		r.Input.IDs = text
	case kind == 1 && len(earlier) > 0: // goes on where another has begun
		like := earlier[rng.IntN(len(earlier))].Input
		r.Input = fusion.Input{IDs: slices.Concat(like.IDs, text[:1+len(text)/8]), Spans: like.Spans}
	default:
		in := fusion.Input{IDs: slices.Concat(d.input.IDs, text), Spans: slices.Clone(d.input.Spans)}
		if kind == 2 {
			turnMaps(&in)
		}
		if kind == 3 { // ends with its first image
			in.IDs = in.IDs[:in.Spans[0].Start+in.Spans[0].Len]
			in.Spans = in.Spans[:1]
		}
		r.Input = in
	}
	return r
}
