package vision

import "github.com/mmserve/mmserve/internal/graph"

// BlockMerger is the merger of the Qwen-VL family: each patch is normalised, and two linear layers with a GELU between
// map those of a block, one after the other, to the text model's width.
type BlockMerger struct{ Norm Norm }

// Validate accepts every tower.
func (m BlockMerger) Validate(AnySize) error { return nil }

func (m BlockMerger) build(b *graph.Builder, x, prefix string, t AnySize) string {
	return blockMerger{norm: m.Norm}.build(b, x, prefix, t)
}

// blockMerger is BlockMerger, or one that normalises after patches were put together.
type blockMerger struct {
	norm  Norm
	after bool
}

// Reference: transformers Qwen2VL PatchMerger, Qwen3VLVisionPatchMerger, PaddleOCRProjector.
func (m blockMerger) build(b *graph.Builder, x, prefix string, t AnySize) string {
	wide := t.MergeSize * t.MergeSize * t.Hidden
	if !m.after {
		x = m.norm.build(b, x, prefix+"norm", t.Hidden)
	}
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(wide)))
	if m.after {
		x = m.norm.build(b, x, prefix+"norm", wide)
	}
	x = b.Activated(x, prefix+"linear_1", wide, wide, true, "gelu")
	return b.Linear(x, prefix+"linear_2", wide, t.merged(), true)
}
