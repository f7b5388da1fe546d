package model

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// The tiles of an image that is cut, and the whole behind them, give the embeddings that each gives as an image.
func TestTilesOfAnySizeTower(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := Open(modeltest.TinyDir("lfm2_vl"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const patch, tile = 4, 16
	m.AnySize.TileSize = tile
	tower, err := m.OpenTower(graph.FP32, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tower.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	pixels := func(n int) []uint8 {
		list := make([]uint8, 3*n)
		for i := range list {
			list[i] = uint8(rng.IntN(256))
		}
		return list
	}
	encode := func(img *vision.Image) []float32 {
		img.Size = patch
		list, err := vision.Encode(tower, img, func(dst []float32, src []uint8) {
			for i, b := range src {
				dst[i] = float32(b)/128 - 1
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return slices.Clone(list)
	}
	cut := vision.Image{Grid: vision.Grid{Rows: 1, Cols: 2, Width: 24, Height: 8}}
	var want []float32
	for _, g := range []vision.Grid{{Width: tile, Height: tile}, {Width: tile, Height: tile}, {Width: 24, Height: 8}} {
		part := vision.Image{Grid: g, Pixels: pixels(g.Width * g.Height)}
		cut.Pixels = append(cut.Pixels, part.Pixels...)
		want = append(want, encode(&part)...)
	}
	if err := tower.Wipe(); err != nil {
		t.Fatal(err)
	}
	got := encode(&cut)
	if !slices.Equal(got, want) || len(got) != m.AnySize.Tokens(cut.Grid)*m.Decoder.Hidden {
		t.Errorf("%d values of an image that is cut differ from the %d of its parts", len(got), len(want))
	}
	for _, g := range []vision.Grid{
		{Rows: 1, Cols: 1, Width: 24, Height: 8}, {Rows: -1, Cols: 2, Width: 24, Height: 8},
		{Rows: 1, Cols: 2, Width: 20, Height: 8},
		{Rows: 1 << 40, Cols: 1 << 40, Width: 24, Height: 8},
	} {
		bad := vision.Image{Grid: g, Size: patch, Pixels: cut.Pixels}
		if err := tower.Load(0, &bad, 0, func([]float32, []uint8) {}); err == nil {
			t.Errorf("an image of %+v was taken", g)
		}
	}
}
