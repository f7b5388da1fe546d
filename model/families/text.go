package families

import (
	"encoding/json"
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
	Rope         *ropes   `json:"rope_parameters"`
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
	// Gemma 3: the activation by its later name, the base of windowed layers, and every how many layers has no window.
	HiddenActivation string          `json:"hidden_activation"`
	LocalTheta       *float64        `json:"rope_local_base_freq"`
	Pattern          *int            `json:"sliding_window_pattern"`
	BothWays         json.RawMessage `json:"use_bidirectional_attention"`
	// Granite
	EmbeddingMultiplier float32 `json:"embedding_multiplier"`
	AttentionMultiplier float32 `json:"attention_multiplier"`
	ResidualMultiplier  float32 `json:"residual_multiplier"`
	// PaddleOCR-VL
	UseBias bool `json:"use_bias"`

	raw json.RawMessage // the whole of it
}

// textClass is a decoder class of transformers: its defaults, and what it does that no setting says.
type textClass struct {
	defaults func() textConfig
	finish   func(textConfig, *decoder.Config) error
}

// textClasses are keyed by text_config.model_type; the files text_<kind>.go hold them. The defaults are those of
// transformers 5.12.1.
var textClasses = map[string]textClass{}

func registerText(c textClass, modelTypes ...string) {
	for _, t := range modelTypes {
		textClasses[t] = c
	}
}

func init() {
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 11008, Layers: 32, Heads: 32, Vocab: 32000, MaxLen: 2048, Eps: 1e-6, Activation: "silu",
		}
	}}, "llama")
}

// Kinds of layers in layer_types.
const (
	fullLayer    = "full_attention"
	slidingLayer = "sliding_attention"
)

// windows is the window of each layer, nil when none has one. sliding tells for files without layer_types.
func (c textConfig) windows(sliding func(layer int) bool) ([]int, error) {
	layers := max(0, min(c.Layers, maxLayers))
	if c.LayerTypes != nil && len(c.LayerTypes) != c.Layers {
		return nil, fmt.Errorf("layer_types has %d layers, num_hidden_layers is %d", len(c.LayerTypes), c.Layers)
	}
	in := make([]bool, layers)
	for i := range in {
		in[i] = sliding(i)
		if c.LayerTypes == nil {
			continue
		}
		switch c.LayerTypes[i] {
		case fullLayer, slidingLayer:
			in[i] = c.LayerTypes[i] == slidingLayer
		default:
			return nil, fmt.Errorf("layer_types[%d] is %q, supported are %s and %s", i, c.LayerTypes[i], fullLayer, slidingLayer)
		}
	}
	if c.Window == nil || c.UseWindow != nil && !*c.UseWindow {
		if i := slices.Index(in, true); i >= 0 && c.LayerTypes != nil {
			return nil, fmt.Errorf("layer_types[%d] is %s, but sliding_window is not set", i, slidingLayer)
		}
		return nil, nil
	}
	if *c.Window < 1 {
		return nil, fmt.Errorf("sliding_window is %d, want 1 or more", *c.Window)
	}
	list := make([]int, layers)
	for i, is := range in {
		if is {
			list[i] = *c.Window
		}
	}
	return list, nil
}

// narrow is nil where no window is shorter than the context: such windows are none.
func (c textConfig) narrow(windows []int, err error) ([]int, error) {
	if slices.ContainsFunc(windows, func(n int) bool { return n > 0 && n < c.MaxLen }) {
		return windows, err
	}
	return nil, err
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
	Interleaved  *bool    `json:"mrope_interleaved"`
	Beta         *float64 `json:"llama_4_scaling_beta"`
}

// ropes is rope_parameters: a rope, or one for each kind of layer.
type ropes struct {
	rope
	Full    *rope `json:"full_attention"`
	Sliding *rope `json:"sliding_attention"`
}

func (r rope) kind() string {
	if r.Type != "" {
		return r.Type
	}
	return r.Old
}

