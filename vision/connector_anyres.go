package vision

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
)

// AnyRes is the connector of LLaVA-NeXT and LLaVA-OneVision: MLP, and then the tiles of an image put together again:
// the patches of the whole, then the rows of the map that its tiles make, without the bars that padded it, a learned
// vector after each row. A map of far more patches than MaxTiles tiles have is made smaller first; 0 leaves every map
// its size. An image of one tile is its patches and the vector.
type AnyRes struct {
	MLP
	MaxTiles int
	// Pinpoints are config.json's. A served image is cut by the preprocessor's, which are the same by custom.
	Pinpoints Pinpoints
}

// Validate refuses a tower whose hidden states are not one for each patch.
func (c AnyRes) Validate(t ViT) error {
	if n := t.Outputs(); n != t.Patches() {
		return fmt.Errorf("vision_feature_select_strategy leaves %d hidden states of %d patches, want one for each: "+
			"tiles are put together patch by patch", n, t.Patches())
	}
	return c.MLP.Validate(t)
}

// Grid is the best of Pinpoints for an image of w×h pixels.
func (c AnyRes) Grid(t ViT, w, h int) Grid { return c.Pinpoints.Grid(w, h, t.ImageSize) }

// packWeights is the vector that ends a row.
func (c AnyRes) packWeights() []graph.Shape {
	return []graph.Shape{{Name: "image_newline", Dims: []int{c.Width()}}}
}

// Reference: transformers LlavaOnevisionProcessor._get_number_of_features.
func (c AnyRes) packedTokens(t ViT, g Grid, tokens int) int {
	if g.Rows == 0 {
		return tokens + 1
	}
	_, _, rows, cols := c.kept(t, g)
	if r, k, ok := c.shrunk(t, rows, cols); ok {
		rows, cols = r, k
	}
	return tokens + rows*(cols+1)
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
	if c.MaxTiles == 0 {
		return 0, 0, false
	}
	ratio := math.Sqrt(float64(rows*cols) / float64(c.MaxTiles*t.Patches()))
	if ratio <= 1.1 {
		return 0, 0, false
	}
	return int(float64(rows) / ratio), int(float64(cols) / ratio), true
}

// pack makes [tokens, width] of an image's patches [tiles, patches, width].
// Reference: transformers LlavaOnevisionModel.pack_image_features.
func (c AnyRes) pack(t ViT, g Grid, patches []float32, weights [][]float32) []float32 {
	newline := weights[0]
	width, side, n := c.Width(), t.Side(), c.Tokens(t)
	out := make([]float32, 0, c.packedTokens(t, g, n)*width)
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
