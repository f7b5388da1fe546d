package families

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
)

// textConfig is text_config. It is decoded over the defaults of the class that its model_type names, because
// checkpoints leave out what they do not change.
type textConfig struct {
	Type         string   `json:"model_type"`
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
	Partial      *float64 `json:"partial_rotary_factor"`

	// Sliding windows: the size, which of Qwen2's layers have one, and in newer files the kind of every layer.
	Window     *int     `json:"sliding_window"`
	UseWindow  *bool    `json:"use_sliding_window"`
	MaxWindow  int      `json:"max_window_layers"`
	LayerTypes []string `json:"layer_types"`

	// Gemma 2
	QueryScalar *float64 `json:"query_pre_attn_scalar"`
	Softcap     *float32 `json:"attn_logit_softcapping"`
}

// textClass is a decoder class of transformers: its defaults, and what it does that no setting says.
type textClass struct {
	defaults func() textConfig
	finish   func(textConfig, *decoder.Config)
}

// textClasses are keyed by text_config.model_type. The defaults are those of transformers 5.12.1.
var textClasses = map[string]textClass{
	"llama": {defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 11008, Layers: 32, Heads: 32, Vocab: 32000, MaxLen: 2048, Eps: 1e-6, Activation: "silu",
		}
	}},
	"mistral": {defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 14336, Layers: 32, Heads: 32, KVHeads: new(8), Vocab: 32000, MaxLen: 4096 * 32,
			Eps:        1e-6,
			Activation: "silu", Window: new(4096),
		}
	}, finish: func(c textConfig, d *decoder.Config) {
		d.Windows = c.windows(func(int) bool { return true })
	}},
	"qwen2": {defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 22016, Layers: 32, Heads: 32, KVHeads: new(32), Vocab: 151936, MaxLen: 32768, Eps: 1e-6,
			Activation: "silu", UseWindow: new(false), Window: new(4096), MaxWindow: 28,
		}
	}, finish: func(c textConfig, d *decoder.Config) {
		d.QKVBias = true
		d.Windows = c.windows(func(layer int) bool { return layer >= c.MaxWindow })
	}},
	"gemma": {defaults: func() textConfig {
		return textConfig{
			Hidden: 3072, Intermediate: 24576, Layers: 28, Heads: 16, KVHeads: new(16), HeadDim: new(256), Vocab: 256000,
			MaxLen: 8192,
			Eps:    1e-6, Tied: new(true),
		}
	}, finish: gemma},
	"gemma2": {defaults: func() textConfig {
		return textConfig{
			Hidden: 2304, Intermediate: 9216, Layers: 26, Heads: 8, KVHeads: new(4), HeadDim: new(256), Vocab: 256000,
			MaxLen: 8192,
			Eps:    1e-6, Tied: new(true), Window: new(4096), QueryScalar: new(256.0), Softcap: new(float32(50)),
		}
	}, finish: func(c textConfig, d *decoder.Config) {
		gemma(c, d)
		d.SandwichNorms = true
		d.Windows = c.windows(func(layer int) bool { return layer%2 == 0 })
		if c.QueryScalar != nil {
			d.AttentionScale = float32(1 / math.Sqrt(*c.QueryScalar))
		}
		if c.Softcap != nil {
			d.Softcap = *c.Softcap
		}
	}},
}

// gemma has the tanh form of gelu whatever hidden_act says: files of the first release say "gelu" and mean it.
func gemma(c textConfig, d *decoder.Config) {
	d.Activation = "gelu_pytorch_tanh"
	d.UnitNorms = true
	d.EmbedScale = float32(math.Sqrt(float64(c.Hidden)))
}

// windows is the window of each layer, nil when none has one. sliding tells for files without layer_types.
func (c textConfig) windows(sliding func(layer int) bool) []int {
	if c.Window == nil || c.UseWindow != nil && !*c.UseWindow || *c.Window >= c.MaxLen {
		return nil
	}
	list := make([]int, max(0, min(c.Layers, 1<<16)))
	for i := range list {
		in := sliding(i)
		if i < len(c.LayerTypes) {
			in = c.LayerTypes[i] == "sliding_attention"
		}
		if in {
			list[i] = *c.Window
		}
	}
	return list
}

