package vision

import "github.com/mmserve/mmserve/internal/graph"

// ShuffleMerger is the merger of LFM2-VL: two linear layers with an activation between map a block's patches, one after
// the other, to the text model's width.
type ShuffleMerger struct {
	// Inner is the width between the layers.
	Inner      int
	Activation string
	// Norm normalises a block before, Bias says whether the layers carry one.
	Norm, Bias bool
}

// Validate refuses a width and an activation that nothing can be built from.
func (m ShuffleMerger) Validate(AnySize) error {
	if m.Inner < 1 || m.Inner > 1<<20 {
		return errInner
	}
	return graph.CheckActivation("projector_hidden_act", m.Activation)
}

// Reference: transformers Lfm2VlMultiModalProjector.
func (m ShuffleMerger) build(b *graph.Builder, x, prefix string, t AnySize) string {
	wide := t.MergeSize * t.MergeSize * t.Hidden
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(wide)))
	if m.Norm {
		x = b.LayerNorm(x, prefix+"layer_norm", wide, 1e-5)
	} else {
		x = b.Narrow(x)
	}
	x = b.Activated(x, prefix+"linear_1", wide, m.Inner, m.Bias, m.Activation)
	return b.Linear(x, prefix+"linear_2", m.Inner, t.merged(), m.Bias)
}
