package vision

import "github.com/mmserve/mmserve/internal/graph"

// MLPMerger is the merger of LLaVA with a Pixtral tower: two linear layers with an activation between, for each patch.
type MLPMerger struct {
	Activation string
	Bias       bool
}

// Validate refuses blocks of several patches and an activation that is not known.
func (m MLPMerger) Validate(t AnySize) error {
	if t.MergeSize != 1 {
		return errBlocks
	}
	return graph.CheckActivation("projector_hidden_act", m.Activation)
}

// Reference: transformers LlavaMultiModalProjector.
func (m MLPMerger) build(b *graph.Builder, x, prefix string, t AnySize) string {
	x = b.Activated(b.Narrow(x), prefix+"linear_1", t.Hidden, t.merged(), m.Bias, m.Activation)
	return b.Linear(x, prefix+"linear_2", t.merged(), t.merged(), m.Bias)
}
