package vision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/imaging"
)

// Pixtral is the preprocessing of Pixtral, Mistral 3 and LightOnOCR: an image that is larger than MaxWidth×MaxHeight is
// scaled down, its aspect kept, and both sides are rounded up to whole blocks of patches.
// Reference: transformers 5.12 PixtralImageProcessorPil as PixtralProcessor calls it, which it gives bit for bit from
// equal RGB.
type Pixtral struct {
	MaxWidth, MaxHeight int
	// PatchSize is the side of a patch in pixels, MergeSize that of the block of patches that becomes one token.
	PatchSize, MergeSize int
	// Resample is the filter of the resize: 1 Lanczos, 2 bilinear, 3 bicubic.
	Resample int
	Normalization
}

// parsePixtral reads a file whose patch_size is that of a patch or that of a block: the processor of the reference
// hands its image processor the side of a block. Where the tower is not known, a patch is a block.
func parsePixtral(raw []byte, tower Patches) (Preprocessor, error) {
	type edges struct {
		Longest int `json:"longest_edge"`
		Height  int `json:"height"`
		Width   int `json:"width"`
	}
	c := struct {
		DoResize *bool      `json:"do_resize"`
		DoCrop   *bool      `json:"do_center_crop"`
		Size     *edges     `json:"size"`
		Patch    *pixelSize `json:"patch_size"`
		Resample *int       `json:"resample"`
		normalizationConfig
	}{}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	if !or(c.DoResize, true) || or(c.DoCrop, false) {
		return nil, errors.New("do_resize is false or do_center_crop true, supported are true and false")
	}
	p := Pixtral{PatchSize: 16, MergeSize: 1, Resample: or(c.Resample, 3)}
	switch s := or(c.Size, edges{Longest: 1024}); {
	case s.Longest != 0:
		p.MaxWidth, p.MaxHeight = s.Longest, s.Longest
	default:
		p.MaxWidth, p.MaxHeight = s.Width, s.Height
	}
	if p.MaxWidth < 1 || p.MaxHeight < 1 || p.MaxWidth > maxSide || p.MaxHeight > maxSide {
		return nil, fmt.Errorf("size is %d×%d pixels, want longest_edge, or height and width, from 1 to %d",
			p.MaxWidth, p.MaxHeight, maxSide)
	}
	if err := p.patches(c.Patch, tower); err != nil {
		return nil, err
	}
	if err := checkResample(p.Resample); err != nil {
		return nil, err
	}
	var err error
	p.Normalization, err = c.normalizationConfig.parse(clipMean, clipStd)
	return p, err
}

// patches takes the sizes of the tower, or else of the file.
func (p *Pixtral) patches(file *pixelSize, tower Patches) error {
	if file != nil {
		side, err := file.square("patch_size")
		if err != nil {
			return err
		}
		if side > 64*8 {
			return fmt.Errorf("patch_size is %d, want 1 to %d", side, 64*8)
		}
		p.PatchSize = side
	}
	if tower.Patch == 0 {
		return nil
	}
	block := tower.Patch * tower.Merge
	if file != nil && p.PatchSize != tower.Patch && p.PatchSize != block {
		return fmt.Errorf("patch_size is %d, config.json's vision tower has patches of %d pixels in blocks of %d",
			p.PatchSize, tower.Patch, block)
	}
	p.PatchSize, p.MergeSize = tower.Patch, tower.Merge
	return nil
}

// Side is the side of a patch in pixels.
func (p Pixtral) Side() int { return p.PatchSize }

// Patches is how the image is cut.
func (p Pixtral) Patches() Patches { return Patches{p.PatchSize, p.MergeSize, 1} }

// within is a size scaled down; a side may become 0.
// Reference: transformers get_resize_output_image_size.
func (p Pixtral) within(w, h int) (int, int) {
	ratio := max(float64(h)/float64(p.MaxHeight), float64(w)/float64(p.MaxWidth))
	if ratio > 1 {
		w, h = int(float64(w)/ratio), int(float64(h)/ratio)
	}
	return w, h
}

// Grid gives the size that an image is brought to.
func (p Pixtral) Grid(w, h int) Grid {
	block := p.PatchSize * p.MergeSize
	up := func(n int) int { return (max(n, 1) + block - 1) / block * block }
	w, h = p.within(w, h)
	return Grid{Width: up(w), Height: up(h)}
}

// Measure implements Preprocessor. It refuses an image of which scaling leaves nothing, as the reference does.
func (p Pixtral) Measure(w, h int, _ bool) (Measured, error) {
	if sw, sh := p.within(w, h); min(sw, sh) < 1 {
		return Measured{}, fmt.Errorf("%w: %d×%d pixels become %d×%d within %d×%d, want at least one pixel either way",
			ErrImage, w, h, sw, sh, p.MaxWidth, p.MaxHeight)
	}
	g := p.Grid(w, h)
	return Measured{Grid: g, ScaledWidth: g.Width, ScaledHeight: g.Height, Bytes: imaging.Sum(
		imaging.Bytes(3, g.Width, g.Height), floatBytes(g.Width, g.Height, 1), imaging.ResizeBytes(w, h, g.Width, g.Height),
	)}, nil
}

// Prepare implements Preprocessor.
func (p Pixtral) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	return prepare(ctx, p, data, l, split, patchRecipe(p, p.Resample))
}

// Normalize maps the bytes of any number of patches to pixel_values.
func (p Pixtral) Normalize(dst []float32, src []uint8) {
	p.normalizePatches(dst, src, p.PatchSize*p.PatchSize, 1)
}

// Smaller implements Shrinker: both sides are an eighth less.
func (p Pixtral) Smaller() (Preprocessor, bool) {
	block := p.PatchSize * p.MergeSize
	less := func(n int) int { return n - max(n/8, block) }
	p.MaxWidth, p.MaxHeight = less(p.MaxWidth), less(p.MaxHeight)
	return p, min(p.MaxWidth, p.MaxHeight) >= block
}
