package vision

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/internal/imaging"
)

// Idefics3 is the preprocessing of the Idefics3 and SmolVLM families, with the values of preprocessor_config.json.
// Reference: transformers 5.12 Idefics3ImageProcessorPil, which it gives bit for bit from equal RGB.
type Idefics3 struct {
	// Size (size.longest_edge) is what the longer side is brought to first, up or down.
	Size int
	// MaxImageSize (max_image_size.longest_edge) is the side of a tile.
	MaxImageSize int
	// Split (do_image_splitting) cuts the image into tiles; without it, it is one tile, its aspect ignored.
	Split bool
	// Resample is the filter of every resize: 1 Lanczos, 2 bilinear, 3 bicubic.
	Resample int
	DoResize bool
	Normalization
}

// maxSide bounds both sizes of a configuration: transformers caps the first resize there.
const maxSide = 4096

// ParseIdefics3 reads a preprocessor_config.json. Missing values are those of the Hugging Face class; values that
// would need other processing are refused by name. The keys do_convert_rgb and do_pad change nothing here:
// images are always converted, and tiles are all of one size.
func ParseIdefics3(preprocessorConfigJSON []byte) (Idefics3, error) {
	type edge struct {
		LongestEdge *int `json:"longest_edge"`
	}
	c := struct {
		Type     string `json:"image_processor_type"`
		DoResize *bool  `json:"do_resize"`
		Size     *edge  `json:"size"`
		Resample *int   `json:"resample"`
		Split    *bool  `json:"do_image_splitting"`
		MaxSize  *edge  `json:"max_image_size"`
		normalizationConfig
	}{}
	fail := func(format string, args ...any) (Idefics3, error) {
		return Idefics3{}, fmt.Errorf(format, args...)
	}
	if err := json.Unmarshal(preprocessorConfigJSON, &c); err != nil {
		return fail("%w", err)
	}
	types := []string{"", "Idefics3ImageProcessor", "Idefics3ImageProcessorFast", "Idefics3ImageProcessorPil",
		"SmolVLMImageProcessor", "SmolVLMImageProcessorFast", "SmolVLMImageProcessorPil"}
	if !slices.Contains(types, c.Type) {
		return fail("image_processor_type is %q, want one of %q", c.Type, types[1:])
	}
	p := Idefics3{
		Size: 4 * 364, MaxImageSize: 364,
		Split: or(c.Split, true), Resample: or(c.Resample, 1), DoResize: or(c.DoResize, true),
	}
	for _, e := range []struct {
		name string
		from *edge
		to   *int
	}{{"size", c.Size, &p.Size}, {"max_image_size", c.MaxSize, &p.MaxImageSize}} {
		if e.from == nil {
			continue
		}
		if e.from.LongestEdge == nil {
			return fail("%s has no longest_edge, the only key that is supported", e.name)
		}
		if *e.to = *e.from.LongestEdge; *e.to < 1 || *e.to > maxSide {
			return fail("%s.longest_edge is %d, want 1 to %d", e.name, *e.to, maxSide)
		}
	}
	if err := checkResample(p.Resample); err != nil {
		return fail("%w", err)
	}
	var err error
	if p.Normalization, err = c.normalizationConfig.parse(half, half); err != nil {
		return fail("%w", err)
	}
	return p, nil
}

// first gives the size after the first resize.
func (p Idefics3) first(w, h int) (int, int) {
	if !p.DoResize {
		return w, h
	}
	aspect := float64(w) / float64(h)
	if w >= h {
		w = p.Size
		h = int(float64(w) / aspect)
		h += h % 2
	} else {
		h = p.Size
		w = int(float64(h) * aspect)
		w += w % 2
	}
	return max(w, 1), max(h, 1)
}

// second rounds a size up to whole tiles.
func (p Idefics3) second(w, h int) (int, int) {
	s := p.MaxImageSize
	up := func(n int) int { return (n + s - 1) / s * s }
	aspect := float64(w) / float64(h)
	if w >= h {
		w = up(w)
		return w, up(int(float64(w) / aspect))
	}
	h = up(h)
	return up(int(float64(h) * aspect)), h
}

// Side is the side of a tile in pixels.
func (p Idefics3) Side() int { return p.MaxImageSize }

// Grid tells how an image of w×h pixels, after orientation, will be cut. It decodes nothing.
func (p Idefics3) Grid(w, h int) Grid {
	if !p.Split {
		return Grid{}
	}
	return p.grid(p.second(p.first(w, h)))
}

// grid is that of an image which has been brought to whole tiles.
func (p Idefics3) grid(w, h int) Grid {
	if w <= p.MaxImageSize && h <= p.MaxImageSize {
		return Grid{}
	}
	return Grid{Rows: h / p.MaxImageSize, Cols: w / p.MaxImageSize}
}

// Measure implements Preprocessor.
func (p Idefics3) Measure(w, h int, split bool) (Measured, error) {
	p.Split = p.Split && split
	g, s := p.Grid(w, h), p.MaxImageSize
	w1, h1 := p.first(w, h)
	m := Measured{Grid: g, ScaledWidth: s, ScaledHeight: s}
	bytes := imaging.Sum(tileBytes(g.Tiles(), s), floatBytes(s, s, g.Tiles()), imaging.ResizeBytes(w, h, w1, h1))
	if p.Split {
		w2, h2 := p.second(w1, h1)
		bytes, w1, h1 = imaging.Sum(bytes, imaging.ResizeBytes(w1, h1, w2, h2)), w2, h2
	}
	if g.Rows > 0 {
		m.ScaledWidth, m.ScaledHeight = g.Cols*s, g.Rows*s
	}
	m.Bytes = imaging.Sum(bytes, imaging.ResizeBytes(w1, h1, s, s))
	return m, nil
}

// Prepare implements Preprocessor.
func (p Idefics3) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	p.Split = p.Split && split
	return prepare(ctx, p, data, l, split, p.recipe)
}

func (p Idefics3) recipe(w, h int) recipe {
	s, f := p.MaxImageSize, imaging.Filters[p.Resample]
	fw, fh := p.first(w, h)
	return recipe{[]imaging.Scaling{f.To(w, h, fw, fh)},
		func(ctx context.Context, scaled []*imaging.RGB, img *Image) error {
			img.Size, img.Pixels = s, make([]uint8, img.Grid.Tiles()*3*s*s)
			// Every stage starts from the rounded pixels of the one before, as in the reference.
			stage, err := scaled[0], error(nil)
			if p.Split {
				w, h := p.second(fw, fh)
				if stage, err = f.Resize(ctx, stage, w, h); err != nil {
					return err
				}
			}
			tiles := img.Pixels
			for r := range img.Grid.Rows {
				for c := range img.Grid.Cols {
					tiles = cut(tiles, stage, c*s, r*s, s)
				}
			}
			whole, err := f.Resize(ctx, stage, s, s)
			if err != nil {
				return err
			}
			cut(tiles, whole, 0, 0, s)
			imaging.Release(whole)
			return nil
		}}
}

// cut writes the s×s square of p at x, y as planes and gives what follows it in tiles.
func cut(tiles []uint8, p *imaging.RGB, x, y, s int) []uint8 {
	red, green, blue := tiles[:s*s], tiles[s*s:2*s*s], tiles[2*s*s:3*s*s]
	for r := range s {
		in := p.Row(y + r)[3*x:][:3*s]
		for c := range s {
			red[r*s+c], green[r*s+c], blue[r*s+c] = in[3*c], in[3*c+1], in[3*c+2]
		}
	}
	return tiles[3*s*s:]
}
