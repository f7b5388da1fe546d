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

// Reference: transformers Idefics3Connector.
func (c PixelShuffle) build(b *graph.Builder, x string, t ViT) string {
	in := c.Scale * c.Scale * t.Width()
	x = pixelShuffle(b, x, t, c.Scale)
	x = b.Linear(b.Narrow(b.Rows(x, in)), "connector.modality_projection.proj", in, c.TextHidden, false)
	return b.Blocks(x, c.Tokens(t), c.TextHidden)
}

// pixelShuffle makes one of scale×scale neighbouring patches of x [n, patches, width]; the channel order inside a block
// is row, column, channel.
// Reference: transformers Idefics3Connector.pixel_shuffle, InternVLModel.pixel_shuffle.
func pixelShuffle(b *graph.Builder, x string, t ViT, scale int) string {
	side, r := int64(t.Side()/scale), int64(scale)
	x = b.Op("Reshape", nil, x, b.I64s(-1, side, r, side, r*int64(t.Width())))
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 1, 3, 2, 4}}, x)
	return b.Op("Reshape", nil, x, b.I64s(-1, side*side, r*r*int64(t.Width())))
}
