package families

import (
	"encoding/json"
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Checkpoint: paddleOCRVL}, "paddleocr_vl") }

// paddleVision is vision_config of PaddleOCR-VL over the defaults of its class.
type paddleVision struct {
	visionConfig
	Merge int `json:"spatial_merge_size"`
}

// paddleOCRVL reads PaddleOCR-VL: SigLIP's layers with rotary positions and a table of them that is brought to an
// image's shape, a merger like Qwen2-VL's, and positions in three axes.
// Reference: transformers PaddleOCRVLForConditionalGeneration.
func paddleOCRVL(config []byte) (Spec, error) {
	c := qwenConfig{ImageToken: 100295, placeholder: "<|IMAGE_PLACEHOLDER|>"}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	v := paddleVision{visionConfig: visionConfig{
		Hidden: 1152, Intermediate: 4304, Layers: 27, Heads: 16, ImageSize: 384, PatchSize: 14, Eps: 1e-6,
		Activation: "gelu_pytorch_tanh",
	}, Merge: 2}
	if len(c.VisionRaw) > 0 {
		if err := json.Unmarshal(c.VisionRaw, &v); err != nil {
			return Spec{}, fmt.Errorf("vision_config: %w", err)
		}
	}
	if v.Channels != 0 && v.Channels != 3 {
		return Spec{}, fmt.Errorf("vision_config.num_channels is %d, supported is 3", v.Channels)
	}
	if err := inRange(limited{"vision_config.patch_size", v.PatchSize, 64},
		limited{"vision_config.image_size", v.ImageSize, maxPixels}); err != nil {
		return Spec{}, err
	}
	s, err := c.spec(config, "paddleocr_vl_text", vision.AnySize{
		NativeResolution: vision.NativeResolution{PatchSize: v.PatchSize, MergeSize: v.Merge},
		Hidden:           v.Hidden, Intermediate: v.Intermediate, Layers: v.Layers, Heads: v.Heads, Activation: v.Activation,
		Norm: vision.Norm{Eps: v.Eps}, PatchBias: true, QKVBias: true, OutBias: true, MLPBias: true, PostNorm: true,
		Rope:      vision.AxisRope{Theta: 10000},
		Positions: vision.PositionTable{Side: v.ImageSize / v.PatchSize, Sampling: vision.Centres},
		Merger:    vision.BlockMerger{Norm: vision.Norm{Eps: 1e-5}},
	})
	s.ImageProcessor = "PaddleOCRVLImageProcessor"
	s.Prefixes = paddlePrefixes
	return s, err
}

// paddlePrefixes are the names of all generations of files.
var paddlePrefixes = []graph.Prefix{
	{From: "visual.vision_model.", To: "vision."},
	{From: "mlp_AR.", To: "connector.", Parts: []graph.Part{{From: "pre_norm.", To: "norm."}}},
	{From: "model.", To: "text."},
}
