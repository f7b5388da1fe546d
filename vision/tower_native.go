package vision

import (
	"context"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// NativeResolution says how a tower takes images of any size: cut into patches, of which a square block becomes one
// patch embedding. A prepared image's Grid has the width and height it was resized to, its Size is a patch's, and its
// Pixels are patches, those of a block side by side.
type NativeResolution struct {
	// PatchSize is the side of a patch in pixels, MergeSize that of a block in patches, Width the length of a patch
	// embedding.
	PatchSize, MergeSize, Width int
	// TileSize, unless 0, is the side in pixels of the tiles that images may be cut into besides: Grid.Rows·Grid.Cols of
	// them stand before the whole, each by itself.
	TileSize int
}

// part is the size of part i of an image cut as g, and where its pixel values start in the image's.
func (p NativeResolution) part(g Grid, i int) (part Grid, at int) {
	tile := p.TileSize * p.TileSize * 3
	if i < g.Rows*g.Cols {
		return Grid{Width: p.TileSize, Height: p.TileSize}, i * tile
	}
	return Grid{Width: g.Width, Height: g.Height}, g.Rows * g.Cols * tile
}

// Map is the shape of the map that an image's patch embeddings form.
func (p NativeResolution) Map(g Grid) (rows, cols int) {
	block := p.PatchSize * p.MergeSize
	return g.Height / block, g.Width / block
}

// Tokens is the number of an image's patch embeddings.
func (p NativeResolution) Tokens(g Grid) int {
	rows, cols := p.Map(g)
	return g.Rows*g.Cols*p.TileTokens() + rows*cols
}

// TileTokens is the number of a tile's patch embeddings.
func (p NativeResolution) TileTokens() int {
	side := p.TileSize / (p.PatchSize * p.MergeSize)
	return side * side
}

// NativeTower is a tower for images of any size, each of which is a run, in a ready-made graph.
type NativeTower struct {
	NativeResolution
	session *ort.Session
	pixels  *ort.Floats
	patches *ort.Floats
	values  int                // of pixels that the graph takes for a patch
	thw     *ort.Memory[int64] // patches in time, down and across
	image   Grid               // of the image that was loaded
	loaded  bool
}

// OpenNativeExport opens a tower with its connector that somebody else made into an ONNX graph, for images of any
// size.
func OpenNativeExport(f ort.File, p NativeResolution, o ort.Options) (*NativeTower, error) {
	t := &NativeTower{NativeResolution: p}
	if err := t.open(f, o); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.Path, err), t.Close())
	}
	return t, nil
}

