package vision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/imaging"
)

// Lfm2VL is the preprocessing of LFM2-VL: a large image becomes a grid of tiles and, after them, the whole at a size of
// its own; any other the whole alone. All are cut into patches.
// Reference: transformers 5.12 Lfm2VlImageProcessor, which torchvision alone resizes for. Sizes, grids and counts are
// its; pixels that need no resize bit for bit; others differ by one grey level in some places, torchvision's weights
// having fewer bits than Pillow's.
type Lfm2VL struct {
	// TileSize is the side of a tile in pixels.
	TileSize int
	// MinTiles and MaxTiles bound the tiles of a grid; both are 1 where images are not cut.
	MinTiles, MaxTiles int
	// MinTokens and MaxTokens bound the blocks of the whole.
	MinTokens, MaxTokens int
	// PatchSize (encoder_patch_size) is the side of a patch in pixels, MergeSize (downsample_factor) that of the block of
	// patches that becomes one token.
	PatchSize, MergeSize int
	// Tolerance (max_pixels_tolerance) is how many times MaxTokens an image may have before it is cut.
	Tolerance float64
	// Resample is the filter of every resize: 1 Lanczos, 2 bilinear, 3 bicubic.
	Resample int
	Normalization
}

func parseLfm2VL(raw []byte, tower Patches) (Preprocessor, error) {
	c := struct {
		Split     *bool    `json:"do_image_splitting"`
		MinTiles  *int     `json:"min_tiles"`
		MaxTiles  *int     `json:"max_tiles"`
		Thumbnail *bool    `json:"use_thumbnail"`
		MinTokens *int     `json:"min_image_tokens"`
		MaxTokens *int     `json:"max_image_tokens"`
		Patch     *int     `json:"encoder_patch_size"`
		Merge     *int     `json:"downsample_factor"`
		Tile      *int     `json:"tile_size"`
		Tolerance *float64 `json:"max_pixels_tolerance"`
		Resample  *int     `json:"resample"`
		normalizationConfig
	}{}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	p := Lfm2VL{
		TileSize: or(c.Tile, 512), MinTiles: or(c.MinTiles, 2), MaxTiles: or(c.MaxTiles, 10),
		MinTokens: or(c.MinTokens, 64), MaxTokens: or(c.MaxTokens, 256), PatchSize: 16, MergeSize: 2,
		Tolerance: or(c.Tolerance, 2), Resample: or(c.Resample, 2),
	}
	if !or(c.Split, true) {
		p.MinTiles, p.MaxTiles = 1, 1
	}
	for _, n := range []patchSetting{
		{"encoder_patch_size", c.Patch, tower.Patch, 64, &p.PatchSize},
		{"downsample_factor", c.Merge, tower.Merge, 8, &p.MergeSize},
	} {
		if err := n.settle(); err != nil {
			return nil, err
		}
	}
	if p.MaxTiles > 1 && !or(c.Thumbnail, true) {
		return nil, errors.New("use_thumbnail is false, supported is true where images are cut")
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	var err error
	p.Normalization, err = c.normalizationConfig.parse(half, half)
	return p, err
}

// check refuses sizes that are out of range.
func (p Lfm2VL) check() error {
	block := p.PatchSize * p.MergeSize
	switch {
	case p.TileSize < block || p.TileSize > maxSide || p.TileSize%block != 0:
		return fmt.Errorf("tile_size is %d, want a multiple of %d up to %d", p.TileSize, block, maxSide)
	case p.MaxTiles != 1 && p.MinTiles < 2 || p.MinTiles < 1 || p.MinTiles > p.MaxTiles || p.MaxTiles > maxGrid ||
		p.MaxTiles*p.TileSize*p.TileSize > maxArea:
		return fmt.Errorf("min_tiles is %d and max_tiles %d, want 1 and 1, or a range within 2 to %d",
			p.MinTiles, p.MaxTiles, min(maxGrid, maxArea/(p.TileSize*p.TileSize)))
	case p.MinTokens < 1 || p.MinTokens > p.MaxTokens || p.MaxTokens > maxArea/(block*block):
		return fmt.Errorf("min_image_tokens is %d and max_image_tokens %d, want a range within 1 to %d",
			p.MinTokens, p.MaxTokens, maxArea/(block*block))
	case !(p.Tolerance > 0 && p.Tolerance < 1e6):
		return fmt.Errorf("max_pixels_tolerance is %g, want more than 0 and less than 1e6", p.Tolerance)
	}
	return checkResample(p.Resample)
}

// Side is the side of a patch in pixels.
func (p Lfm2VL) Side() int { return p.PatchSize }

// Patches is how tiles and the whole are cut.
func (p Lfm2VL) Patches() Patches { return Patches{p.PatchSize, p.MergeSize, 1} }

// large tells whether an image is cut.
func (p Lfm2VL) large(w, h int) bool {
	block := float64(p.PatchSize * p.MergeSize)
	side := func(n int) float64 {
		return max(math.RoundToEven(float64(n)/block)*block, float64(p.PatchSize))
	}
	return p.MaxTiles > 1 && side(w)*side(h) > float64(p.MaxTokens)*block*block*p.Tolerance
}

// Grid gives the tiles of an image, if it is cut, and the size that the whole is brought to.
func (p Lfm2VL) Grid(w, h int) Grid {
	block := p.PatchSize * p.MergeSize
	g := area{block: block, frames: 1, least: p.MinTokens * block * block, most: p.MaxTokens * block * block,
		never0: true}.resize(w, h)
	if p.large(w, h) {
		g.Rows, g.Cols = nearestGrid(w, h, p.TileSize, p.MinTiles, p.MaxTiles)
	}
	return g
}

// whole is the preprocessing of an image that is not cut.
func (p Lfm2VL) whole() Lfm2VL {
	p.MinTiles, p.MaxTiles = 1, 1
	return p
}

// Measure implements Preprocessor. It refuses strips, whose patches no setting bounds.
func (p Lfm2VL) Measure(w, h int, split bool) (Measured, error) {
	if err := checkAspect(w, h); err != nil {
		return Measured{}, err
	}
	if !split {
		p = p.whole()
	}
	g, s := p.Grid(w, h), p.TileSize
	m := Measured{Grid: g, ScaledWidth: g.Width, ScaledHeight: g.Height}
	m.Bytes = imaging.Sum(imaging.Bytes(3, g.Width, g.Height), floatBytes(g.Width, g.Height, 1),
		imaging.ResizeBytes(w, h, g.Width, g.Height))
	if g.Rows > 0 {
		m.ScaledWidth, m.ScaledHeight = g.Cols*s, g.Rows*s
		m.Bytes = imaging.Sum(m.Bytes, tileBytes(g.Rows*g.Cols, s), floatBytes(s, s, g.Rows*g.Cols),
			imaging.ResizeBytes(w, h, g.Cols*s, g.Rows*s))
	}
	return m, nil
}

// Prepare implements Preprocessor. The whole comes last.
func (p Lfm2VL) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	if !split {
		p = p.whole()
	}
	return prepare(ctx, p, data, l, split, p.recipe)
}

