package vision

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
)

func TestQwen2VLGrid(t *testing.T) {
	p, err := ParsePreprocessor([]byte(`{"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 100352}`), "")
	if err != nil {
		t.Fatal(err)
	}
	// What transformers' smart_resize gives with those bounds.
	for _, c := range []struct{ w, h, width, height int }{
		{28, 28, 56, 56}, {13, 13, 56, 56}, {14, 14, 56, 56}, {42, 70, 56, 56}, {70, 42, 56, 56}, {98, 126, 112, 112}, {1,
			1, 56, 56}, {5, 1000, 28, 812},
		{1000, 5, 812, 28}, {640, 480, 364, 252}, {4000, 3000, 364, 252}, {3000, 4000, 252, 364}, {20000, 100, 4480,
			28}, {317, 316, 308, 308}, {336, 299, 308, 280},
	} {
		if got, want := p.Grid(c.w, c.h), (Grid{Width: c.width, Height: c.height}); got != want {
			t.Errorf("%d×%d: %+v, want %+v", c.w, c.h, got, want)
		}
	}
}

func TestQwen2VLRefusesStrips(t *testing.T) {
	p, err := ParsePreprocessor([]byte(`{}`), "Qwen2VLImageProcessor")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Prepare(context.Background(), bitmap(201, 1), Limits{}, true); !errors.Is(err, ErrImage) ||
		!strings.Contains(err.Error(), "201×1 pixels") {
		t.Errorf("201×1: %v", err)
	}
	img, err := p.Prepare(context.Background(), bitmap(200, 1), Limits{}, true)
	if err != nil || len(img.Pixels) != 3*img.Grid.Width*img.Grid.Height {
		t.Errorf("200×1: %+v, %v", img, err)
	}
}

func TestParseQwen2VL(t *testing.T) {
	openAI := Normalization{DoRescale: true, DoNormalize: true, Rescale: 1. / 255, Mean: clipMean, Std: clipStd}
	for config, want := range map[string]Qwen2VL{
		`{}`: {MinPixels: 3136, MaxPixels: 1003520, PatchSize: 14, MergeSize: 2, TemporalPatchSize: 2, Resample: 3,
			Normalization: openAI},
		// The hub's files of 2024, then those that transformers 5 writes.
		`{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 16, "merge_size": 1, "temporal_patch_size": 1, "resample": 2}`: {
			MinPixels: 3136, MaxPixels: 12845056, PatchSize: 16, MergeSize: 1, TemporalPatchSize: 1, Resample: 2,
			Normalization: openAI},
		`{"size": {"shortest_edge": 784, "longest_edge": 1568}}`: {
			MinPixels: 784, MaxPixels: 1568, PatchSize: 14, MergeSize: 2, TemporalPatchSize: 2, Resample: 3,
			Normalization: openAI},
		`{"size": {"shortest_edge": 784, "longest_edge": 1568}, "max_pixels": 2000}`: {
			MinPixels: 784, MaxPixels: 2000, PatchSize: 14, MergeSize: 2, TemporalPatchSize: 2, Resample: 3,
			Normalization: openAI},
	} {
		if got, err := ParsePreprocessor([]byte(config), "Qwen2VLImageProcessor"); err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", config, got, err, want)
		}
	}
	for config, want := range map[string]string{
		`{"do_resize": false}`:                        "do_resize",
		`{"size": {"height": 3}}`:                     "size has no shortest_edge",
		`{"size": {"shortest_edge": 3}}`:              "size has no shortest_edge",
		`{"min_pixels": 0}`:                           "0 to 1003520 pixels",
		`{"min_pixels": 2000000}`:                     "2000000 to 1003520 pixels",
		`{"max_pixels": 99999999}`:                    "3136 to 99999999 pixels",
		`{"patch_size": 0}`:                           "patch_size is 0, want 1 to 64",
		`{"merge_size": 9}`:                           "merge_size is 9",
		`{"temporal_patch_size": -1}`:                 "temporal_patch_size is -1",
		`{"resample": 5}`:                             "resample is 5",
		`{"image_std": 0}`:                            "image_std",
		`{"size": {"shortest_edge": "a few pixels"}}`: "cannot unmarshal",
	} {
		if _, err := ParsePreprocessor([]byte(config), "Qwen2VLImageProcessor"); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", config, err, want)
		}
	}
}

// Whatever a configuration and an image are, the image becomes whole blocks of patches within reason.
func FuzzQwen2VLGrid(f *testing.F) {
	f.Add([]byte(`{"min_pixels": 1, "max_pixels": 1}`), 1000, 5)
	f.Add([]byte(`{"patch_size": 64, "merge_size": 8}`), 1, 200)
	f.Fuzz(func(t *testing.T, config []byte, w, h int) {
		q, err := ParsePreprocessor(config, "Qwen2VLImageProcessor")
		p, ok := q.(Qwen2VL)
		if err != nil || !ok || w < 1 || h < 1 || int64(max(w, h)) > 200*int64(min(w, h)) || max(w, h) > 1<<20 {
			return
		}
		g, block := p.Grid(w, h), p.PatchSize*p.MergeSize
		if g.Width < block || g.Height < block || g.Width%block != 0 || g.Height%block != 0 || g.Tiles() != 1 {
			t.Errorf("%d×%d becomes %+v", w, h, g)
		}
		// Rounding up adds less than a block to either side, and the longer side is at most √200 times that of a square.
		rounding := 2*float64(block)*math.Sqrt(maxAspect*float64(p.MaxPixels)) + float64(block*block)
		if float64(g.Width*g.Height) > float64(p.MaxPixels)+rounding {
			t.Errorf("%d×%d becomes %+v", w, h, g)
		}
	})
}
