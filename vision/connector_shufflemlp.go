package vision

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
)

// ShuffleMLP is the connector of InternVL: Scale×Scale neighbouring patches become one, which is normalised; then two
// linear layers with an activation between.
type ShuffleMLP struct {
	separateTiles
	Scale, TextHidden int
	Activation        string
}

// shuffleNormEps is that of the norm, which no configuration sets.
const shuffleNormEps = 1e-5

// Tokens is the number of patch embeddings that one tile of the given tower gives.
func (c ShuffleMLP) Tokens(t ViT) int { return t.Patches() / (c.Scale * c.Scale) }

// Width is the text model's.
func (c ShuffleMLP) Width() int { return c.TextHidden }

// Validate refuses a tower whose patches form no whole blocks.
func (c ShuffleMLP) Validate(t ViT) error {
	if side := t.Side(); c.Scale <= 0 || side%c.Scale != 0 {
		return fmt.Errorf("downsample_ratio is 1/%d, want one over a divisor of the %d patches a side", c.Scale, side)
	}
	if t.Outputs() != t.Patches() {
		return errors.New("vision_feature_select_strategy keeps the class token: patches are put together in blocks without it")
	}
	return graph.CheckActivation("projector_hidden_act", c.Activation)
}

// Reference: transformers InternVLMultiModalProjector.
func (c ShuffleMLP) build(b *graph.Builder, x string, t ViT) string {
	in := c.Scale * c.Scale * t.Width()
	x = b.Rows(pixelShuffle(b, x, t, c.Scale), in)
	x = b.LayerNorm(x, "connector.layer_norm", in, shuffleNormEps)
	x = b.Activation(c.Activation, b.Linear(x, "connector.linear_1", in, c.TextHidden, true))
	return b.Blocks(b.Linear(x, "connector.linear_2", c.TextHidden, c.TextHidden, true), c.Tokens(t), c.TextHidden)
}
