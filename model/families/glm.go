package families

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() {
	Register(Family{Checkpoint: glmOCR}, "glm_ocr")
	Register(Family{Checkpoint: glm4V}, "glm4v", "glm46v")
}

// glmConfig is the part of vision_config that GLM's towers have beside Qwen's.
type glmConfig struct {
	qwenConfig
	Eps       float32
	Bias      bool
	ImageSize int
}

func (c *glmConfig) read(config []byte) error {
	if err := c.qwenConfig.read(config); err != nil {
		return err
	}
	v := struct {
		Eps       *float32 `json:"rms_norm_eps"`
		Bias      *bool    `json:"attention_bias"`
		ImageSize *int     `json:"image_size"`
	}{&c.Eps, &c.Bias, &c.ImageSize}
	if len(c.VisionRaw) > 0 {
		if err := json.Unmarshal(c.VisionRaw, &v); err != nil {
			return fmt.Errorf("vision_config: %w", err)
		}
	}
	return inRange(limited{"vision_config.image_size", c.ImageSize, maxPixels})
}

// glmPrefixes are the names of all generations of files. Those of the text model that stand behind its layers, which
// predict further tokens, are not read.
var glmPrefixes = slices.Concat(glmTower("model.visual."), glmTower("visual."), []graph.Prefix{
	{From: "model.language_model.", To: "text.", Parts: glmTextParts},
	{From: "model.", To: "text.", Parts: glmTextParts},
})

func glmTower(at string) []graph.Prefix {
	parts := slices.Concat(qwenParts, []graph.Part{
		{From: "attn.q_norm.", To: "self_attn.q_norm."}, {From: "attn.k_norm.", To: "self_attn.k_norm."},
		{From: "post_conv_layernorm.", To: "pre_layernorm."},
	})
	return []graph.Prefix{
		{From: at + "downsample.", To: "connector.downsample."}, {From: at + "merger.", To: "connector."},
		{From: at, To: "vision.", Parts: parts},
	}
}

// glmSpec is a model of a tower of GLM's kind.
func (c *glmConfig) glmSpec(config []byte, class string, t vision.AnySize) (Spec, error) {
	c.placeholder = "<|image|>"
	s, err := c.spec(config, class, t)
	s.ImageProcessor, s.Prefixes, s.PredictorLayers = "Glm46VImageProcessor", glmPrefixes, 1
	return s, err
}

// glmOCR reads GLM-OCR: queries and keys of the tower are normalised by head.
// Reference: transformers GlmOcrForConditionalGeneration.
func glmOCR(config []byte) (Spec, error) {
	c := glmConfig{Eps: 1e-5, Bias: true, ImageSize: 336}
	c.ImageToken, c.Vision = 59280, qwenVision{
		Depth: 24, Hidden: 1024, Out: 1536, Intermediate: 4096, Heads: 16, Activation: "silu",
	}
	if err := c.read(config); err != nil {
		return Spec{}, err
	}
	t, err := c.tower()
	if err != nil {
		return Spec{}, err
	}
	t.Norm, t.GatedMLP, t.QKNorm, t.PatchBias, t.PostNorm = vision.Norm{RMS: true, Eps: c.Eps}, true, true, true, true
	t.QKVBias, t.OutBias, t.MLPBias = c.Bias, c.Bias, c.Bias
	t.Merger = vision.DownsampleMerger{Inner: 3 * t.Width, Activation: t.Activation}
	return c.glmSpec(config, "glm_ocr_text", t)
}

// glm4V reads GLM-4.1V and GLM-4.6V-Flash: a norm behind the patch projection, and a table of positions that is sampled
// for an image's shape.
// Reference: transformers Glm4vForConditionalGeneration, Glm46VForConditionalGeneration.
func glm4V(config []byte) (Spec, error) {
	c := glmConfig{Eps: 1e-5, ImageSize: 336}
	c.ImageToken, c.Vision = 151343, qwenVision{
		Depth: 24, Hidden: 1536, Out: 4096, Intermediate: 13696, Heads: 12, Activation: "silu",
	}
	if err := c.read(config); err != nil {
		return Spec{}, err
	}
	t, err := c.tower()
	if err != nil {
		return Spec{}, err
	}
	t.Norm, t.GatedMLP, t.PatchNorm, t.PatchBias, t.PostNorm = vision.Norm{RMS: true, Eps: c.Eps}, true, true, true, true
	t.QKVBias, t.OutBias, t.MLPBias = c.Bias, false, false
	t.Positions = vision.PositionTable{Side: c.ImageSize / t.PatchSize, Sampling: vision.Cubic}
	// The layers have the width of the output, and the merger that of the layers.
	t.Merger, t.Intermediate = vision.DownsampleMerger{Inner: t.Intermediate, Activation: t.Activation}, t.Width
	return c.glmSpec(config, "glm4v_text", t)
}
