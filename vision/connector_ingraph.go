package vision

import (
	"errors"

	"github.com/mmserve/mmserve/internal/graph"
)

// InGraph is the connector of a tower that is a ready-made graph with it: nothing is known of them but what they give.
type InGraph struct {
	separateTiles
	// PerTile is the number of patch embeddings of a tile.
	PerTile, TextHidden int
}

// Tokens is what the graph gives.
func (c InGraph) Tokens(ViT) int { return c.PerTile }

// Width is the text model's.
func (c InGraph) Width() int { return c.TextHidden }

// Validate refuses every tower: no graph can be built.
func (c InGraph) Validate(ViT) error {
	return errors.New("the connector is known as a ready-made graph only")
}

func (c InGraph) build(_ *graph.Builder, x string, _ ViT) string { return x }
