package vision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Qwen2VL is the preprocessing of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, with the values of preprocessor_config.json: the
// image is brought to whole blocks of patches, its aspect kept as far as they allow, and cut into patches.
// Reference: transformers 5.12 Qwen2VLImageProcessorPil, which it gives bit for bit from equal RGB.
type Qwen2VL struct {
	// MinPixels and MaxPixels (size.shortest_edge and size.longest_edge, or min_pixels and max_pixels) bound the area
	// that an image is brought to.
	MinPixels, MaxPixels int
	// PatchSize is the side of a patch in pixels.
	PatchSize int
	// MergeSize is the side, in patches, of the block that becomes one token.
	MergeSize int
	// TemporalPatchSize is the number of frames that a patch spans: an image is a film that stands still.
	TemporalPatchSize int
	// Resample is the filter of the resize: 1 Lanczos, 2 bilinear, 3 bicubic.
	Resample int
	Normalization
}

func parseQwen2VL(raw []byte, tower Patches) (Preprocessor, error) {
	return Qwen2VL{
		MinPixels: 56 * 56, MaxPixels: 28 * 28 * 1280, PatchSize: 14, MergeSize: 2, TemporalPatchSize: 2, Resample: 3,
	}.parse(raw, tower, 1)
}

// parse reads a file over the defaults of its class. frames is how many frames the limits of a still are of.
func (p Qwen2VL) parse(raw []byte, tower Patches, frames int) (Qwen2VL, error) {
	type area struct {
		Least *int `json:"shortest_edge"`
		Most  *int `json:"longest_edge"`
	}
	c := struct {
		DoResize  *bool `json:"do_resize"`
		Size      *area `json:"size"`
		MinPixels *int  `json:"min_pixels"`
		MaxPixels *int  `json:"max_pixels"`
		Patch     *int  `json:"patch_size"`
		Merge     *int  `json:"merge_size"`
		Temporal  *int  `json:"temporal_patch_size"`
		Resample  *int  `json:"resample"`
		normalizationConfig
	}{}
	if err := json.Unmarshal(raw, &c); err != nil {
		return p, err
	}
	if !or(c.DoResize, true) {
		return p, errors.New("do_resize is false, supported is true: images come in any size")
	}
	if c.Size != nil {
		least, most := c.Size.Least, c.Size.Most
		if (least == nil && c.MinPixels == nil) || (most == nil && c.MaxPixels == nil) {
			return p, errors.New("size has no shortest_edge and longest_edge")
		}
		p.MinPixels, p.MaxPixels = or(least, 0), or(most, 0)
	}
	p.MinPixels, p.MaxPixels = or(c.MinPixels, p.MinPixels), or(c.MaxPixels, p.MaxPixels)
	if p.MinPixels < 1 || p.MinPixels > p.MaxPixels || p.MaxPixels > frames*maxArea {
		return p, fmt.Errorf("images are brought to %d to %d pixels, want a range within 1 to %d",
			p.MinPixels, p.MaxPixels, frames*maxArea)
	}
	for _, n := range []patchSetting{
		{"patch_size", c.Patch, tower.Patch, 64, &p.PatchSize},
		{"merge_size", c.Merge, tower.Merge, 8, &p.MergeSize},
		{"temporal_patch_size", c.Temporal, tower.Frames, 8, &p.TemporalPatchSize},
	} {
		if err := n.settle(); err != nil {
			return p, err
		}
	}
	p.Resample = or(c.Resample, p.Resample)
	if err := checkResample(p.Resample); err != nil {
		return p, err
	}
	var err error
	p.Normalization, err = c.normalizationConfig.parse(clipMean, clipStd)
	return p, err
}

// Side is the side of a patch in pixels.
func (p Qwen2VL) Side() int { return p.PatchSize }

// Patches is how the image is cut.
func (p Qwen2VL) Patches() Patches { return Patches{p.PatchSize, p.MergeSize, p.TemporalPatchSize} }

// Grid gives the size that an image is brought to.
func (p Qwen2VL) Grid(w, h int) Grid {
	return p.area(1).resize(w, h)
}

// area is what images are brought to, where the limits hold for so many frames together.
func (p Qwen2VL) area(frames int) area {
	return area{block: p.PatchSize * p.MergeSize, frames: frames, least: p.MinPixels, most: p.MaxPixels}
}

// THW is image_grid_thw of an image: patches in time, down and across.
func (p Qwen2VL) THW(g Grid) (t, h, w int) { return 1, g.Height / p.PatchSize, g.Width / p.PatchSize }

// Measure implements Preprocessor.
func (p Qwen2VL) Measure(w, h int, _ bool) (Measured, error) {
	return measurePatches(p, w, h, [2]int{w, h})
}

// Prepare implements Preprocessor. split changes nothing: there are no tiles.
func (p Qwen2VL) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	return prepare(ctx, p, data, l, split, patchRecipe(p, p.Resample))
}

// Normalize maps the bytes of any number of patches to pixel_values, TemporalPatchSize times as many.
func (p Qwen2VL) Normalize(dst []float32, src []uint8) {
	p.normalizePatches(dst, src, p.PatchSize*p.PatchSize, p.TemporalPatchSize)
}
