package vision

import (
	"errors"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

var (
	errBlocks = errors.New("vision tower: blocks of several patches, which this merger does not take")
	errInner  = errors.New("vision_config: the merger's inner layer has a width out of range, want 1 to 1048576")
)

// UnfoldMerger is the merger of Mistral 3: patches are normalised, those of a block are mixed channel by channel into
// one of their width, and then as in MLPMerger.
type UnfoldMerger struct {
	MLPMerger
	// Eps is that of the RMS norm.
	Eps float32
}

// Validate refuses an activation that is not known.
func (m UnfoldMerger) Validate(AnySize) error {
	return graph.CheckActivation("projector_hidden_act", m.Activation)
}

// Reference: transformers Mistral3MultiModalProjector, Mistral3PatchMerger.
func (m UnfoldMerger) build(b *graph.Builder, x, prefix string, t AnySize) string {
	x = unfold(b, b.RMSNorm(x, prefix+"norm", t.Hidden, m.Eps), t)
	x = b.Linear(x, prefix+"patch_merger.merging_layer", t.MergeSize*t.MergeSize*t.Hidden, t.Hidden, false)
	return m.MLPMerger.build(b, x, prefix, t)
}

// unfold gives a block's values channel by channel, [tokens, hidden·patches of a block], where those of a patch lay
// side by side. Reference: torch.nn.functional.unfold.
func unfold(b *graph.Builder, x string, t AnySize) string {
	patches := t.MergeSize * t.MergeSize
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(patches), int64(t.Hidden)))
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, x)
	return b.Op("Reshape", nil, x, b.I64s(-1, int64(patches*t.Hidden)))
}
