package vision

import (
	"context"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// TiledTower is a tower whose images come in tiles of one size, of which one run takes several.
type TiledTower struct {
	session     *ort.Session
	pixels      *ort.Floats
	patches     *ort.Floats
	features    []float32 // of the last run, [tiles, tilePatches]
	shape       ViT
	connector   Connector
	packWeights [][]float32 // values of the connector's packWeights
	feeds       feeds
	maxTiles    int
	// tilePixels and tilePatches are float32 elements for one tile.
	tilePixels, tilePatches int
}

// feeds are the shapes of a graph's values for n tiles.
type feeds struct {
	pixels, patches func(n int) []int
	// mask tells of each pixel that it is one, in graphs that want to know; it has shape masks.
	mask  *ort.Memory[uint8]
	masks func(n int) []int
}

func newTiledTower(t ViT, c Connector, maxTiles int) *TiledTower {
	return &TiledTower{
		shape: t, connector: c, maxTiles: maxTiles,
		tilePixels: 3 * t.ImageSize * t.ImageSize, tilePatches: c.Tokens(t) * c.Width(),
	}
}

// TowerGraph builds the graph of a tower with its connector: pixel_values [tiles, 3, S, S] to image_features
// [tiles, tokens, text hidden].
func TowerGraph(w *graph.Weights, t ViT, c Connector, p graph.Precision) (*graph.Builder, error) {
	return towerGraph(w, t, c, p, graph.Target{})
}

func towerGraph(w *graph.Weights, t ViT, c Connector, p graph.Precision, on graph.Target) (*graph.Builder, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	if err := c.Validate(t); err != nil {
		return nil, err
	}
	b := graph.NewBuilder("vision", w, p)
	b.Target = on
	x := b.Input("pixel_values", onnx.F32, "tiles", 3, t.ImageSize, t.ImageSize)
	x = c.build(b, t.build(b, "vision.", x), t)
	b.Name(b.Wide(x), "image_features")
	b.Output("image_features", onnx.F32, "tiles", c.Tokens(t), c.Width())
	if err := b.Err(); err != nil {
		return b, err
	}
	for _, s := range c.packWeights() { // a checkpoint without them is refused with the graph's
		if _, err := w.Get(s.Name, s.Dims...); err != nil {
			return b, err
		}
	}
	return b, nil
}

// readPackWeights reads what packing an image's tiles takes.
func readPackWeights(w *graph.Weights, c Connector) (list [][]float32, err error) {
	for _, s := range c.packWeights() {
		t, err := w.Get(s.Name, s.Dims...)
		if err != nil {
			return nil, err
		}
		values, err := t.Floats()
		if err != nil {
			return nil, err
		}
		list = append(list, values)
	}
	return list, nil
}

// OpenTower opens a session over TowerGraph.
func OpenTower(w *graph.Weights, t ViT, c Connector, p graph.Precision, o ort.Options) (*TiledTower, error) {
	on, err := graph.TargetOf(o, p)
	if err != nil {
		return nil, err
	}
	b, err := towerGraph(w, t, c, p, on)
	if err != nil {
		return nil, err
	}
	o.ExternalDir, o.Background = graph.Root, true // answers under way do not wait for images
	tw := newTiledTower(t, c, t.tiles())
	if tw.session, err = ort.NewSession(b, o); err != nil {
		return nil, fmt.Errorf("vision tower: %w", err)
	}
	tw.feeds = feeds{
		pixels:  func(n int) []int { return []int{n, 3, t.ImageSize, t.ImageSize} },
		patches: func(n int) []int { return []int{n, c.Tokens(t), c.Width()} },
	}
	if tw.packWeights, err = readPackWeights(w, c); err == nil {
		err = tw.reserve(onnx.F32, onnx.F32)
	}
	if err != nil {
		return nil, errors.Join(err, tw.Close())
	}
	return tw, nil
}

// reserve makes room for a run's pixel values and patch embeddings, which are of the given types in the graph.
func (t *TiledTower) reserve(pixels, patches onnx.DType) (err error) {
	if t.pixels, err = ort.AllocFloats(pixels, t.maxTiles*t.tilePixels); err == nil {
		t.patches, err = ort.AllocFloats(patches, t.maxTiles*t.tilePatches)
	}
	return err
}

// WarmUp runs a tower on a device once in each number of tiles for which its kernels differ. Elsewhere it does nothing.
func (t *TiledTower) WarmUp() error {
	if t.session.Device() == nil {
		return nil
	}
	for _, n := range []int{1, 2, 3, 4, t.maxTiles} { // kernels differ by what divides their rows
		if err := t.Run(context.Background(), min(n, t.maxTiles)); err != nil {
			return err
		}
	}
	return nil
}

// MaxParts is the most tiles of one run.
func (t *TiledTower) MaxParts() int { return t.maxTiles }

// Parts is the number of an image's tiles.
func (t *TiledTower) Parts(img *Image) int { return img.Grid.Tiles() }

// Load implements Tower: part i is tile i.
func (t *TiledTower) Load(place int, img *Image, i int, normalize Normalizer) error {
	n := t.tilePixels
	if place < 0 || place >= t.maxTiles || i < 0 || (i+1)*n > len(img.Pixels) {
		return fmt.Errorf("vision tower: tile %d of %d bytes at place %d, want tiles of %d bytes at 0 to %d", i, len(img.Pixels), place, n, t.maxTiles-1)
	}
	normalize(t.pixels.Slice()[place*n:(place+1)*n], img.Pixels[i*n:(i+1)*n])
	return nil
}

// Run implements Tower.
func (t *TiledTower) Run(ctx context.Context, n int) error {
	if n < 1 || n > t.maxTiles {
		return fmt.Errorf("vision tower: %d tiles in one run, want 1 to %d", n, t.maxTiles)
	}
	t.pixels.Store(n * t.tilePixels)
	px, err := t.pixels.View(t.feeds.pixels(n)...)
	if err != nil {
		return err
	}
	defer px.Destroy()
	in := []ort.Tensor{px}
	if t.feeds.mask != nil {
		mask, err := ort.ViewAs(t.feeds.mask.Slice(), onnx.Bool, t.feeds.masks(n)...)
		if err != nil {
			return err
		}
		defer mask.Destroy()
		in = append(in, mask)
	}
	out, err := t.patches.View(t.feeds.patches(n)...)
	if err != nil {
		return err
	}
	defer out.Destroy()
	if err := t.session.RunContext(ctx, in, []ort.Tensor{out}); err != nil {
		return fmt.Errorf("vision tower: %w", err)
	}
	t.features = t.patches.Load(0, n*t.tilePatches)
	return nil
}

// Patches implements Tower.
func (t *TiledTower) Patches(place int) []float32 {
	return t.features[place*t.tilePatches : (place+1)*t.tilePatches]
}

// Pack implements Tower.
func (t *TiledTower) Pack(g Grid, patches []float32) []float32 {
	return t.connector.pack(t.shape, g, patches, t.packWeights)
}

// Wipe implements Tower.
func (t *TiledTower) Wipe() error { return errors.Join(t.pixels.Wipe(), t.patches.Wipe()) }

// Close frees the session and its memory.
func (t *TiledTower) Close() error {
	var err error
	if t.session != nil {
		err = t.session.Close()
	}
	t.pixels.Free()
	t.patches.Free()
	t.feeds.mask.Free()
	return err
}