// rope is rope_parameters (5.x) or rope_scaling (4.x).
type rope struct {
	Theta        *float64 `json:"rope_theta"`
	Type         string   `json:"rope_type"`
	Old          string   `json:"type"`
	Factor       float64  `json:"factor"`
	Original     *int     `json:"original_max_position_embeddings"`
	Low          float64  `json:"low_freq_factor"`
	High         float64  `json:"high_freq_factor"`
	Fast         *float64 `json:"beta_fast"`
	Slow         *float64 `json:"beta_slow"`
	Truncate     *bool    `json:"truncate"`
	Attention    *float64 `json:"attention_factor"`
	MScale       float64  `json:"mscale"`
	MScaleAllDim float64  `json:"mscale_all_dim"`
	Partial      *float64 `json:"partial_rotary_factor"`
	Sections     []int    `json:"mrope_section"`
	Interleaved  bool     `json:"mrope_interleaved"`
}

// apply sets what r says over what out has. Reference: transformers ROPE_INIT_FUNCTIONS.
func (r rope) apply(out *decoder.Rope, maxLen int) error {
	if r.Theta != nil {
		out.Theta = *r.Theta
	}
	if r.Partial != nil && *r.Partial != 1 {
		return fmt.Errorf("partial_rotary_factor is %g, supported is 1", *r.Partial)
	}
	kind := r.Type
	if kind == "" {
		kind = r.Old
	}
	out.Factor, out.OriginalMaxLen = r.Factor, maxLen
	if r.Original != nil {
		out.OriginalMaxLen = *r.Original
	}
	switch kind {
	case "", "default", "mrope":
		out.Scaling = decoder.RopeUnscaled
	case "linear":
		out.Scaling = decoder.RopeLinear
	case "llama3":
		out.Scaling, out.LowFreq, out.HighFreq = decoder.RopeLlama3, r.Low, r.High
	case "yarn":
		out.Scaling, out.BetaFast, out.BetaSlow, out.Truncate = decoder.RopeYarn, 32, 1, true
		if r.Fast != nil {
			out.BetaFast = *r.Fast
		}
		if r.Slow != nil {
			out.BetaSlow = *r.Slow
		}
		if r.Truncate != nil {
			out.Truncate = *r.Truncate
		}
		scale := func(m float64) float64 { return 0.1*m*math.Log(max(r.Factor, 1)) + 1 }
		switch {
		case r.Attention != nil:
			out.Magnitude = *r.Attention
		case r.MScale != 0 && r.MScaleAllDim != 0:
			out.Magnitude = scale(r.MScale) / scale(r.MScaleAllDim)
		default:
			out.Magnitude = scale(1)
		}
	default:
		return fmt.Errorf("rope type %q is not supported; supported are default, linear, llama3, yarn", kind)
	}
	return nil
}

// parseText reads a text_config; class is that of one which names none. tied is nil where neither the file nor the
// class says whether the head is the embedding table.
func parseText(raw json.RawMessage, class string) (d decoder.Config, tied *bool, err error) {
	head := struct {
		Type string `json:"model_type"`
	}{class}
	fail := func(err error) (decoder.Config, *bool, error) {
		return decoder.Config{}, nil, fmt.Errorf("text_config: %w", err)
	}
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return fail(err)
	}
	t, ok := textClasses[head.Type]
	if !ok {
		return fail(fmt.Errorf("model_type %q is not supported; supported are %s", head.Type, strings.Join(slices.Sorted(maps.Keys(textClasses)), ", ")))
	}
	c := t.defaults()
	if err := json.Unmarshal(raw, &c); err != nil {
		return fail(err)
	}
	if c.Partial != nil && *c.Partial != 1 {
		return fail(errors.New("partial_rotary_factor is not 1, the only value that is supported"))
	}
	d = decoder.Config{
		Layers: c.Layers, Hidden: c.Hidden, Intermediate: c.Intermediate, Heads: c.Heads, KVHeads: c.Heads,
		Vocab: c.Vocab, MaxLen: c.MaxLen, Rope: decoder.Rope{Theta: 10000}, Eps: c.Eps, Activation: c.Activation,
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
		d.Rope.Theta = *c.RopeTheta
	}
	for _, r := range []*rope{c.RopeScaling, c.Rope} {
		if r == nil {
			continue
		}
		if err := r.apply(&d.Rope, c.MaxLen); err != nil {
			return fail(err)
		}
	}
	if t.finish != nil {
		t.finish(c, &d)
	}
	return d, c.Tied, d.Validate()
}
