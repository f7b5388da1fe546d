package families

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Checkpoint: qwen3VL}, "qwen3_vl") }

// qwen3VL reads Qwen3-VL: a table of positions that is brought to an image's shape, and hidden states of some of the
// tower's layers that are added behind the decoder's first.
// Reference: transformers Qwen3VLForConditionalGeneration.
func qwen3VL(config []byte) (Spec, error) {
	c := qwenConfig{ImageToken: 151655, Vision: qwenVision{
		Depth: 27, Hidden: 1152, Out: 3584, Intermediate: 4304, Heads: 16, Activation: "gelu_pytorch_tanh",
		Patch: new(16), Positions: 2304, Deepstack: []int{8, 16, 24},
	}}
	if err := c.read(config); err != nil {
		return Spec{}, err
	}
	t, err := c.tower()
	if err != nil {
		return Spec{}, err
	}
	t.PatchBias, t.Deepstack, t.Merger = true, c.Vision.Deepstack, vision.BlockMerger{Norm: t.Norm}
	side := int(math.Sqrt(float64(max(c.Vision.Positions, 0))))
	if side < 1 || side*side != c.Vision.Positions {
		return Spec{}, fmt.Errorf("vision_config.num_position_embeddings is %d, want a square", c.Vision.Positions)
	}
	t.Positions = vision.PositionTable{Side: side, Sampling: vision.Corners}
	s, err := c.spec(config, "qwen3_vl_text", t)
	s.Prefixes = qwen3Prefixes
	return s, err
}

var qwen3Prefixes = qwenPrefixes([]graph.Part{{From: "linear_fc", To: "linear_"}},
	[]graph.Part{{From: "pos_embed.", To: "embeddings.position_embedding."}, {From: "mlp.linear_fc", To: "mlp.fc"}})
