package vision

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// OpenExport opens a tower with its connector that somebody else made into an ONNX graph. Its images have the tower's
// side; it has the connector's tokens and width. A run is one tile: some exports quantise all of a run with one scale,
// and an image's patches must not depend on whose tiles lie beside its own.
func OpenExport(f ort.File, t ViT, c Connector, o ort.Options) (*TiledTower, error) {
	tw := newTiledTower(t, c, 1)
	if err := tw.export(f, o); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.Path, err), tw.Close())
	}
	return tw, nil
}

func (t *TiledTower) export(f ort.File, o ort.Options) error {
	var pixels onnx.Value
	for i, in := range f.Inputs {
		switch side := t.shape.ImageSize; {
		case in.Name == "pixel_values" && i == 0 && len(in.Dims) == 4:
			pixels = in
			t.feeds.pixels = func(n int) []int { return []int{n, 3, side, side} }
		case in.Name == "pixel_values" && i == 0 && len(in.Dims) == 5: // images of a prompt, then their tiles
			pixels = in
			t.feeds.pixels = func(n int) []int { return []int{1, n, 3, side, side} }
		case in.Name == "pixel_attention_mask" && i == 1 && in.Type == onnx.Bool && len(in.Dims) == 4:
			var err error
			if t.feeds.mask, err = ort.Alloc[uint8](t.maxTiles * side * side); err != nil {
				return err
			}
			for j := range t.feeds.mask.Slice() {
				t.feeds.mask.Slice()[j] = 1
			}
			t.feeds.masks = func(n int) []int { return []int{1, n, side, side} }
		default:
			return fmt.Errorf("input %s (%s, %d dimensions) is not supported", in.Name, in.Type, len(in.Dims))
		}
	}
	if pixels.Name == "" {
		return errors.New("it has no input pixel_values")
	}
	out, ok := onnx.Find(f.Outputs, "image_features")
	if !ok {
		out, ok = onnx.Find(f.Outputs, "last_hidden_state")
	}
	if !ok {
		return errors.New("it has no output image_features or last_hidden_state")
	}
	tokens, width := t.connector.Tokens(t.shape), t.connector.Width()
	switch len(out.Dims) {
	case 2:
		t.feeds.patches = func(n int) []int { return []int{n * tokens, width} }
	case 3:
		t.feeds.patches = func(n int) []int { return []int{n, tokens, width} }
	default:
		return fmt.Errorf("output %s has %d dimensions, want 2 or 3", out.Name, len(out.Dims))
	}
	if n := out.Dims[len(out.Dims)-1].Size; n > 0 && n != width {
		return fmt.Errorf("output %s has %d values a patch, the decoder takes %d", out.Name, n, width)
	}
	var err error
	o.Background = true
	if t.session, err = ort.OpenFile(f, []string{out.Name}, o); err != nil {
		return err
	}
	if err := t.reserve(pixels.Type, out.Type); err != nil {
		return err
	}
	// Exports of Idefics3 leave out tiles that are all zero; a first run over nothing must not be one.
	for i := range t.pixels.Slice() {
		t.pixels.Slice()[i] = 1
	}
	return nil
}
