package families

import (
	"fmt"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
)

func init() {
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 1024, Intermediate: 4096, Layers: 16, Heads: 16, KVHeads: new(8), Vocab: 59392, MaxLen: 131072, Eps: 1e-5,
			Activation: "silu",
		}
	}, finish: func(c textConfig, d *decoder.Config) error { return glmText(c, d, false) }}, "glm_ocr_text")
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 13696, Layers: 40, Heads: 32, KVHeads: new(2), Vocab: 151552, MaxLen: 32768, Eps: 1e-5,
			Activation: "silu",
		}
	}, finish: func(c textConfig, d *decoder.Config) error { return glmText(c, d, true) }}, "glm4v_text")
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 1024, Intermediate: 3072, Layers: 18, Heads: 16, KVHeads: new(2), HeadDim: new(128), Vocab: 103424,
			MaxLen: 131072, Eps: 1e-5, Activation: "silu", RopeTheta: new(5e5), Tied: new(true),
		}
	}, finish: func(c textConfig, d *decoder.Config) (err error) {
		d.QKVBias, d.OBias, d.MLPBias = c.UseBias, c.UseBias, c.UseBias
		d.MRope, err = c.sections(nil, false)
		return err
	}}, "paddleocr_vl_text", "paddleocr_vl")
}

// glmText is GLM's decoder: norms behind attention and MLP as well, one matrix for gate and up, and pairs of values
// beside each other that rotate. Its tensors have names of their own: see glmTextParts.
// Reference: transformers Glm4vTextModel, GlmOcrTextModel.
func glmText(c textConfig, d *decoder.Config, biases bool) (err error) {
	d.QKVBias, d.OBias, d.MLPBias = biases, false, false
	d.SandwichNorms, d.GateUp, d.RopePairs = true, true, true
	for _, p := range c.partials() {
		if p == nil {
			continue
		}
		if !(*p > 0 && *p <= 1) {
			return fmt.Errorf("partial_rotary_factor is %g, want more than 0, up to 1", *p)
		}
		if d.RotaryDim = int(float64(d.HeadDim) * *p); d.RotaryDim < 2 {
			return fmt.Errorf("partial_rotary_factor is %g of head_dim %d, want 2 values or more", *p, d.HeadDim)
		}
		break
	}
	d.MRope, err = c.sections([]int{8, 12, 12}, false)
	return err
}

// glmTextParts are GLM's names of the norms. Renaming goes from the first to the last.
var glmTextParts = []graph.Part{
	{From: ".post_attention_layernorm.", To: ".pre_feedforward_layernorm."},
	{From: ".post_self_attn_layernorm.", To: ".post_attention_layernorm."},
	{From: ".post_mlp_layernorm.", To: ".post_feedforward_layernorm."},
}
