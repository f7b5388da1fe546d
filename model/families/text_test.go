package families

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
)

// What files leave out is as the classes of transformers 5.12.1 fill it in.
func TestTextDefaults(t *testing.T) {
	silu := func(d decoder.Config) decoder.Config {
		if d.Activation == "" {
			d.Activation = "silu"
		}
		return d
	}
	yarn := decoder.Rope{Theta: 1e6, Scaling: decoder.RopeYarn, Factor: 16, OriginalMaxLen: 16384, BetaFast: 32,
		BetaSlow: 1, Truncate: true, Magnitude: 1}
	for text, want := range map[string]decoder.Config{
		`{"model_type": "qwen3"}`: {
			Layers: 32, Hidden: 4096, Intermediate: 22016, Heads: 32, KVHeads: 32, HeadDim: 128, Vocab: 151936, MaxLen: 32768,
			Rope: decoder.Rope{Theta: 1e4}, Eps: 1e-6, QKNorm: true,
		},
		`{"model_type": "granite"}`: {
			Layers: 32, Hidden: 4096, Intermediate: 11008, Heads: 32, KVHeads: 32, HeadDim: 128, Vocab: 32000, MaxLen: 2048,
			Rope: decoder.Rope{Theta: 1e4}, Eps: 1e-6, InputScale: 1, AttentionScale: 1, ResidualScale: 1,
		},
		`{"model_type": "ministral3"}`: {
			Layers: 34, Hidden: 4096, Intermediate: 14336, Heads: 32, KVHeads: 8, HeadDim: 128, Vocab: 131072, MaxLen: 262144,
			Rope: yarn, Eps: 1e-5, QueryScaling: &decoder.QueryScaling{Beta: 0.1, Every: 16384},
		},
		`{"model_type": "qwen3_vl_text"}`: {
			Layers: 32, Hidden: 4096, Intermediate: 22016, Heads: 32, KVHeads: 32, HeadDim: 128, Vocab: 151936, MaxLen: 128000,
			Rope: decoder.Rope{Theta: 5e5}, Eps: 1e-6, QKNorm: true,
			MRope: &decoder.MRope{Sections: [3]int{24, 20, 20}, Interleaved: true},
		},
		`{"model_type": "qwen2_vl_text", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}`: {
			Layers: 80, Hidden: 8192, Intermediate: 29568, Heads: 64, KVHeads: 8, HeadDim: 128, Vocab: 152064, MaxLen: 32768,
			Rope: decoder.Rope{Theta: 1e6, OriginalMaxLen: 32768}, Eps: 1e-5, QKVBias: true,
			MRope: &decoder.MRope{Sections: [3]int{16, 24, 24}},
		},
		`{"model_type": "paddleocr_vl_text", "use_bias": true, "rope_scaling": {"mrope_section": [16, 24, 24]}}`: {
			Layers: 18, Hidden: 1024, Intermediate: 3072, Heads: 16, KVHeads: 2, HeadDim: 128, Vocab: 103424, MaxLen: 131072,
			Rope: decoder.Rope{Theta: 5e5, OriginalMaxLen: 131072}, Eps: 1e-5, QKVBias: true, OBias: true, MLPBias: true,
			MRope: &decoder.MRope{Sections: [3]int{16, 24, 24}},
		},
		`{"model_type": "glm4v_text", "partial_rotary_factor": 0.5}`: {
			Layers: 40, Hidden: 4096, Intermediate: 13696, Heads: 32, KVHeads: 2, HeadDim: 128, Vocab: 151552, MaxLen: 32768,
			Rope: decoder.Rope{Theta: 1e4}, Eps: 1e-5, QKVBias: true, SandwichNorms: true, GateUp: true, RopePairs: true,
			RotaryDim: 64, MRope: &decoder.MRope{Sections: [3]int{8, 12, 12}},
		},
		`{"model_type": "glm_ocr_text"}`: {
			Layers: 16, Hidden: 1024, Intermediate: 4096, Heads: 16, KVHeads: 8, HeadDim: 64, Vocab: 59392, MaxLen: 131072,
			Rope: decoder.Rope{Theta: 1e4}, Eps: 1e-5, SandwichNorms: true, GateUp: true, RopePairs: true,
			MRope: &decoder.MRope{Sections: [3]int{8, 12, 12}},
		},
	} {
		got, _, err := parseText(json.RawMessage(text), "llama")
		if err != nil || !reflect.DeepEqual(got, silu(want)) {
			t.Errorf("%s gives %+v (%v), want %+v", text, got, err, silu(want))
		}
	}
}

