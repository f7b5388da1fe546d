package verify

import (
	"fmt"

	"github.com/mmserve/mmserve/vision"
)

// compareFeatures compares what stands for patches: embeddings, and behind each of them features for later layers.
func (v *Verifier) compareFeatures(name string, patches []float32, want references) (checks []Check, err error) {
	hidden, parts := v.Model.Decoder.Hidden, 1+v.Model.Decoder.Deepstack
	for part := range parts {
		if part > 0 {
			name = fmt.Sprintf("deepstack_features.%d", part-1)
		}
		var values []float32
		for at := part * hidden; at+hidden <= len(patches); at += parts * hidden {
			values = append(values, patches[at:at+hidden]...)
		}
		k, err := v.compare(name, values, want)
		if err != nil {
			return nil, err
		}
		checks = append(checks, k)
	}
	return checks, nil
}

// anySizeFeatures runs images of any size through the tower: pixel_values of patches with image_grid_thw, or of images
// padded to one size with image_sizes.
func (v *Verifier) anySizeFeatures(want references, values []float32, shape []int) (images []*vision.Image,
	patches [][]float32, err error) {
	p := v.Model.AnySize
	var cut func(at int, img *vision.Image) []float32
	var grids []vision.Grid
	if _, ok := want.Tensor("image_sizes"); ok {
		if len(shape) != 4 || shape[1] != 3 {
			return nil, nil, fmt.Errorf("pixel_values has shape %v, want [images, 3, height, width]", shape)
		}
		grids, err = v.anySizeGrids(want, "image_sizes", 2, 1)
		cut = func(at int, img *vision.Image) []float32 {
			return cutPadded(p, values[at*shape[2]*shape[3]*3:], shape, img.Grid)
		}
	} else if _, ok := want.Tensor("spatial_shapes"); ok {
		if len(shape) != 3 || shape[2] != 3*p.PatchSize*p.PatchSize {
			return nil, nil, fmt.Errorf("pixel_values has shape %v, want [images, patches, %d]", shape, 3*p.PatchSize*p.PatchSize)
		}
		grids, err = v.anySizeGrids(want, "spatial_shapes", 2, p.PatchSize)
		cut = func(at int, img *vision.Image) []float32 {
			return inBlocks(p, values[at*shape[1]*shape[2]:][:3*img.Grid.Width*img.Grid.Height], img.Grid, true)
		}
	} else {
		grids, err = v.anySizeGrids(want, "image_grid_thw", 3, p.PatchSize)
		byRow, from := len(shape) == 4, 0
		cut = func(_ int, img *vision.Image) []float32 {
			n := 3 * max(p.Frames, 1) * img.Grid.Width * img.Grid.Height
			from += n
			return inBlocks(p, values[from-n:from], img.Grid, byRow)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if err := fitGrids(p, grids, len(values), shape); err != nil {
		return nil, nil, err
	}
	for i, g := range grids {
		img := &vision.Image{Grid: g, Size: p.PatchSize, Pixels: make([]uint8, 3*g.Width*g.Height)}
		at := cut(i, img)
		features, err := vision.Encode(v.Tower, img, func(dst []float32, _ []uint8) { at = at[copy(dst, at):] })
		if err != nil {
			return nil, nil, err
		}
		images, patches = append(images, img), append(patches, append([]float32{}, features...))
	}
	return images, patches, nil
}

// anySizeGrids are the sizes of images, of which each has a row of n numbers that end with its height and width.
func (v *Verifier) anySizeGrids(want references, name string, n, scale int) ([]vision.Grid, error) {
	const most = 1 << 14
	t, ok := want.Tensor(name)
	if !ok || len(t.Shape) != 2 || t.Shape[1] != n {
		return nil, fmt.Errorf("%s has shape %v (found: %t), want [images, %d]", name, t.Shape, ok, n)
	}
	sizes, err := t.Ints()
	if err != nil {
		return nil, err
	}
	var grids []vision.Grid
	for at := 0; at < len(sizes); at += n {
		h, w := sizes[at+n-2], sizes[at+n-1]
		if min(h, w) < 1 || max(h, w) > most || n == 3 && sizes[at] != 1 {
			return nil, fmt.Errorf("%s has %v, want one frame and 1 to %d either way", name, sizes[at:at+n], most)
		}
		grids = append(grids, vision.Grid{Width: int(w) * scale, Height: int(h) * scale})
	}
	return grids, nil
}

// fitGrids refuses pixel values that are not those of the images.
func fitGrids(p *vision.AnySize, grids []vision.Grid, values int, shape []int) error {
	total := 0
	for _, g := range grids {
		block := p.PatchSize * p.MergeSize
		if g.Width%block != 0 || g.Height%block != 0 {
			return fmt.Errorf("an image of %d×%d pixels, want whole blocks of %d", g.Width, g.Height, block)
		}
		if len(shape) == 3 && g.Width*g.Height <= shape[1]*p.PatchSize*p.PatchSize { // patches, padded
			total += shape[1] * shape[2]
			continue
		}
		if n := len(shape); n == 4 && shape[2] >= g.Height && shape[3] >= g.Width && shape[2] > p.PatchSize {
			g.Height, g.Width = shape[2], shape[3] // padded
		}
		total += 3 * max(p.Frames, 1) * g.Width * g.Height
	}
	if total != values {
		return fmt.Errorf("pixel_values has shape %v, its images have %d values", shape, total)
	}
	return nil
}

// cutPadded makes patches, those of a block side by side, of an image that lies in the corner of a larger one.
func cutPadded(p *vision.AnySize, values []float32, shape []int, g vision.Grid) []float32 {
	var out []float32
	h, w := shape[2], shape[3]
	for y := 0; y < g.Height; y += p.PatchSize {
		for x := 0; x < g.Width; x += p.PatchSize {
			for c := range 3 {
				for dy := range p.PatchSize {
					out = append(out, values[(c*h+y+dy)*w+x:][:p.PatchSize]...)
				}
			}
		}
	}
	return inBlocks(p, out, g, true)
}

// inBlocks puts the patches of a block side by side where they come row by row.
func inBlocks(p *vision.AnySize, values []float32, g vision.Grid, byRow bool) []float32 {
	if !byRow {
		return values
	}
	rows, cols, m := g.Height/p.PatchSize, g.Width/p.PatchSize, p.MergeSize
	size := len(values) / (rows * cols)
	out := make([]float32, 0, len(values))
	for y := 0; y < rows; y += m {
		for x := 0; x < cols; x += m {
			for i := range m * m {
				out = append(out, values[((y+i/m)*cols+x+i%m)*size:][:size]...)
			}
		}
	}
	return out
}
