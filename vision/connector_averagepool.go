package vision

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// AveragePool is the connector of Gemma 3: the means of square blocks of neighbouring patches, TokensPerSide blocks a
// side; an RMS norm whose factor is 1 + weight and whose epsilon is the tower's; one matrix without a bias.
type AveragePool struct {
	separateTiles
	TextHidden, TokensPerSide int
}

// Tokens is the number of blocks of a tile.
func (c AveragePool) Tokens(ViT) int { return c.TokensPerSide * c.TokensPerSide }

// Width is the text model's.
func (c AveragePool) Width() int { return c.TextHidden }

// Validate refuses a tower of another number of whole blocks a side. Patches past the last whole block are not seen.
func (c AveragePool) Validate(t ViT) error {
	side := t.Side()
	if c.TokensPerSide < 1 || c.TokensPerSide > side || side/(side/c.TokensPerSide) != c.TokensPerSide {
		return fmt.Errorf("mm_tokens_per_image is %d×%d, which the %d patches a side do not give by means of equal blocks",
			c.TokensPerSide, c.TokensPerSide, side)
	}
	if n := t.Outputs(); n != t.Patches() {
		return fmt.Errorf("the tower gives %d hidden states of %d patches, want one for each", n, t.Patches())
	}
	return nil
}

// Reference: transformers Gemma3MultiModalProjector.
func (c AveragePool) build(b *graph.Builder, x string, t ViT) string {
	side, d := int64(t.Side()), int64(t.Width())
	block := t.Side() / c.TokensPerSide
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, b.Wide(x))
	x = b.Op("Reshape", nil, x, b.I64s(-1, d, side, side))
	x = b.Op("AveragePool", onnx.Attrs{"kernel_shape": []int{block, block}, "strides": []int{block, block}}, x)
	x = b.Op("Reshape", nil, x, b.I64s(-1, d, int64(c.Tokens(t))))
	x = b.Rows(b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, x), t.Width())
	unit := b.UnitNorms
	b.UnitNorms = true
	x = b.RMSNorm(x, "connector.mm_soft_emb_norm", t.Width(), t.Eps)
	b.UnitNorms = unit
	x = b.Op("MatMul", nil, x, b.Operand("connector.mm_input_projection_weight", t.Width(), c.TextHidden))
	return b.Blocks(x, c.Tokens(t), c.TextHidden)
}
