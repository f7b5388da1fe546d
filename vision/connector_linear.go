package vision

import (
	"github.com/mmserve/mmserve/internal/graph"
)

// Linear is the connector of PaliGemma: one linear layer with bias, for each hidden state.
type Linear struct {
	separateTiles
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
	x = b.Linear(b.Narrow(b.Rows(x, t.Hidden)), "connector.linear", t.Hidden, c.TextHidden, true)
	return b.Blocks(x, c.Tokens(t), c.TextHidden)
}
