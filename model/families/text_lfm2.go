package families

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
)

// lfm2Config is what only LFM2's text_config has.
type lfm2Config struct {
	Eps        float32  `json:"norm_eps"`
	Theta      *float64 `json:"theta"`
	Taps       int      `json:"conv_L_cache"`
	Bias       bool     `json:"conv_bias"`
	FF         *int     `json:"block_ff_dim"`
	Adjust     bool     `json:"block_auto_adjust_ff_dim"`
	Multiplier *float64 `json:"block_ffn_dim_multiplier"`
	MultipleOf int      `json:"block_multiple_of"`
	FullLayers []int    `json:"full_attn_idxs"`
	Tied       *bool    `json:"tie_embedding"`
}

func init() {
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 2560, Intermediate: 12288, Layers: 32, Heads: 32, KVHeads: new(8), Vocab: 65536, MaxLen: 128000,
			Activation: "silu", RopeTheta: new(1e6), Tied: new(true),
		}
	}, finish: lfm2Text}, "lfm2")
}

// lfm2Text is LFM2's decoder: most of its layers are short convolutions. Its tensors have names of their own: see
// lfm2TextPrefixes.
// Reference: transformers Lfm2Config, Lfm2Model.
func lfm2Text(c textConfig, d *decoder.Config) error {
	l := lfm2Config{Eps: 1e-5, Taps: 3, Adjust: true, Multiplier: new(1.0), MultipleOf: 256}
	if err := json.Unmarshal(c.raw, &l); err != nil {
		return err
	}
	d.Activation, d.Eps, d.QKNorm = "silu", l.Eps, true
	d.QKVBias, d.OBias, d.MLPBias = false, false, false
	if l.Theta != nil && (c.Rope == nil || c.Rope.Theta == nil) {
		d.Rope.Theta = *l.Theta
	}
	if l.FF != nil {
		d.Intermediate = *l.FF
	}
	var err error
	if d.Intermediate, err = l.width(d.Intermediate); err != nil {
		return err
	}
	layers, err := l.convolutions(c)
	if err != nil {
		return err
	}
	if slices.Contains(layers, true) {
		d.ShortConv = &decoder.ShortConv{Taps: l.Taps, Bias: l.Bias, Layers: layers}
	}
	return nil
}

// width is the width of the MLP, which the file's number is made into.
func (l lfm2Config) width(n int) (int, error) {
	if n < 1 || n > maxMLP {
		return 0, fmt.Errorf("intermediate_size (block_ff_dim) is %d, want 1 to %d", n, maxMLP)
	}
	if !l.Adjust {
		return n, nil
	}
	n = 2 * n / 3
	if m := l.Multiplier; m != nil {
		if !(*m > 0 && *m <= 16) {
			return 0, fmt.Errorf("block_ffn_dim_multiplier is %g, want more than 0, up to 16", *m)
		}
		n = int(*m * float64(n))
	}
	if l.MultipleOf < 1 || l.MultipleOf > maxMLP {
		return 0, fmt.Errorf("block_multiple_of is %d, want 1 to %d", l.MultipleOf, maxMLP)
	}
	return (n + l.MultipleOf - 1) / l.MultipleOf * l.MultipleOf, nil
}

// convolutions says which layers are short convolutions: by layer_types, or those that full_attn_idxs does not name,
// which is all of them where it is missing.
func (l lfm2Config) convolutions(c textConfig) ([]bool, error) {
	list := make([]bool, max(0, min(c.Layers, maxLayers)))
	if c.LayerTypes == nil {
		for i := range list {
			list[i] = l.FullLayers != nil && !slices.Contains(l.FullLayers, i)
		}
		return list, nil
	}
	if len(c.LayerTypes) != len(list) {
		return nil, fmt.Errorf("layer_types has %d layers, num_hidden_layers is %d", len(c.LayerTypes), c.Layers)
	}
	for i, kind := range c.LayerTypes {
		if kind != fullLayer && kind != "conv" {
			return nil, fmt.Errorf("layer_types[%d] is %q, supported are %s and conv", i, kind, fullLayer)
		}
		list[i] = kind == "conv"
	}
	return list, nil
}

// lfm2TextPrefixes are the names of LFM2's tensors below prefix.
func lfm2TextPrefixes(prefix string) []graph.Prefix {
	return []graph.Prefix{
		{From: prefix + "embedding_norm.", To: "text.norm."},
		{From: prefix, To: "text.", Parts: []graph.Part{
			{From: ".operator_norm.", To: ".input_layernorm."},
			{From: ".ffn_norm.", To: ".post_attention_layernorm."},
			{From: ".self_attn.out_proj.", To: ".self_attn.o_proj."},
			{From: ".self_attn.q_layernorm.", To: ".self_attn.q_norm."},
			{From: ".self_attn.k_layernorm.", To: ".self_attn.k_norm."},
			{From: ".feed_forward.w1.", To: ".mlp.gate_proj."},
			{From: ".feed_forward.w3.", To: ".mlp.up_proj."},
			{From: ".feed_forward.w2.", To: ".mlp.down_proj."},
		}},
	}
}
