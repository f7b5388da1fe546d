package vision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/imaging"
)

// AnyResTiles is the preprocessing of LLaVA-OneVision, with the values of preprocessor_config.json: one tile of the
// whole image, then the tiles of it at that resolution of a list which keeps most of it.
// Reference: transformers 5.12 LlavaOnevisionImageProcessorPil, which it gives bit for bit from equal RGB.
type AnyResTiles struct {
	// Size is the side of a tile in pixels.
	Size int
	// Pinpoints (image_grid_pinpoints) are the resolutions to choose from.
	Pinpoints Pinpoints
	// Resample is the filter of every resize: 1 Lanczos, 2 bilinear, 3 bicubic.
	Resample int
	Normalization
}

func parseAnyResTiles(raw []byte, _ Patches) (Preprocessor, error) {
	c := struct {
		DoResize  *bool      `json:"do_resize"`
		Size      *pixelSize `json:"size"`
		Resample  *int       `json:"resample"`
		Pinpoints [][2]int   `json:"image_grid_pinpoints"`
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
	p := AnyResTiles{Resample: or(c.Resample, 3)}
	var err error
	if p.Size, err = c.Size.square("size"); err != nil {
		return nil, err
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

// Pinpoints are resolutions to bring an image to: rows and columns of tiles.
type Pinpoints [][2]int

// maxPinpoints is the most resolutions of a configuration.
const maxPinpoints = 256

// ParsePinpoints reads image_grid_pinpoints, heights and widths in pixels, for tiles of the given side. None stand for
// the default of the Hugging Face class: up to six tiles a side.
func ParsePinpoints(pixels [][2]int, side int) (Pinpoints, error) {
	var list Pinpoints
	if pixels != nil && len(pixels) == 0 {
		return nil, errors.New("image_grid_pinpoints is empty, want at least one resolution")
	}
	if pixels == nil {
		for i := range 36 {
			list = append(list, [2]int{i/6 + 1, i%6 + 1})
		}
	}
	if len(pixels) > maxPinpoints {
		return nil, fmt.Errorf("image_grid_pinpoints has %d resolutions, want at most %d", len(pixels), maxPinpoints)
	}
	for _, r := range pixels {
		if r[0] < side || r[1] < side || r[0]%side != 0 || r[1]%side != 0 || r[0] > maxSide || r[1] > maxSide {
			return nil, fmt.Errorf("image_grid_pinpoints has %v, want multiples of the tile's %d up to %d", r, side, maxSide)
		}
		list = append(list, [2]int{r[0] / side, r[1] / side})
	}
	return list, nil
}

// Grid is the resolution that keeps most pixels of a w×h image and, among those, wastes fewest.
// Reference: transformers select_best_resolution.
func (list Pinpoints) Grid(w, h, side int) Grid {
	g := Grid{Width: w, Height: h}
	most, least := 0, 0
	for _, r := range list {
		height, width := r[0]*side, r[1]*side
		scale := min(float64(width)/float64(w), float64(height)/float64(h))
		kept := min(int(float64(w)*scale)*int(float64(h)*scale), w*h)
		wasted := width*height - kept
		if g.Rows == 0 || kept > most || kept == most && wasted < least {
			g.Rows, g.Cols, most, least = r[0], r[1], kept, wasted
		}
	}
	return g
}

// Side is the side of a tile in pixels.
func (p AnyResTiles) Side() int { return p.Size }

// Grid is that of the best of Pinpoints.
func (p AnyResTiles) Grid(w, h int) Grid { return p.Pinpoints.Grid(w, h, p.Size) }

// single is the preprocessing of an image that is not split: one tile, padded to a square, as the reference makes each
// of several images in a prompt.
func (p AnyResTiles) single() SingleTile {
	return SingleTile{Size: p.Size, Pad: true, Resample: p.Resample, Normalization: p.Normalization}
}

// Measure implements Preprocessor.
func (p AnyResTiles) Measure(w, h int, split bool) (Measured, error) {
	if !split {
		return p.single().Measure(w, h, split)
	}
	g, s := p.Grid(w, h), p.Size
	fw, fh := p.fit(g)
	return Measured{Grid: g, ScaledWidth: fw, ScaledHeight: fh, Bytes: imaging.Sum(
		tileBytes(g.Tiles(), s), floatBytes(s, s, g.Tiles()), imaging.ResizeBytes(w, h, s, s),
		imaging.ResizeBytes(w, h, fw, fh), tileBytes(g.Rows*g.Cols, s),
	)}, nil
}

// Prepare implements Preprocessor. The tile of the whole comes first.
func (p AnyResTiles) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	if !split {
		return p.single().Prepare(ctx, data, l, split)
	}
	return prepare(ctx, p, data, l, split, p.recipe)
}

func (p AnyResTiles) recipe(iw, ih int) recipe {
	s, f := p.Size, imaging.Filters[p.Resample]
	w, h := p.fit(p.Grid(iw, ih))
	return recipe{[]imaging.Scaling{f.To(iw, ih, s, s), f.To(iw, ih, w, h)},
		func(_ context.Context, scaled []*imaging.RGB, img *Image) error {
			img.Size, img.Pixels = s, make([]uint8, img.Grid.Tiles()*3*s*s)
			tiles := cut(img.Pixels, scaled[0], 0, 0, s)
			imaging.Release(scaled[0])
			canvas := imaging.NewRGB(img.Grid.Cols*s, img.Grid.Rows*s)
			place(canvas, scaled[1], (canvas.W-w)/2, (canvas.H-h)/2)
			imaging.Release(scaled[1])
			for r := range img.Grid.Rows {
				for c := range img.Grid.Cols {
					tiles = cut(tiles, canvas, c*s, r*s, s)
				}
			}
			imaging.Release(canvas)
			return nil
		}}
}

// fit is the size of the image within its tiles, its aspect kept.
// Reference: transformers get_patch_output_size.
func (p AnyResTiles) fit(g Grid) (w, h int) {
	w, h = g.Cols*p.Size, g.Rows*p.Size
	scaleW, scaleH := float64(w)/float64(g.Width), float64(h)/float64(g.Height)
	if scaleW < scaleH {
		return w, min(int(math.Ceil(float64(g.Height)*scaleW)), h)
	}
	return min(int(math.Ceil(float64(g.Width)*scaleH)), w), h
}
