package vision

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
)

// Identity gives the hidden states as they are, to a decoder of the tower's width.
type Identity struct {
	separateTiles
	Hidden int
}

// Tokens is one for each hidden state.
func (c Identity) Tokens(t ViT) int { return t.Outputs() }

// Width is the tower's.
func (c Identity) Width() int { return c.Hidden }

// Validate refuses a tower of another width.
func (c Identity) Validate(t ViT) error {
	if t.Hidden != c.Hidden {
		return fmt.Errorf("the encoder's hidden_size is %d, the decoder's %d: a projection between them is not supported", t.Hidden, c.Hidden)
	}
	return nil
}

func (c Identity) build(_ *graph.Builder, x string, _ ViT) string { return x }