// Gemma 3 in the form of the hub's files, which leave out most.
func TestGemma3Text(t *testing.T) {
	// google/gemma-3-4b-it
	d, tied, err := parseText(json.RawMessage(`{"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
		"num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}`), "llama")
	if err != nil || tied == nil || !*tied {
		t.Fatal(err, tied)
	}
	local := decoder.Rope{Theta: 1e4}
	if d.Heads != 8 || d.KVHeads != 4 || d.HeadDim != 256 || d.Vocab != 262208 || d.MaxLen != 131072 || !d.QKNorm ||
		!d.UnitNorms || !d.SandwichNorms || d.AttentionScale != 1./16 || d.Rope.Theta != 1e6 || d.Rope.Factor != 8 ||
		d.Rope.Scaling != decoder.RopeLinear || *d.LocalRope != local || d.EmbedScale != float32(math.Sqrt(2560)) {
		t.Errorf("%+v", d)
	}
	for i, n := range d.Windows {
		if want := 1024 * min(1, (i+1)%6); n != want {
			t.Errorf("layer %d has a window of %d, want %d", i, n, want)
		}
	}
	for text, check := range map[string]func(decoder.Config) bool{
		`"sliding_window_pattern": 2`: func(d decoder.Config) bool { return d.Windows[0] == 4096 && d.Windows[1] == 0 },
		`"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window_pattern": 1`: func(d decoder.Config) bool {
			return d.Windows[0] == 0 && d.Windows[1] == 4096 && d.Windows[2] == 0
		},
		// A window longer than the context still has its own rope.
		`"sliding_window": 8192, "max_position_embeddings": 128`: func(d decoder.Config) bool { return d.Windows[0] == 8192 },
		`"rope_theta": 5e5, "rope_local_base_freq": 2e4`: func(d decoder.Config) bool {
			return d.Rope.Theta == 5e5 && d.LocalRope.Theta == 2e4
		},
		`"rope_parameters": {"sliding_attention": {"rope_theta": 3e4}}`: func(d decoder.Config) bool {
			return d.Rope.Theta == 1e6 && d.LocalRope.Theta == 3e4
		},
		`"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4}, "sliding_attention": {}}, "rope_theta": 2e6`: func(d decoder.Config) bool {
			return d.Rope.Theta == 2e6 && d.Rope.Factor == 4 && d.LocalRope.Theta == 1e4
		},
		`"attn_logit_softcapping": 50, "final_logit_softcapping": 30`: func(d decoder.Config) bool { return d.Softcap == 0 },
		`"hidden_activation": "silu"`:                                 func(d decoder.Config) bool { return d.Activation == "silu" },
	} {
		d, _, err := parseText(json.RawMessage(`{"model_type": "gemma3_text", "num_hidden_layers": 3, `+text+`}`), "llama")
		if err != nil || !check(d) {
			t.Errorf("%s gives %+v %v", text, d, err)
		}
	}
}

