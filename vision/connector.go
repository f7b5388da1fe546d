package vision

import "github.com/mmserve/mmserve/internal/graph"

// Connector maps a tower's hidden states to the width of the text model. The implementations are values, one file each;
// separateTiles is a part of those that map each tile by itself.
type Connector interface {
	// Validate refuses a connector that does not fit its tower.
	Validate(t ViT) error
	// Tokens is the number of patch embeddings that one tile of the given tower gives.
	Tokens(t ViT) int
	// Width is the length of one patch embedding.
	Width() int
	// build maps [n, outputs, hidden] to [n, tokens, width].
	build(b *graph.Builder, x string, t ViT) string
	packing
}

// packing makes the patch embeddings of an image out of those of its tiles.
type packing interface {
	// Grid tells how config.json has an image of w×h pixels cut into tiles of the given tower. A served image is cut by
	// its preprocessor, which says the same by custom.
	Grid(t ViT, w, h int) Grid
	// packWeights lists the parameters that pack needs, by their canonical names.
	packWeights() []graph.Shape
	// packedTokens is the number of patch embeddings that pack gives of an image cut as g, whose tiles have tokens each.
	packedTokens(t ViT, g Grid, tokens int) int
	// pack takes the patch embeddings of all tiles, [tiles, tokens, width], and the values of packWeights. The result may
	// be patches itself.
	pack(t ViT, g Grid, patches []float32, weights [][]float32) []float32
}

// ImageTokens is the number of patch embeddings of an image cut as g.
func ImageTokens(c Connector, t ViT, g Grid) int { return c.packedTokens(t, g, c.Tokens(t)) }

// separateTiles is the packing of connectors that leave an image's tiles as they are, one after the other.
type separateTiles struct{}

// Grid is that of an image in one tile.
func (separateTiles) Grid(ViT, int, int) Grid { return Grid{} }

func (separateTiles) packWeights() []graph.Shape { return nil }

func (separateTiles) packedTokens(_ ViT, g Grid, tokens int) int { return g.Tiles() * tokens }

func (separateTiles) pack(_ ViT, _ Grid, patches []float32, _ [][]float32) []float32 { return patches }
