package model

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/vision"
)

// Each processor of images of any size is brought to what there is memory for, and no further than it has to.
func TestShrinkTo(t *testing.T) {
	tower := vision.Patches{Patch: 14, Merge: 2}
	for class, file := range map[string]string{
		"Qwen2VLImageProcessor":     `{"min_pixels": 3136, "max_pixels": 12845056}`,
		"Glm46VImageProcessor":      `{"size": {"shortest_edge": 12544, "longest_edge": 23520000}}`,
		"PaddleOCRVLImageProcessor": `{"min_pixels": 147384, "max_pixels": 2822400}`,
		"PixtralImageProcessor":     `{"size": {"longest_edge": 1540}}`,
	} {
		p, err := vision.ParsePreprocessorFor([]byte(file), class, tower)
		if err != nil {
			t.Fatalf("%s: %v", class, err)
		}
		whole := largestImage(p.(vision.Patcher))
		for _, most := range []int{whole, whole - 1, 5000} {
			small, got := shrinkTo(p.(vision.Patcher), most)
			if got > most || got != largestImage(small.(vision.Patcher)) || got < min(most, whole)*6/10-8 {
				t.Errorf("%s of %d patches, at most %d: %d", class, whole, most, got)
			}
			if most == whole && vision.Describe(small) != vision.Describe(p) {
				t.Errorf("%s was changed though it fits", class)
			}
			for _, size := range [][2]int{{16000, 16000}, {16000, 100}, {640, 480}, {4000, 3000}} {
				g := small.Grid(size[0], size[1])
				if n := g.Width / 14 * (g.Height / 14); n > most {
					t.Errorf("%s, at most %d patches: %v become %d", class, most, size, n)
				}
			}
		}
		if _, got := shrinkTo(p.(vision.Patcher), 3); got < 4 {
			t.Errorf("%s: %d patches, want a block at least", class, got)
		}
	}
}

// A tile is run by itself: images are not cut where there is no memory for one.
func TestShrinkTiles(t *testing.T) {
	p, err := vision.ParsePreprocessorFor([]byte(`{"tile_size": 2048, "max_tiles": 8}`), "Lfm2VlImageProcessor",
		vision.Patches{Patch: 16, Merge: 2})
	if err != nil {
		t.Fatal(err)
	}
	const tile = 2048 / 16 * 2048 / 16
	if n := largestImage(p.(vision.Patcher)); n != tile {
		t.Errorf("%d patches at once, want a tile's %d", n, tile)
	}
	if same, got := shrinkTo(p.(vision.Patcher), tile); got != tile || vision.Describe(same) != vision.Describe(p) {
		t.Errorf("changed though a tile fits: %d", got)
	}
	small, got := shrinkTo(p.(vision.Patcher), tile-1)
	if g := small.Grid(16000, 16000); got >= tile || got < 900 || g.Rows != 0 {
		t.Errorf("%d patches, %+v, want the whole alone", got, g)
	}
}

// The memory of a run grows with an image as the values do that are there: a warning says where that is too much.
func TestFitMemory(t *testing.T) {
	m := &Model{}
	m.AnySize = &vision.AnySize{NativeResolution: vision.NativeResolution{PatchSize: 14, MergeSize: 2, Width: 1 << 17},
		Hidden: 1 << 17, Intermediate: 1 << 20, Heads: 1 << 10, Layers: 1}
	p, err := vision.ParsePreprocessorFor([]byte(`{"max_pixels": 12845056}`), "Qwen2VLImageProcessor",
		vision.Patches{Patch: 14, Merge: 2})
	if err != nil {
		t.Fatal(err)
	}
	small, warning, err := m.fitMemory(p)
	if err != nil || !strings.Contains(warning, "images of 65536 patches") || largestImage(small.(vision.Patcher)) >= 65536 {
		t.Errorf("%q, %v", warning, err)
	}
	m.AnySize = nil
	if same, warning, err := m.fitMemory(p); err != nil || warning != "" || vision.Describe(same) != vision.Describe(p) {
		t.Errorf("without a tower for images of any size: %q, %v", warning, err)
	}
}
