package vision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// LlavaNext is the preprocessing of LLaVA-NeXT and Granite Vision: that of AnyResTiles, but that an image that is not
// split is stretched to one tile.
// Reference: transformers 5.12 LlavaNextImageProcessorPil, which it gives bit for bit from equal RGB.
type LlavaNext struct{ AnyResTiles }

func parseLlavaNext(raw []byte, _ Patches) (Preprocessor, error) {
	c := struct {
		DoResize  *bool      `json:"do_resize"`
		Size      *pixelSize `json:"size"`
		Crop      *pixelSize `json:"crop_size"`
		Resample  *int       `json:"resample"`
		Pinpoints [][2]int   `json:"image_grid_pinpoints"`
		normalizationConfig
	}{
		Size: &pixelSize{Shortest: 224}, Crop: &pixelSize{number: 224},
		Pinpoints: [][2]int{{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}},
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	if !or(c.DoResize, true) {
		return nil, errors.New("do_resize is false, supported is true: images come in any size")
	}
	if c.Size == nil || c.Crop == nil || c.Pinpoints == nil {
		return nil, errors.New("size, crop_size or image_grid_pinpoints is null")
	}
	if c.Size.Shortest > 0 {
		c.Size = &pixelSize{number: c.Size.Shortest}
	}
	p := LlavaNext{AnyResTiles{Resample: or(c.Resample, 3)}}
	var err error
	if p.Size, err = c.Size.square("size"); err != nil {
		return nil, err
	}
	// The reference cuts tiles of crop_size and resizes each to size.
	tile, err := c.Crop.square("crop_size")
	if err != nil {
		return nil, err
	}
	if tile != p.Size {
		return nil, fmt.Errorf("crop_size is %d, supported is that of size, %d", tile, p.Size)
	}
	if err := checkResample(p.Resample); err != nil {
		return nil, err
	}
	if p.Normalization, err = c.normalizationConfig.parse(clipMean, clipStd); err != nil {
		return nil, err
	}
	p.Pinpoints, err = ParsePinpoints(c.Pinpoints, p.Size)
	return p, err
}

// stretched is the preprocessing of an image that is not split.
func (p LlavaNext) stretched() SingleTile {
	return SingleTile{Size: p.Size, Resample: p.Resample, Normalization: p.Normalization}
}

// Measure implements Preprocessor.
func (p LlavaNext) Measure(w, h int, split bool) (Measured, error) {
	if !split {
		return p.stretched().Measure(w, h, split)
	}
	return p.AnyResTiles.Measure(w, h, split)
}

// Prepare implements Preprocessor. The tile of the whole comes first.
func (p LlavaNext) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	if !split {
		return p.stretched().Prepare(ctx, data, l, split)
	}
	return prepare(ctx, p, data, l, split, p.recipe)
}

// Smaller implements Shrinker: the resolutions of most tiles are left out.
func (p LlavaNext) Smaller() (Preprocessor, bool) {
	list, ok := p.Pinpoints.fewer()
	p.Pinpoints = list
	return p, ok
}
