package vision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/imaging"
)

// Qwen2VL is the preprocessing of Qwen2-VL and Qwen2.5-VL, with the values of preprocessor_config.json: the image is
// brought to whole blocks of patches, its aspect kept as far as they allow, and cut into patches.
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

// maxAspect is how many times longer than the other a side may be.
const maxAspect = 200

func parseQwen2VL(raw []byte) (Preprocessor, error) {
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
		return nil, err
	}
	if !or(c.DoResize, true) {
		return nil, errors.New("do_resize is false, supported is true: images come in any size")
	}
	p := Qwen2VL{
		MinPixels: 56 * 56, MaxPixels: 28 * 28 * 1280,
		PatchSize: or(c.Patch, 14), MergeSize: or(c.Merge, 2), TemporalPatchSize: or(c.Temporal,
			2), Resample: or(c.Resample, 3),
	}
	if c.Size != nil {
		least, most := c.Size.Least, c.Size.Most
		if (least == nil && c.MinPixels == nil) || (most == nil && c.MaxPixels == nil) {
			return nil, errors.New("size has no shortest_edge and longest_edge")
		}
		p.MinPixels, p.MaxPixels = or(least, 0), or(most, 0)
	}
	p.MinPixels, p.MaxPixels = or(c.MinPixels, p.MinPixels), or(c.MaxPixels, p.MaxPixels)
	for _, n := range []struct {
		name        string
		value, most int
	}{{"patch_size", p.PatchSize, 64}, {"merge_size", p.MergeSize, 8}, {"temporal_patch_size", p.TemporalPatchSize, 8}} {
		if n.value < 1 || n.value > n.most {
			return nil, fmt.Errorf("%s is %d, want 1 to %d", n.name, n.value, n.most)
		}
	}
	if p.MinPixels < 1 || p.MinPixels > p.MaxPixels || p.MaxPixels > maxSide*maxSide {
		return nil, fmt.Errorf("images are brought to %d to %d pixels, want a range within 1 to %d", p.MinPixels, p.MaxPixels, maxSide*maxSide)
	}
	if err := checkResample(p.Resample); err != nil {
		return nil, err
	}
	var err error
	p.Normalization, err = c.normalizationConfig.parse(clipMean, clipStd)
	return p, err
}

// Side is the side of a patch in pixels.
func (p Qwen2VL) Side() int { return p.PatchSize }

// Grid gives the size that an image is brought to.
// Reference: transformers smart_resize, whose round goes to the even number between two.
func (p Qwen2VL) Grid(w, h int) Grid {
	block := float64(p.PatchSize * p.MergeSize)
	width, height := float64(w), float64(h)
	round := func(f func(float64) float64, scale float64) (int, int) {
		return int(f(width*scale/block) * block), int(f(height*scale/block) * block)
	}
	g := Grid{}
	g.Width, g.Height = round(math.RoundToEven, 1)
	switch area := g.Width * g.Height; {
	case area > p.MaxPixels:
		shrink := math.Sqrt(width * height / float64(p.MaxPixels))
		g.Width = max(int(math.Floor(width/shrink/block)*block), int(block))
		g.Height = max(int(math.Floor(height/shrink/block)*block), int(block))
	case area < p.MinPixels:
		g.Width, g.Height = round(math.Ceil, math.Sqrt(float64(p.MinPixels)/(width*height)))
	}
	return g
}

// THW is image_grid_thw of an image: patches in time, down and across.
func (p Qwen2VL) THW(g Grid) (t, h, w int) { return 1, g.Height / p.PatchSize, g.Width / p.PatchSize }

// Measure implements Preprocessor.
func (p Qwen2VL) Measure(w, h int, _ bool) (Measured, error) {
	if max(w, h) > maxAspect*min(w, h) {
		return Measured{}, fmt.Errorf("%w: %d×%d pixels, one side may be at most %d times the other", ErrImage, w, h, maxAspect)
	}
	g := p.Grid(w, h)
	return Measured{Grid: g, ScaledWidth: g.Width, ScaledHeight: g.Height, Bytes: imaging.Sum(
		imaging.Bytes(3, g.Width, g.Height), floatBytes(g.Width, g.Height, p.TemporalPatchSize),
		imaging.ResizeBytes(w, h, g.Width, g.Height),
	)}, nil
}

// Prepare implements Preprocessor. split changes nothing: there are no tiles.
func (p Qwen2VL) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	return prepare(ctx, p, data, l, split, p.recipe)
}

func (p Qwen2VL) recipe(w, h int) recipe {
	g := p.Grid(w, h)
	whole := imaging.Filters[p.Resample].To(w, h, g.Width, g.Height)
	return recipe{[]imaging.Scaling{whole}, func(_ context.Context, scaled []*imaging.RGB, img *Image) error {
		rgb := scaled[0]
		img.Size, img.Pixels = p.PatchSize, make([]uint8, 3*img.Grid.Width*img.Grid.Height)
		s, block := p.PatchSize, p.PatchSize*p.MergeSize
		patches := img.Pixels
		for y := 0; y < rgb.H; y += block {
			for x := 0; x < rgb.W; x += block {
				for i := range p.MergeSize * p.MergeSize {
					patches = cut(patches, rgb, x+i%p.MergeSize*s, y+i/p.MergeSize*s, s)
				}
			}
		}
		imaging.Release(rgb)
		return nil
	}}
}

// Normalize maps the bytes of any number of patches to pixel_values, TemporalPatchSize times as many.
func (p Qwen2VL) Normalize(dst []float32, src []uint8) {
	area := p.PatchSize * p.PatchSize
	for c := range 3 {
		table := p.table(c)
		for at := c * area; at < len(src); at += 3 * area {
			out := dst[at*p.TemporalPatchSize:][:area*p.TemporalPatchSize]
			for i, b := range src[at:][:area] {
				out[i] = table[b]
			}
			for t := 1; t < p.TemporalPatchSize; t++ {
				copy(out[t*area:], out[:area])
			}
		}
	}
}
