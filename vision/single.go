package vision

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/imaging"
)

// SingleTile is the preprocessing of towers that see an image as one square: CLIP, SigLIP and ViT, with the values of
// preprocessor_config.json.
// Reference: transformers 5.12 CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil,
// ViTImageProcessorPil and, without pan and scan, Gemma3ImageProcessorPil, which it gives bit for bit from equal RGB.
type SingleTile struct {
	// Size is the side of the tile in pixels.
	Size int
	// ShortestEdge is what the shorter side is brought to before the middle is cut out; 0 stretches the image to the
	// tile, its aspect ignored.
	ShortestEdge int
	// Pad makes the image a square first, with bars in the colour of Mean.
	Pad bool
	// Resample is the filter of the resize: 1 Lanczos, 2 bilinear, 3 bicubic.
	Resample int
	Normalization
}

// pixelSize is a size as configurations write it: a number, a shortest edge, or a height and a width.
type pixelSize struct {
	Shortest int `json:"shortest_edge"`
	Height   int `json:"height"`
	Width    int `json:"width"`
	number   int
}

func (s *pixelSize) UnmarshalJSON(b []byte) error {
	*s = pixelSize{}
	if json.Unmarshal(b, &s.number) == nil {
		return nil
	}
	type plain pixelSize
	return json.Unmarshal(b, (*plain)(s))
}

// square gives the side of a size that is one for both directions.
func (s pixelSize) square(name string) (int, error) {
	side := s.number
	if side == 0 {
		side = s.Height
	}
	if s.number == 0 && s.Width != s.Height {
		return 0, fmt.Errorf("%s is %d×%d pixels, supported are squares", name, s.Width, s.Height)
	}
	if side < 1 || side > maxSide {
		return 0, fmt.Errorf("%s is %d, want 1 to %d", name, side, maxSide)
	}
	return side, nil
}

// parse reads a preprocessor_config.json over the defaults of its class.
func (p SingleTile) parse(raw []byte, _ Patches) (Preprocessor, error) {
	c := struct {
		DoResize *bool      `json:"do_resize"`
		Size     *pixelSize `json:"size"`
		DoCrop   *bool      `json:"do_center_crop"`
		Crop     *pixelSize `json:"crop_size"`
		Resample *int       `json:"resample"`
		Pad      bool       `json:"do_pad"`
		normalizationConfig
	}{}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	if !or(c.DoResize, true) {
		return nil, errors.New("do_resize is false, supported is true: images come in any size")
	}
	crop := or(c.DoCrop, p.ShortestEdge > 0)
	var err error
	if c.Size != nil {
		shortest := c.Size.Shortest
		if p.ShortestEdge > 0 {
			shortest = max(shortest, c.Size.number) // a bare number is what the class has by default
		}
		if p.ShortestEdge = shortest; shortest > maxSide {
			return nil, fmt.Errorf("size.shortest_edge is %d, want 1 to %d", shortest, maxSide)
		}
		if shortest == 0 {
			if p.Size, err = c.Size.square("size"); err != nil {
				return nil, err
			}
		}
	}
	side := p.Size
	if crop && c.Crop != nil {
		if side, err = c.Crop.square("crop_size"); err != nil {
			return nil, err
		}
	}
	switch {
	case p.ShortestEdge == 0 && side != p.Size, p.ShortestEdge > 0 && side > p.ShortestEdge:
		return nil, fmt.Errorf("crop_size is %d, the resized image has %d", side, cmp.Or(p.ShortestEdge, p.Size))
	case p.ShortestEdge > 0 && !crop:
		return nil, errors.New("do_center_crop is false with a size by shortest_edge: the tile would be no square")
	}
	p.Size = side
	p.Resample = or(c.Resample, p.Resample)
	if err := checkResample(p.Resample); err != nil {
		return nil, err
	}
	p.Pad = c.Pad
	p.Normalization, err = c.normalizationConfig.parse(p.Mean, p.Std)
	return p, err
}

// Side is the side of a tile in pixels.
func (p SingleTile) Side() int { return p.Size }

// Grid is that of one tile for every image.
func (p SingleTile) Grid(int, int) Grid { return Grid{} }

// Measure implements Preprocessor. The square that a padded image becomes is never made.
func (p SingleTile) Measure(w, h int, _ bool) (Measured, error) {
	side := max(w, h) // of the windows over the square
	return Measured{ScaledWidth: p.Size, ScaledHeight: p.Size, Bytes: imaging.Sum(
		tileBytes(1, p.Size), floatBytes(p.Size, p.Size, 1), imaging.ResizeBytes(w, h, p.Size, p.Size),
		imaging.Bytes(2*8*6, side), imaging.Bytes(16, p.Size, p.Size),
	)}, nil
}

// Prepare implements Preprocessor.
func (p SingleTile) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	return prepare(ctx, p, data, l, split, p.recipe)
}

// recipe makes an image one tile.
func (p SingleTile) recipe(iw, ih int) recipe {
	canvas := imaging.Canvas{W: iw, H: ih}
	if p.Pad {
		canvas = squared(iw, ih, p.Mean)
	}
	w, h := p.Size, p.Size
	if p.ShortestEdge > 0 {
		w, h = p.ShortestEdge, p.ShortestEdge
		if canvas.W > canvas.H {
			w = p.ShortestEdge * canvas.W / canvas.H
		} else {
			h = p.ShortestEdge * canvas.H / canvas.W
		}
	}
	tile := imaging.Scaling{
		Filter: imaging.Filters[p.Resample], Canvas: canvas, Size: [2]int{w, h},
		Part: [4]int{(w - p.Size) / 2, (h - p.Size) / 2, p.Size, p.Size},
	}
	return recipe{[]imaging.Scaling{tile}, func(_ context.Context, scaled []*imaging.RGB, img *Image) error {
		img.Size, img.Pixels = p.Size, make([]uint8, 3*p.Size*p.Size)
		cut(img.Pixels, scaled[0], 0, 0, p.Size)
		imaging.Release(scaled[0])
		return nil
	}}
}

// squared is the square that an image of w×h pixels becomes between two bars.
func squared(w, h int, mean [3]float32) imaging.Canvas {
	side := max(w, h)
	c := imaging.Canvas{W: side, H: side, X: (side - w) / 2, Y: (side - h) / 2}
	for i, m := range mean {
		c.Color[i] = uint8(m * 255)
	}
	return c
}

// place copies p into dst at x, y.
func place(dst, p *imaging.RGB, x, y int) {
	for r := range p.H {
		copy(dst.Row(y + r)[3*x:], p.Row(r))
	}
}
