package vision

import (
	"github.com/mmserve/mmserve/internal/graph"
)

// DownsampleMerger is the merger of GLM's towers: a convolution makes one of the patches of a block, and a projection,
// a norm and a gated layer of Inner values follow.
type DownsampleMerger struct {
	Inner int
	// Activation is the gate's.
	Activation string
}

// Validate refuses a layer without values.
func (m DownsampleMerger) Validate(AnySize) error {
	if m.Inner < 1 || m.Inner > 1<<20 {
		return errInner
	}
	return graph.CheckActivation("vision_config.hidden_act", m.Activation)
}

// Reference: transformers Glm4vVisionPatchMerger, Glm4vVisionModel (downsample).
func (m DownsampleMerger) build(b *graph.Builder, x, prefix string, t AnySize) string {
	side, width := t.MergeSize, t.merged()
	x = unfold(b, b.Wide(x), t)
	x = flatLinear(b, x, prefix+"downsample", true, width, t.Hidden, side, side)
	x = b.Linear(b.Narrow(x), prefix+"proj", width, width, false)
	x = b.Activation("gelu", b.LayerNorm(x, prefix+"post_projection_norm", width, 1e-5))
	x = b.Gated(x, width, false, m.Activation, graph.Out{Prefix: prefix + "gate_proj", Dim: m.Inner},
		graph.Out{Prefix: prefix + "up_proj", Dim: m.Inner})
	return b.Linear(x, prefix+"down_proj", m.Inner, width, false)
}
