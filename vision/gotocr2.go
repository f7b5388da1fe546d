package vision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/imaging"
)

// GotOcr2 is the preprocessing of InternVL: an image is stretched over the grid of tiles whose aspect is nearest to its
// own, and one tile of the whole comes after them.
// Reference: transformers 5.12 GotOcr2ImageProcessorPil as InternVLProcessor calls it, with crop_to_patches whatever
// the file says, which it gives bit for bit from equal RGB.
type GotOcr2 struct {
	// Size is the side of a tile in pixels.
	Size int
	// MinPatches and MaxPatches bound the tiles of the grid.
	MinPatches, MaxPatches int
	// Resample is the filter of every resize: 1 Lanczos, 2 bilinear, 3 bicubic.
	Resample int
	Normalization
}

// maxGrid is the most tiles of a grid that a configuration may ask for.
const maxGrid = 256

func parseGotOcr2(raw []byte, _ Patches) (Preprocessor, error) {
	c := struct {
		DoResize *bool      `json:"do_resize"`
		Size     *pixelSize `json:"size"`
		Min      *int       `json:"min_patches"`
		Max      *int       `json:"max_patches"`
		Resample *int       `json:"resample"`
		normalizationConfig
	}{Size: &pixelSize{number: 384}}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	if !or(c.DoResize, true) {
		return nil, errors.New("do_resize is false, supported is true: images come in any size")
	}
	if c.Size == nil || c.Size.Shortest > 0 {
		return nil, errors.New("size has no height and width")
	}
	p := GotOcr2{MinPatches: or(c.Min, 1), MaxPatches: or(c.Max, 12), Resample: or(c.Resample, 3)}
	if p.MinPatches < 1 || p.MinPatches > p.MaxPatches || p.MaxPatches > maxGrid {
		return nil, fmt.Errorf("min_patches is %d and max_patches %d, want a range within 1 to %d",
			p.MinPatches, p.MaxPatches, maxGrid)
	}
	var err error
	if p.Size, err = c.Size.square("size"); err != nil {
		return nil, err
	}
	if err := checkResample(p.Resample); err != nil {
		return nil, err
	}
	p.Normalization, err = c.normalizationConfig.parse(clipMean, clipStd)
	return p, err
}

// nearestGrid is the grid of least to most tiles whose aspect is nearest to that of a w×h image. Of several, a later
// one, of more tiles, counts where the image has more than half its pixels.
// Reference: transformers get_optimal_tiled_canvas.
func nearestGrid(w, h, side, least, most int) (rows, cols int) {
	aspect, area := float64(w)/float64(h), float64(w)*float64(h)
	rows, cols = 1, 1
	nearest := math.Inf(1)
	for n := least; n <= most; n++ {
		for c := 1; c <= n; c++ {
			if n%c != 0 {
				continue
			}
			far := math.Abs(aspect - float64(c)/float64(n/c))
			if far < nearest || far == nearest && area > 0.5*float64(side*side*n) {
				nearest, rows, cols = far, n/c, c
			}
		}
	}
	return rows, cols
}

// Side is the side of a tile in pixels.
func (p GotOcr2) Side() int { return p.Size }

// Grid implements Preprocessor. One tile is no grid.
func (p GotOcr2) Grid(w, h int) Grid {
	rows, cols := nearestGrid(w, h, p.Size, p.MinPatches, p.MaxPatches)
	if rows*cols <= 1 {
		return Grid{}
	}
	return Grid{Rows: rows, Cols: cols}
}

// whole is the preprocessing of an image that is not cut.
func (p GotOcr2) whole() GotOcr2 {
	p.MinPatches, p.MaxPatches = 1, 1
	return p
}

// Measure implements Preprocessor.
func (p GotOcr2) Measure(w, h int, split bool) (Measured, error) {
	if !split {
		p = p.whole()
	}
	g, s := p.Grid(w, h), p.Size
	m := Measured{Grid: g, ScaledWidth: s, ScaledHeight: s}
	m.Bytes = imaging.Sum(tileBytes(g.Tiles(), s), floatBytes(s, s, g.Tiles()), imaging.ResizeBytes(w, h, s, s))
	if g.Rows > 0 {
		m.ScaledWidth, m.ScaledHeight = g.Cols*s, g.Rows*s
		m.Bytes = imaging.Sum(m.Bytes, imaging.ResizeBytes(w, h, g.Cols*s, g.Rows*s))
	}
	return m, nil
}

// Prepare implements Preprocessor. The tile of the whole comes last.
func (p GotOcr2) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	if !split {
		p = p.whole()
	}
	return prepare(ctx, p, data, l, split, p.recipe)
}

func (p GotOcr2) recipe(w, h int) recipe {
	s, f, g := p.Size, imaging.Filters[p.Resample], p.Grid(w, h)
	scalings := []imaging.Scaling{f.To(w, h, s, s)}
	if g.Rows > 0 {
		scalings = append(scalings, f.To(w, h, g.Cols*s, g.Rows*s))
	}
	return recipe{scalings, func(_ context.Context, scaled []*imaging.RGB, img *Image) error {
		img.Size, img.Pixels = s, make([]uint8, g.Tiles()*3*s*s)
		tiles := img.Pixels
		for i := range g.Rows * g.Cols {
			tiles = cut(tiles, scaled[1], i%g.Cols*s, i/g.Cols*s, s)
		}
		cut(tiles, scaled[0], 0, 0, s)
		for _, rgb := range scaled {
			imaging.Release(rgb)
		}
		return nil
	}}
}

// Smaller implements Shrinker: the largest grid has one tile less.
func (p GotOcr2) Smaller() (Preprocessor, bool) {
	p.MaxPatches--
	p.MinPatches = min(p.MinPatches, p.MaxPatches)
	return p, p.MaxPatches > 0
}
