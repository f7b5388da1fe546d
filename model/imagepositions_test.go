package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

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
// nothing of a tower is in the way. That they give the reference's logits and ids is tested in families.

const tinyImageToken = 90 // of all tiny checkpoints

// tinyDecoder is the decoder of a tiny checkpoint and what transformers computed with it.
type tinyDecoder struct {
	config  decoder.Config
	weights *graph.Weights
	input   fusion.Input
	logits  []float32
	ids     []int32 // greedy
}

func openTiny(t *testing.T, name string) *tinyDecoder {
	t.Helper()
	modeltest.StartLibrary(t)
	m, err := Open(modeltest.TinyDir(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	gold, err := safetensors.OpenFile(modeltest.References(name))
	if err != nil {
		t.Fatal(err)
	}
	defer gold.Close()
	d := &tinyDecoder{config: m.Decoder, weights: m.Weights}
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
func (d *tinyDecoder) farthest(t *testing.T, r decoder.Runner, in fusion.Input) float64 {
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

// Where the spans say something else of an image, the logits are far off.
func TestImagePositionsMatter(t *testing.T) {
	for _, c := range []struct {
		name     string
		families []string
		change   func(*decoder.Config, *fusion.Input)
	}{
		{"images are no maps", mapFamilies, func(_ *decoder.Config, in *fusion.Input) { noMaps(in) }},
		{"rows and columns are exchanged", mapFamilies, func(_ *decoder.Config, in *fusion.Input) { turnMaps(in) }},
		{"the first layer has no features", deepFamilies, func(c *decoder.Config, in *fusion.Input) { clearDeep(c, in, 0) }},
		{"the second layer has no features", deepFamilies, func(c *decoder.Config, in *fusion.Input) { clearDeep(c, in, 1) }},
		{"layers have each other's features", deepFamilies, exchangeDeep},
		{"an image's last position sees it only", []string{"gemma3"}, func(_ *decoder.Config, in *fusion.Input) { splitImages(in) }},
	} {
		for _, family := range c.families {
			t.Run(family+"/"+c.name, func(t *testing.T) {
				d := openTiny(t, family)
				config, in := d.config, fusion.Input{IDs: d.input.IDs, Spans: slices.Clone(d.input.Spans)}
				r := d.open(t, config, 1, graph.FP32)
				if off := d.farthest(t, r, in); off > 1e-4 {
					t.Fatalf("logits are off by %.2g of the largest as they are", off)
				}
				c.change(&config, &in)
				if off := d.farthest(t, r, in); off < 1e-2 {
					t.Errorf("logits are off by %.2g of the largest only", off)
				}
			})
		}
	}
}

var (
	mapFamilies  = []string{"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paddleocr_vl", "glm_ocr", "glm4v"}
	deepFamilies = []string{"qwen3_vl"}
)

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

// exchangeDeep has features of two layers change places.
func exchangeDeep(c *decoder.Config, in *fusion.Input) {
	for i := range in.Spans {
		p := slices.Clone(in.Spans[i].Patches)
		for at := 0; at < len(p); at += c.PatchWidth() {
			deep := p[at+c.Hidden : at+3*c.Hidden]
			copy(deep, slices.Concat(deep[c.Hidden:], deep[:c.Hidden]))
		}
		in.Spans[i].Patches = p
	}
}

// splitImages makes an image of each image's last position.
func splitImages(in *fusion.Input) {
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
	all := []graph.Precision{graph.FP32, graph.INT8, graph.INT4}
	for name, precisions := range map[string][]graph.Precision{
		"qwen2_vl": all[:1], "glm4v": all[:1], "qwen3_vl": all, "gemma3": all,
	} {
		for _, p := range precisions {
			t.Run(fmt.Sprintf("%s/%s", name, p), func(t *testing.T) { imagesInEngine(t, openTiny(t, name), p) })
		}
	}
}

func imagesInEngine(t *testing.T, d *tinyDecoder, p graph.Precision) {
	quantise(t, d.weights, d.config, p)
	rng := rand.New(rand.NewPCG(3, 4))
	list := make([]batching.Request, 20)
	for i := range list {
		list[i] = d.request(rng, i, list[:i])
	}
	sameInEngine(t, list, func(slots int) decoder.Runner { return d.open(t, d.config, slots, p) }, everyWay)
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
