package model

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// squareFamilies are those whose towers take square tiles, that came after LLaVA-OneVision.
var squareFamilies = []string{"internvl", "llava_next", "llava_next-granite", "gemma3"}

// openSquare opens a family's tiny checkpoint, with the reference's prompt and image features as one image.
func openSquare(t *testing.T, name string) *tinyDecoder {
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
	ids, _ := gold.Tensor("input_ids")
	wide, err := ids.Ints()
	if err != nil {
		t.Fatal(err)
	}
	features, _ := gold.Tensor("image_features")
	patches, err := features.Floats()
	if err != nil {
		t.Fatal(err)
	}
	d := &tinyDecoder{config: m.Decoder, weights: m.Weights}
	for _, id := range wide {
		d.input.IDs = append(d.input.IDs, int32(id))
	}
	l := fusion.Layout{ImageTokenID: m.Layout.ImageTokenID, PatchTokens: len(patches) / m.Decoder.Hidden}
	if d.input, err = l.Locate(d.input.IDs, []*vision.Image{{Digest: [32]byte{1}}}); err != nil {
		t.Fatal(err)
	}
	if err := d.input.Attach(0, patches, m.Decoder.Hidden); err != nil {
		t.Fatal(err)
	}
	return d
}

// Granite's multipliers, Mistral and Qwen2 with images: the same bits alone and together, in chunks of any length, from
// cached prefixes, after preemptions and with drafts.
func TestSquareFamiliesInEngine(t *testing.T) {
	for _, name := range squareFamilies {
		for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
			if p != graph.FP32 && name != "llava_next-granite" {
				continue // what is quantised is the same in all
			}
			t.Run(fmt.Sprintf("%s/%s", name, p), func(t *testing.T) { imagesInEngine(t, openSquare(t, name), p) })
		}
	}
}

// A tile gives the same patch embeddings to the last bit whatever tiles share its run.
func TestTilesTogether(t *testing.T) {
	modeltest.StartLibrary(t)
	for _, name := range squareFamilies {
		for _, p := range []graph.Precision{graph.FP32, graph.INT8} {
			t.Run(fmt.Sprintf("%s/%s", name, p), func(t *testing.T) { tilesTogether(t, name, p) })
		}
	}
}

func tilesTogether(t *testing.T, name string, p graph.Precision) {
	m, err := Open(modeltest.TinyDir(name))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.LoadQuantized(t.TempDir(), p, p); errors.Is(err, graph.ErrSaturates) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	tower, err := m.OpenTower(p, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tower.Close()
	rng := rand.New(rand.NewPCG(8, 9))
	size := 3 * m.Tower.ImageSize * m.Tower.ImageSize
	const tiles = 5
	img := &vision.Image{Grid: vision.Grid{Rows: 1, Cols: tiles - 1}, Pixels: make([]uint8, tiles*size)}
	for i := range img.Pixels {
		img.Pixels[i] = uint8(rng.IntN(256))
	}
	normalize := func(dst []float32, src []uint8) {
		for i, b := range src {
			dst[i] = float32(b)/127.5 - 1
		}
	}
	run := func(list ...int) (patches [][]float32) {
		for place, i := range list {
			if err := tower.Load(place, img, i, normalize); err != nil {
				t.Fatal(err)
			}
		}
		if err := tower.Run(t.Context(), len(list)); err != nil {
			t.Fatal(err)
		}
		for place := range list {
			patches = append(patches, slices.Clone(tower.Patches(place)))
		}
		return patches
	}
	var alone [][]float32
	for i := range tiles {
		alone = append(alone, run(i)[0])
	}
	for _, list := range [][]int{{0, 1}, {2, 1, 0}, {4, 3, 2, 1, 0}, {3, 3, 4, 0}} {
		for place, got := range run(list...) {
			if !slices.Equal(got, alone[list[place]]) {
				t.Errorf("tiles %v: that at %d differs from itself alone", list, place)
			}
		}
	}
}
