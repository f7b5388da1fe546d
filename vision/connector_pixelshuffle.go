package vision

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// PixelShuffle is the connector of Idefics3: Scale×Scale neighbouring patches become one, projected without bias
// to the text model's width.
type PixelShuffle struct {
	separateTiles
	Scale, TextHidden int
}

// Tokens is the number of patch embeddings that one tile of the given tower gives.
func (c PixelShuffle) Tokens(t ViT) int { return t.Patches() / (c.Scale * c.Scale) }

// Validate refuses a connector that does not fit its tower.
func (c PixelShuffle) Validate(t ViT) error {
	if side := t.Side(); c.Scale <= 0 || side%c.Scale != 0 {
		return fmt.Errorf("scale_factor is %d, want a divisor of the %d patches a side", c.Scale, side)
	}
	return nil
}

// Width is the text model's.
func (c PixelShuffle) Width() int { return c.TextHidden }

// Reference: transformers Idefics3Connector.pixel_shuffle; the channel order inside a block is row, column, channel.
func (c PixelShuffle) build(b *graph.Builder, x string, t ViT) string {
	side, r := t.Side(), c.Scale
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(side/r), int64(r), int64(side/r), int64(r*t.Hidden)))
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 1, 3, 2, 4}}, x)
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(c.Tokens(t)), int64(r*r*t.Hidden)))
	x = b.Linear(b.Narrow(b.Rows(x, r*r*t.Hidden)), "connector.modality_projection.proj", r*r*t.Hidden, c.TextHidden, false)
	return b.Blocks(x, c.Tokens(t), c.TextHidden)
}
