package vision

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// Images says how a tower takes images of any size: cut into patches, of which a square block becomes one patch
// embedding. A prepared image's Grid has the width and height it was resized to, its Size is a patch's, and its Pixels
// are patches, those of a block side by side.
type NativeResolution struct {
	// PatchSize is the side of a patch in pixels, MergeSize that of a block in patches, Width the length of a patch
	// embedding.
	PatchSize, MergeSize, Width int
}

// Map is the shape of the map that an image's patch embeddings form.
func (p NativeResolution) Map(g Grid) (rows, cols int) {
	block := p.PatchSize * p.MergeSize
	return g.Height / block, g.Width / block
}

// Tokens is the number of an image's patch embeddings.
func (p NativeResolution) Tokens(g Grid) int {
	rows, cols := p.Map(g)
	return rows * cols
}

// OpenNaViTExport opens a tower with its connector that somebody else made into an ONNX graph, for images of any
// size.
func OpenNaViTExport(f ort.File, p NativeResolution, o ort.Options) (*Tower, error) {
	t := &Tower{native: &nativeTower{NativeResolution: p}, connector: Given{}}
	if err := t.openExport(f, o); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.Path, err), t.Close())
	}
	return t, nil
}

// nativeTower is what a tower for images of any size has besides.
type nativeTower struct {
	NativeResolution
	values int                // of pixels that the graph takes for a patch
	thw    *ort.Memory[int64] // patches in time, down and across
}

func (t *Tower) openExport(f ort.File, o ort.Options) error {
	p := t.native
	if len(f.Inputs) != 2 || f.Inputs[0].Name != "pixel_values" || len(f.Inputs[0].Dims) != 2 ||
		f.Inputs[1].Type != onnx.I64 || f.Inputs[1].Name != "image_grid_thw" && f.Inputs[1].Name != "grid_thw" {
		return errors.New("want two inputs: pixel_values of two dimensions, and image_grid_thw or grid_thw of int64")
	}
	out, ok := onnx.Find(f.Outputs, "image_features")
	if !ok || len(out.Dims) != 2 {
		return errors.New("want an output image_features of two dimensions")
	}
	pixels := f.Inputs[0]
	area := 3 * p.PatchSize * p.PatchSize
	if p.values = pixels.Dims[1].Size; p.values < 1 || p.values%area != 0 || p.values > 8*area {
		return fmt.Errorf("input pixel_values has %d values a patch, want 1 to 8 times %d", p.values, area)
	}
	if n := out.Dims[1].Size; n > 0 && n != p.Width {
		return fmt.Errorf("output image_features has %d values a patch, the decoder takes %d", n, p.Width)
	}
	var err error
	if p.thw, err = ort.Alloc[int64](3); err != nil {
		return err
	}
	if t.pixels, err = ort.AllocFloats(pixels.Type, 1); err != nil {
		return err
	}
	if t.patches, err = ort.AllocFloats(out.Type, 1); err != nil {
		return err
	}
	o.Background = true
	t.session, err = ort.OpenFile(f, []string{out.Name}, o)
	return err
}

// Image encodes an image of any size. normalize maps the bytes of its patches to what the graph takes. The result is
// valid until the next call.
func (t *Tower) EncodeImage(img *Image, normalize func(dst []float32, src []uint8)) ([]float32, error) {
	p := t.native
	if p == nil {
		return nil, errors.New("vision tower: images come in tiles")
	}
	if err := p.check(img); err != nil {
		return nil, err
	}
	tall, wide := img.Grid.Height/p.PatchSize, img.Grid.Width/p.PatchSize
	n, tokens := tall*wide, p.Tokens(img.Grid)
	if err := t.pixels.Grow(n * p.values); err != nil {
		return nil, err
	}
	if err := t.patches.Grow(tokens * p.Width); err != nil {
		return nil, err
	}
	normalize(t.pixels.Slice()[:n*p.values], img.Pixels)
	t.pixels.Store(n * p.values)
	copy(p.thw.Slice(), []int64{1, int64(tall), int64(wide)})
	in, err := t.pixels.View(n, p.values)
	if err != nil {
		return nil, err
	}
	defer in.Destroy()
	thw, err := ort.View(p.thw.Slice(), 1, 3)
	if err != nil {
		return nil, err
	}
	defer thw.Destroy()
	out, err := t.patches.View(tokens, p.Width)
	if err != nil {
		return nil, err
	}
	defer out.Destroy()
	if err := t.session.Run([]ort.Tensor{in, thw}, []ort.Tensor{out}); err != nil {
		return nil, fmt.Errorf("vision tower: %w", err)
	}
	return t.patches.Load(0, tokens*p.Width), nil
}

// check refuses an image that was not prepared for the tower.
func (p NativeResolution) check(img *Image) error {
	block := p.PatchSize * p.MergeSize
	w, h := img.Grid.Width, img.Grid.Height
	if img.Size != p.PatchSize || w < block || h < block || w%block != 0 || h%block != 0 || len(img.Pixels) != 3*w*h {
		return fmt.Errorf("vision tower: an image of %d×%d pixels in patches of %d, want whole blocks of %d pixels in patches of %d", w, h, img.Size, block, p.PatchSize)
	}
	return nil
}
