package vision

import (
	"errors"
	"fmt"
	"math"

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
	x = b.Linear(b.Narrow(b.Rows(x, r*r*t.Hidden)), "connector.modality_projection.proj", r*r*t.Hidden, c.TextHidden, false)
	return b.Blocks(x, c.Tokens(t), c.TextHidden)
}

// Identity gives the hidden states as they are, to a decoder of the tower's width.
type Identity struct {
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
	x = b.Linear(b.Narrow(b.Rows(x, t.Hidden)), "connector.linear_1", t.Hidden, c.TextHidden, c.Bias)
	x = b.Activation(c.Activation, x)
	return b.Blocks(b.Linear(x, "connector.linear_2", c.TextHidden, c.TextHidden, c.Bias), c.Tokens(t), c.TextHidden)
}

// AnyRes is the connector of LLaVA-OneVision: MLP, and then the tiles of an image put together again: the patches of
// the whole, then the rows of the map that its tiles make, without the bars that padded it, a learned vector after each
// row. A map of far more patches than MaxTiles tiles have is made smaller first. An image of one tile is its patches
// and the vector.
type AnyRes struct {
	MLP
	MaxTiles int
	// Pinpoints are config.json's. A served image is cut by the preprocessor's, which are the same by custom.
	Pinpoints Pinpoints
}

// newline reads the vector that ends a row.
func (c AnyRes) newline(w *graph.Weights) ([]float32, error) {
	t, err := w.Get("image_newline", c.Width())
	if err != nil {
		return nil, err
	}
	return t.Floats()
}

// PackedTokens is the number of positions that an image's packed patches take.
// Reference: transformers LlavaOnevisionProcessor._get_number_of_features.
func (c AnyRes) PackedTokens(t ViT, g Grid) int {
	if g.Rows == 0 {
		return c.Tokens(t) + 1
	}
	_, _, rows, cols := c.kept(t, g)
	if r, k, ok := c.shrunk(t, rows, cols); ok {
		rows, cols = r, k
	}
	return c.Tokens(t) + rows*(cols+1)
}

// kept is the part of an image's map of patches that its padding leaves.
// Reference: transformers unpad_image.
func (c AnyRes) kept(t ViT, g Grid) (top, left, rows, cols int) {
	rows, cols = g.Rows*t.Side(), g.Cols*t.Side()
	length := func(x float64) int { return int(math.Round(x*1e7) / 1e7) }
	if w, h := float64(g.Width), float64(g.Height); w/h > float64(cols)/float64(rows) {
		top = (rows - length(h*(float64(cols)/w))) / 2
	} else {
		left = (cols - length(w*(float64(rows)/h))) / 2
	}
	return top, left, rows - 2*top, cols - 2*left
}

// shrunk is the size that a map is brought to where it is too large.
func (c AnyRes) shrunk(t ViT, rows, cols int) (r, k int, ok bool) {
	ratio := math.Sqrt(float64(rows*cols) / float64(c.MaxTiles*t.Patches()))
	if ratio <= 1.1 {
		return 0, 0, false
	}
	return int(float64(rows) / ratio), int(float64(cols) / ratio), true
}

// pack makes [tokens, width] of an image's patches [tiles, patches, width].
// Reference: transformers LlavaOnevisionModel.pack_image_features.
func (c AnyRes) pack(t ViT, g Grid, patches, newline []float32) []float32 {
	width, side, n := c.Width(), t.Side(), c.Tokens(t)
	out := make([]float32, 0, c.PackedTokens(t, g)*width)
	out = append(out, patches[:n*width]...)
	if g.Rows == 0 {
		return append(out, newline...)
	}
	top, left, rows, cols := c.kept(t, g)
	// at is the patch at row y and column x of what is kept.
	at := func(y, x int) []float32 {
		y, x = y+top, x+left
		tile := 1 + y/side*g.Cols + x/side
		return patches[(tile*n+y%side*side+x%side)*width:][:width]
	}
	r, k, smaller := c.shrunk(t, rows, cols)
	if !smaller {
		for y := range rows {
			for x := range cols {
				out = append(out, at(y, x)...)
			}
			out = append(out, newline...)
		}
		return out
	}
	for y := range r {
		y0, y1, fy := between(y, rows, r)
		for x := range k {
			x0, x1, fx := between(x, cols, k)
			a, b, d, e := at(y0, x0), at(y0, x1), at(y1, x0), at(y1, x1)
			for i := range width {
				out = append(out, (1-fy)*((1-fx)*a[i]+fx*b[i])+fy*((1-fx)*d[i]+fx*e[i]))
			}
		}
		out = append(out, newline...)
	}
	return out
}

// between gives the two of in samples, and the second's share, that make sample i of out by linear interpolation.
// Reference: torch.nn.functional.interpolate, mode "bilinear", align_corners false.
func between(i, in, out int) (lo, hi int, share float32) {
	at := max(0, float32(in)/float32(out)*(float32(i)+0.5)-0.5)
	lo = min(int(at), in-1)
	return lo, min(lo+1, in-1), at - float32(lo)
}

// Given is the connector of a tower that is a ready-made graph with it: nothing is known of them but what they give.
type Given struct {
	// PerTile is the number of patch embeddings of a tile.
	PerTile, TextHidden int
}

// Tokens is what the graph gives.
func (c Given) Tokens(ViT) int { return c.PerTile }

// Width is the text model's.
func (c Given) Width() int { return c.TextHidden }

// Validate refuses every tower: no graph can be built.
func (c Given) Validate(ViT) error {
	return errors.New("the connector is known as a ready-made graph only")
}

func (c Given) build(_ *graph.Builder, x string, _ ViT) string { return x }

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
	x = b.Linear(b.Narrow(b.Rows(x, t.Hidden)), "connector.linear", t.Hidden, c.TextHidden, true)
	return b.Blocks(x, c.Tokens(t), c.TextHidden)
}
