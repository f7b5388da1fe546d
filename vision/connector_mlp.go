package vision

import (
	"github.com/mmserve/mmserve/internal/graph"
)

// MLP is the connector of LLaVA: two linear layers with an activation between, for each hidden state.
type MLP struct {
	separateTiles
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
	x = b.Linear(b.Narrow(b.Rows(x, t.Width())), "connector.linear_1", t.Width(), c.TextHidden, c.Bias)
	x = b.Activation(c.Activation, x)
	return b.Blocks(b.Linear(x, "connector.linear_2", c.TextHidden, c.TextHidden, c.Bias), c.Tokens(t), c.TextHidden)
}
