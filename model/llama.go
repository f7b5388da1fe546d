package model

import (
	"encoding/json"
	"fmt"

	"github.com/mmserve/mmserve/decoder"
)

// llamaConfig is text_config of a Llama-style decoder, decoded over transformers' LlamaConfig defaults.
type llamaConfig struct {
	Hidden       int      `json:"hidden_size"`
	Intermediate int      `json:"intermediate_size"`
	Layers       int      `json:"num_hidden_layers"`
	Heads        int      `json:"num_attention_heads"`
	KVHeads      *int     `json:"num_key_value_heads"`
	HeadDim      *int     `json:"head_dim"`
	Vocab        int      `json:"vocab_size"`
	MaxLen       int      `json:"max_position_embeddings"`
	Eps          float32  `json:"rms_norm_eps"`
	RopeTheta    *float64 `json:"rope_theta"`
	RopeScaling  *rope    `json:"rope_scaling"`
	Rope         *rope    `json:"rope_parameters"`
	Activation   string   `json:"hidden_act"`
	Tied         *bool    `json:"tie_word_embeddings"`
	AttnBias     bool     `json:"attention_bias"`
	MLPBias      bool     `json:"mlp_bias"`
}

// rope is rope_parameters (5.x) or rope_scaling (4.x).
type rope struct {
	Theta *float64 `json:"rope_theta"`
	Type  string   `json:"rope_type"`
	Old   string   `json:"type"`
}

func parseLlama(raw json.RawMessage) (decoder.Config, *bool, error) {
	c := llamaConfig{
		Hidden: 4096, Intermediate: 11008, Layers: 32, Heads: 32, Vocab: 32000, MaxLen: 2048, Eps: 1e-6, Activation: "silu",
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &c); err != nil {
			return decoder.Config{}, nil, fmt.Errorf("text_config: %w", err)
		}
	}
	d := decoder.Config{
		Layers: c.Layers, Hidden: c.Hidden, Intermediate: c.Intermediate, Heads: c.Heads, KVHeads: c.Heads,
		Vocab: c.Vocab, MaxLen: c.MaxLen, RopeTheta: 10000, Eps: c.Eps, Activation: c.Activation,
		QKVBias: c.AttnBias, OBias: c.AttnBias, MLPBias: c.MLPBias,
	}
	if c.KVHeads != nil {
		d.KVHeads = *c.KVHeads
	}
	if c.HeadDim != nil {
		d.HeadDim = *c.HeadDim
	} else if c.Heads > 0 {
		d.HeadDim = c.Hidden / c.Heads
	}
	if c.RopeTheta != nil {
		d.RopeTheta = *c.RopeTheta
	}
	for field, r := range map[string]*rope{"rope_parameters": c.Rope, "rope_scaling": c.RopeScaling} {
		if r == nil {
			continue
		}
		if r.Theta != nil {
			d.RopeTheta = *r.Theta
		}
		if kind := r.Type + r.Old; kind != "" && r.Type != "default" && r.Old != "default" {
			return d, nil, fmt.Errorf("text_config.%s: rope type %q is not supported; supported is default", field, kind)
		}
	}
	return d, c.Tied, d.Validate()
}
