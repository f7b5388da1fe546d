package vision

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// Connector maps a tower's hidden states to the width of the text model. The implementations are values.
type Connector interface {
	// Validate refuses a connector that does not fit its tower.
	Validate(t ViT) error
	// Tokens is the number of patch embeddings that one tile of the given tower gives.
	Tokens(t ViT) int
	// Width is the length of one patch embedding.
	Width() int
	// build maps [n, outputs, hidden] to [n, tokens, width].
	build(b *graph.Builder, x string, t ViT) string
}

// PixelShuffle is the connector of Idefics3: Scale×Scale neighbouring patches become one, projected without bias
// to the text model's width.
type PixelShuffle struct {
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
	return b.Linear(x, "connector.modality_projection.proj", r*r*t.Hidden, c.TextHidden, false)
}

// MLP is the connector of LLaVA: two linear layers with an activation between, for each hidden state.
type MLP struct {
	TextHidden int
	Activation string
	Bias       bool
}

// Tokens is one for each hidden state.
func (c MLP) Tokens(t ViT) int { return t.Outputs() }

// Width is the text model's.
func (c MLP) Width() int { return c.TextHidden }

// Validate refuses an activation that is not known.
func (c MLP) Validate(ViT) error {
	return graph.CheckActivation("projector_hidden_act", c.Activation)
}

// Reference: transformers LlavaMultiModalProjector.
func (c MLP) build(b *graph.Builder, x string, t ViT) string {
	x = b.Linear(x, "connector.linear_1", t.Hidden, c.TextHidden, c.Bias)
	x = b.Activation(c.Activation, x)
	return b.Linear(x, "connector.linear_2", c.TextHidden, c.TextHidden, c.Bias)
}

// Linear is the connector of PaliGemma: one linear layer with bias, for each hidden state.
type Linear struct {
	TextHidden int
}

// Tokens is one for each hidden state.
func (c Linear) Tokens(t ViT) int { return t.Outputs() }

// Width is the text model's.
func (c Linear) Width() int { return c.TextHidden }

// Validate accepts every tower.
func (c Linear) Validate(ViT) error { return nil }

// Reference: transformers PaliGemmaMultiModalProjector.
func (c Linear) build(b *graph.Builder, x string, t ViT) string {
	return b.Linear(x, "connector.linear", t.Hidden, c.TextHidden, true)
}