// What the decoder would not compute as the reference does is refused by the field's name.
func TestRefusedTexts(t *testing.T) {
	const gemma, qwen3, vl = `"model_type": "gemma3_text", "num_hidden_layers": 2`, `"model_type": "qwen3", "num_hidden_layers": 2`,
		`"model_type": "qwen2_vl_text"`
	for _, c := range []struct{ text, want string }{
		{gemma + `, "use_bidirectional_attention": true`, "use_bidirectional_attention is true"},
		{gemma + `, "sliding_window": null`, "sliding_window is null"},
		{gemma + `, "sliding_window": 0`, "sliding_window is 0"},
		{gemma + `, "sliding_window": -3`, "sliding_window is -3"},
		{gemma + `, "sliding_window_pattern": 0`, "sliding_window_pattern"},
		{gemma + `, "query_pre_attn_scalar": 0`, "query_pre_attn_scalar is 0"},
		{gemma + `, "query_pre_attn_scalar": null`, "query_pre_attn_scalar is null"},
		{gemma + `, "layer_types": ["full_attention"]`, "layer_types has 1 layers"},
		{gemma + `, "layer_types": ["full_attention", "chunked_attention"]`, `layer_types[1] is "chunked_attention"`},
		{gemma + `, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}`, "rope_parameters is one rope"},
		{gemma + `, "rope_parameters": {"sliding_attention": {"rope_type": "longrope"}}`, `rope type "longrope"`},
		{gemma + `, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 0}}`, "rope factor is 0"},
		{gemma + `, "rope_local_base_freq": 0`, "rope_theta is 0, want more than 1 (sliding_attention)"},
		{gemma + `, "hidden_activation": "relu"`, `hidden_act "relu"`},
		{qwen3 + `, "layer_types": ["full_attention", "sliding_attention"]`, "layer_types[1] is sliding_attention, but sliding_window is not set"},
		{qwen3 + `, "use_sliding_window": true, "sliding_window": 0, "max_window_layers": 0`, "sliding_window is 0"},
		{qwen3 + `, "layer_types": ["full_attention", "linear_attention"]`, `"linear_attention"`},
		{qwen3 + `, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}`, `mrope_section is not supported with model_type "qwen3"`},
		{qwen3 + `, "rope_parameters": {"llama_4_scaling_beta": 0.1}`, `llama_4_scaling_beta is not supported with model_type "qwen3"`},
		{qwen3 + `, "rope_parameters": {"full_attention": {"rope_theta": 1e4}}`, "rope_parameters for each kind of layer"},
		{qwen3 + `, "rope_parameters": {"partial_rotary_factor": 0.5}`, "partial_rotary_factor is 0.5"},
		{qwen3 + `, "rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 0}`, "attention_factor (or mscale"},
		{qwen3 + `, "rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 1e300}`, "attention_factor (or mscale"},
		{qwen3 + `, "rope_scaling": {"type": "yarn", "factor": 4, "mscale": -99, "mscale_all_dim": 1}`, "attention_factor (or mscale"},
		{vl, "mrope_section is missing"},
		{vl + `, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}`, "mrope_section has 2 numbers"},
		{vl + `, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}`, "want a sum of 64"},
		{vl + `, "rope_scaling": {"mrope_section": [16, 24, 24], "mrope_interleaved": true}`, "mrope_interleaved is true"},
		{`"model_type": "qwen3_vl_text", "rope_parameters": {"mrope_interleaved": false}`, "mrope_interleaved is false"},
		{`"model_type": "qwen3_vl_text", "head_dim": 16, "rope_parameters": {"mrope_section": [2, 3, 3]}`, "mrope_interleaved, which has pair 8"},
		{`"model_type": "qwen3_vl_text", "head_dim": 64`, "want a sum of 32"},
		{`"model_type": "granite", "embedding_multiplier": 0`, "embedding_multiplier is 0"},
		{`"model_type": "granite", "attention_multiplier": -1`, "attention_multiplier is -1"},
		{`"model_type": "granite", "residual_multiplier": 0`, "residual_multiplier is 0"},
		{`"model_type": "ministral3", "rope_parameters": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 9}`, "llama_4_scaling_beta is missing"},
		{`"model_type": "ministral3", "rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}`, "original_max_position_embeddings is missing"},
		{`"model_type": "ministral3", "rope_parameters": {"llama_4_scaling_beta": -1, "original_max_position_embeddings": 9}`, "llama_4_scaling_beta is -1"},
		{`"model_type": "ministral3", "rope_parameters": {"llama_4_scaling_beta": 1, "original_max_position_embeddings": 0}`, "original_max_position_embeddings 0"},
		{`"model_type": "glm4v_text", "partial_rotary_factor": 0`, "partial_rotary_factor is 0"},
		{`"model_type": "glm4v_text", "partial_rotary_factor": 1.5`, "partial_rotary_factor is 1.5"},
		{`"model_type": "glm4v_text"`, "want a sum of 64"},
	} {
		_, _, err := parseText(json.RawMessage("{"+c.text+"}"), "llama")
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "text_config") {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}