// theta gives the rope a base that a file has beside it.
func (r *rope) theta(theta *float64) *rope {
	if theta == nil || r != nil && r.Theta != nil {
		return r
	}
	with := rope{}
	if r != nil {
		with = *r
	}
	with.Theta = theta
	return &with
}

// over is apply for a rope that may not be there.
func (r *rope) over(out *decoder.Rope, maxLen int) error {
	if r == nil {
		return nil
	}
	return r.apply(out, maxLen)
}

// apply sets what r says over what out has. Reference: transformers ROPE_INIT_FUNCTIONS.
func (r rope) apply(out *decoder.Rope, maxLen int) error {
	if r.Theta != nil {
		out.Theta = *r.Theta
	}
	kind := r.kind()
	out.Factor, out.OriginalMaxLen = r.Factor, maxLen
	if r.Original != nil {
		out.OriginalMaxLen = *r.Original
	}
	switch kind {
	case "", "default", mropeType:
		out.Scaling = decoder.RopeUnscaled
	case "dynamic": // scales sequences of more than maxLen positions, of which there are none
		if out.OriginalMaxLen != maxLen {
			return fmt.Errorf("rope type %q with original_max_position_embeddings %d is not supported; supported is "+
				"max_position_embeddings, %d", kind, out.OriginalMaxLen, maxLen)
		}
		out.Scaling, out.Factor = decoder.RopeUnscaled, 0
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
		if !(out.Magnitude > 0 && out.Magnitude <= math.MaxFloat32) {
			return fmt.Errorf("rope attention_factor (or mscale over mscale_all_dim) is %g, want a number above 0", out.Magnitude)
		}
	default:
		return fmt.Errorf("rope type %q is not supported; supported are default, dynamic, linear, llama3, yarn", kind)
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
	c.raw = raw
	if err := json.Unmarshal(raw, &c); err != nil {
		return fail(err)
	}
	if d, err = c.config(); err == nil && t.finish != nil {
		err = t.finish(c, &d)
	}
	if err == nil {
		err = c.refuse(d)
	}
	if err != nil {
		return fail(err)
	}
	return d, c.Tied, d.Validate()
}

// config is what all classes have in common.
func (c textConfig) config() (decoder.Config, error) {
	d := decoder.Config{
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
	for _, r := range c.flat() {
		if err := r.apply(&d.Rope, c.MaxLen); err != nil {
			return d, err
		}
	}
	return d, nil
}

// flat are the ropes that a file gives to all layers: that of 4.x first, then that of 5.x, which counts more.
func (c textConfig) flat() (list []*rope) {
	if c.RopeScaling != nil {
		list = append(list, c.RopeScaling)
	}
	if c.Rope != nil {
		list = append(list, &c.Rope.rope)
	}
	return list
}

// refuse refuses settings that the decoder does not follow: those of other classes.
func (c textConfig) refuse(d decoder.Config) error {
	for _, r := range c.flat() {
		if d.MRope == nil && (r.Sections != nil || r.kind() == mropeType) {
			return fmt.Errorf("mrope_section is not supported with model_type %q", c.Type)
		}
		if d.QueryScaling == nil && r.Beta != nil {
			return fmt.Errorf("llama_4_scaling_beta is not supported with model_type %q", c.Type)
		}
	}
	if d.LocalRope == nil && c.Rope != nil && (c.Rope.Full != nil || c.Rope.Sliding != nil) {
		return fmt.Errorf("rope_parameters for each kind of layer are not supported with model_type %q", c.Type)
	}
	if d.RotaryDim != 0 {
		return nil
	}
	for _, p := range c.partials() {
		if p != nil && *p != 1 {
			return fmt.Errorf("partial_rotary_factor is %g, supported with model_type %q is 1", *p, c.Type)
		}
	}
	return nil
}

// partials are the places where a file may have a partial_rotary_factor, the first that counts first.
func (c textConfig) partials() []*float64 {
	var list []*float64
	for _, r := range slices.Backward(c.flat()) {
		list = append(list, r.Partial)
	}
	return append(list, c.Partial)
}