func (p Lfm2VL) recipe(w, h int) recipe {
	s, f, g := p.TileSize, imaging.Filters[p.Resample], p.Grid(w, h)
	scalings := []imaging.Scaling{f.To(w, h, g.Width, g.Height)}
	if g.Rows > 0 {
		scalings = append(scalings, f.To(w, h, g.Cols*s, g.Rows*s))
	}
	return recipe{scalings, func(_ context.Context, scaled []*imaging.RGB, img *Image) error {
		img.Size, img.Frames, img.Pixels = p.PatchSize, 1, make([]uint8, 3*(g.Rows*g.Cols*s*s+g.Width*g.Height))
		patches, size := img.Pixels, p.Patches()
		for i := range g.Rows * g.Cols {
			patches = size.cut(patches, scaled[1], imaging.Canvas{W: s, H: s, X: i % g.Cols * s, Y: i / g.Cols * s})
		}
		size.cut(patches, scaled[0], imaging.Canvas{W: g.Width, H: g.Height})
		for _, rgb := range scaled {
			imaging.Release(rgb)
		}
		return nil
	}}
}

// Normalize maps the bytes of any number of patches, planar RGB, to pixel_values, whose channels are interleaved.
func (p Lfm2VL) Normalize(dst []float32, src []uint8) {
	n := p.PatchSize * p.PatchSize
	for c := range 3 {
		table := p.fused(c)
		for at := 0; at < len(src); at += 3 * n {
			out := dst[at:][:3*n]
			for i, b := range src[at+c*n:][:n] {
				out[3*i+c] = table[b]
			}
		}
	}
}

// fused gives the pixel values of channel c by byte, as torchvision's backend rounds them: mean and deviation are
// brought to the range of bytes instead of bytes to theirs.
func (n Normalization) fused(c int) [256]float32 {
	if !n.DoRescale || !n.DoNormalize {
		return n.table(c)
	}
	scale := float32(1 / n.Rescale)
	n.DoRescale, n.Mean[c], n.Std[c] = false, n.Mean[c]*scale, n.Std[c]*scale
	return n.table(c)
}

// Smaller implements Shrinker: the largest grid has one tile less; without tiles, the whole has an eighth fewer tokens.
func (p Lfm2VL) Smaller() (Preprocessor, bool) {
	switch {
	case p.MaxTiles > 2:
		p.MaxTiles--
		p.MinTiles = min(p.MinTiles, p.MaxTiles)
	case p.MaxTiles == 2:
		return p.whole(), true
	default:
		p.MaxTokens -= max(p.MaxTokens/8, 1)
		p.MinTokens = min(p.MinTokens, p.MaxTokens)
	}
	return p, p.MaxTokens > 0
}