func (t *NativeTower) open(f ort.File, o ort.Options) error {
	if len(f.Inputs) != 2 || f.Inputs[0].Name != "pixel_values" || len(f.Inputs[0].Dims) != 2 ||
		f.Inputs[1].Type != onnx.I64 || f.Inputs[1].Name != "image_grid_thw" && f.Inputs[1].Name != "grid_thw" {
		return errors.New("want two inputs: pixel_values of two dimensions, and image_grid_thw or grid_thw of int64")
	}
	out, ok := onnx.Find(f.Outputs, "image_features")
	if !ok || len(out.Dims) != 2 {
		return errors.New("want an output image_features of two dimensions")
	}
	pixels := f.Inputs[0]
	area := 3 * t.PatchSize * t.PatchSize
	if t.values = pixels.Dims[1].Size; t.values < 1 || t.values%area != 0 || t.values > 8*area {
		return fmt.Errorf("input pixel_values has %d values a patch, want 1 to 8 times %d", t.values, area)
	}
	if n := out.Dims[1].Size; n > 0 && n != t.Width {
		return fmt.Errorf("output image_features has %d values a patch, the decoder takes %d", n, t.Width)
	}
	var err error
	if t.thw, err = ort.Alloc[int64](3); err != nil {
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

// WarmUp does nothing: each size of image has kernels of its own.
func (t *NativeTower) WarmUp() error { return nil }

// MaxParts is one image.
func (t *NativeTower) MaxParts() int { return 1 }

// Parts is 1: an image is not cut.
func (t *NativeTower) Parts(*Image) int { return 1 }

// Load implements Tower: the part is the image.
func (t *NativeTower) Load(place int, img *Image, i int, normalize Normalizer) error {
	if place != 0 || i != 0 {
		return fmt.Errorf("vision tower: part %d at place %d, want one image a run", i, place)
	}
	if err := t.check(img, t.values); err != nil {
		return err
	}
	n := t.count(img.Grid)
	if err := t.pixels.Grow(n * t.values); err != nil {
		return err
	}
	normalize(t.pixels.Slice()[:n*t.values], img.Pixels)
	t.image, t.loaded = img.Grid, true
	return nil
}

// count is the number of patches that an image is cut into.
func (p NativeResolution) count(g Grid) int { return g.Height / p.PatchSize * (g.Width / p.PatchSize) }

// Run implements Tower.
func (t *NativeTower) Run(ctx context.Context, n int) error {
	if n != 1 || !t.loaded {
		return fmt.Errorf("vision tower: a run of %d images, loaded %t, want one", n, t.loaded)
	}
	patches, tokens := t.count(t.image), t.Tokens(t.image)
	if err := t.patches.Grow(tokens * t.Width); err != nil {
		return err
	}
	t.pixels.Store(patches * t.values)
	copy(t.thw.Slice(), []int64{1, int64(t.image.Height / t.PatchSize), int64(t.image.Width / t.PatchSize)})
	in, err := t.pixels.View(patches, t.values)
	if err != nil {
		return err
	}
	defer in.Destroy()
	thw, err := ort.View(t.thw.Slice(), 1, 3)
	if err != nil {
		return err
	}
	defer thw.Destroy()
	out, err := t.patches.View(tokens, t.Width)
	if err != nil {
		return err
	}
	defer out.Destroy()
	if err := t.session.RunContext(ctx, []ort.Tensor{in, thw}, []ort.Tensor{out}); err != nil {
		return fmt.Errorf("vision tower: %w", err)
	}
	return nil
}

// Patches implements Tower.
func (t *NativeTower) Patches(int) []float32 { return t.patches.Load(0, t.Tokens(t.image)*t.Width) }

// Pack implements Tower: the graph has done it.
func (t *NativeTower) Pack(_ Grid, patches []float32) []float32 { return patches }

// Wipe implements Tower.
func (t *NativeTower) Wipe() error {
	t.loaded = false
	return errors.Join(t.pixels.Wipe(), t.patches.Wipe())
}

// Close frees the session and its memory.
func (t *NativeTower) Close() error {
	var err error
	if t.session != nil {
		err = t.session.Close()
	}
	t.pixels.Free()
	t.patches.Free()
	t.thw.Free()
	return err
}

// check refuses an image that was not prepared for the tower, whose patches have so many values.
func (p NativeResolution) check(img *Image, values int) error {
	if n := 3 * p.PatchSize * p.PatchSize * img.Frames; n != 0 && n != values {
		return fmt.Errorf("vision tower: the image processor (temporal_patch_size %d) gives %d values a patch, the tower takes %d",
			img.Frames, n, values)
	}
	block := p.PatchSize * p.MergeSize
	w, h := img.Grid.Width, img.Grid.Height
	tiles := img.Grid.Rows * img.Grid.Cols
	if tiles < 0 || tiles > 0 && p.TileSize == 0 || tiles > maxGrid*maxGrid {
		return fmt.Errorf("vision tower: an image of %d×%d tiles, which the tower does not take", img.Grid.Rows, img.Grid.Cols)
	}
	if img.Size != p.PatchSize || w < block || h < block || w%block != 0 || h%block != 0 ||
		len(img.Pixels) != 3*(w*h+tiles*p.TileSize*p.TileSize) {
		return fmt.Errorf("vision tower: an image of %d×%d pixels in patches of %d, want whole blocks of %d pixels in patches of %d", w, h, img.Size, block, p.PatchSize)
	}
	return nil
}
