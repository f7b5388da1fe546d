package families

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
)

// What released files leave out is as transformers fills it in.
func TestLlavaDefaults(t *testing.T) {
	// llava-hf/llava-1.5-7b-hf
	_, s, err := Read([]byte(`{"model_type": "llava", "image_token_index": 32000, "ignore_index": -100, "pad_token_id": 32001,
		"projector_hidden_act": "gelu", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
		"text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "max_position_embeddings": 4096, "model_type": "llama",
			"rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064},
		"vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
			"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000}}`))
	if err != nil {
		t.Fatal(err)
	}
	d, v := s.Decoder, s.Tower
	if d.Layers != 32 || d.Hidden != 4096 || d.Intermediate != 11008 || d.KVHeads != 32 || d.HeadDim != 128 ||
		d.Vocab != 32064 || d.Tied || d.QKVBias {
		t.Errorf("decoder %+v", d)
	}
	if v.Layers != 23 || !v.DropFirst || !v.PreNorm || v.PostNorm || v.PatchBias || v.Activation != "quick_gelu" ||
		s.Layout.PatchTokens != 576 {
		t.Errorf("tower %+v, %d tokens", v, s.Layout.PatchTokens)
	}
	// llava-hf/llava-interleave-qwen-0.5b-hf
	_, s, err = Read([]byte(`{"model_type": "llava", "image_token_index": 151646, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
		"text_config": {"hidden_size": 1024, "intermediate_size": 2816, "model_type": "qwen2", "num_attention_heads": 16, "num_hidden_layers": 24,
			"num_key_value_heads": 16, "rope_theta": 1000000.0, "tie_word_embeddings": true, "vocab_size": 152000},
		"vision_config": {"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "siglip_vision_model",
			"num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": false}}`))
	if err != nil {
		t.Fatal(err)
	}
	d, v = s.Decoder, s.Tower
	if !d.QKVBias || d.OBias || !d.Tied || d.MaxLen != 32768 || d.Rope.Theta != 1e6 || d.Windows != nil {
		t.Errorf("decoder %+v", d)
	}
	if v.Layers != 26 || v.DropFirst || v.PostNorm || !v.PatchBias || v.Activation != "gelu_pytorch_tanh" ||
		s.Layout.PatchTokens != 729 {
		t.Errorf("tower %+v, %d tokens", v, s.Layout.PatchTokens)
	}
	// Nothing at all, twice: reading one file must not change the defaults of the next.
	for range 2 {
		_, s, err = Read([]byte(`{"model_type": "llava"}`))
		if err != nil || s.Tower.Layers != 23 || s.Tower.ImageSize != 336 || s.Decoder.Hidden != 4096 ||
			s.Layout.ImageTokenID != 32000 {
			t.Errorf("%+v %v", s, err)
		}
	}
}

func TestRefusedConfigs(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{`{"model_type": "llava_qwen"}`, "such as those of llava-hf"},
		{`{"model_type": "vision-encoder-decoder"}`, `encoder.model_type ""`},
		{`{"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}, "decoder": {"model_type": "bert"}}`, `decoder.model_type "bert"`},
		{`{"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}`, "add_cross_attention false"},
		{`{"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2", "add_cross_attention": true, "n_head": 10}}`, "n_head 10"},
		{`{"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2", "add_cross_attention": true, "n_embd": 640, "n_head": 10}}`, "encoder's hidden_size is 768"},
		{`{"model_type": "llava_onevision", "vision_aspect_ratio": "pad"}`, `vision_aspect_ratio is "pad"`},
		{`{"model_type": "llava_onevision", "image_grid_pinpoints": [[384, 400]]}`, "[384 400]"},
		{`{"model_type": "llava_onevision", "vision_feature_select_strategy": "default"}`, `supported is "full"`},
		{`{"model_type": "llava", "vision_config": {"image_size": 1000000, "patch_size": 1}}`, "patches"},
		{`{"model_type": "llava", "vision_feature_layer": [-2, -26]}`, "vision_feature_layer is -26"},
		{`{"model_type": "llava", "vision_feature_layer": []}`, "vision_feature_layer is []"},
		{`{"model_type": "llava", "vision_feature_layer": "last"}`, `vision_feature_layer is "last"`},
		{`{"model_type": "llava", "vision_feature_layer": -25}`, "vision_feature_layer is -25"},
		{`{"model_type": "llava", "vision_feature_select_strategy": "cls"}`, `"cls"`},
		{`{"model_type": "llava", "projector_hidden_act": "mish"}`, `projector_hidden_act "mish"`},
		{`{"model_type": "llava", "text_config": {"model_type": "mamba"}}`, `text_config: model_type "mamba"`},
		{`{"model_type": "llava", "vision_config": {"model_type": "eva"}}`, `vision_config.model_type "eva"`},
		{`{"model_type": "llava", "vision_config": {"num_channels": 4}}`, "num_channels is 4"},
		{`{"model_type": "llava", "text_config": {"rope_scaling": {"type": "longrope"}}}`, `rope type "longrope"`},
		{`{"model_type": "llava", "text_config": {"rope_scaling": {"type": "linear"}}}`, "rope factor is 0"},
		{`{"model_type": "llava", "text_config": {"rope_scaling": {"rope_type": "llama3", "factor": 8}}}`, "low_freq_factor is 0"},
		{`{"model_type": "llava", "text_config": {"partial_rotary_factor": 0.5}}`, "partial_rotary_factor"},
		{`{"model_type": "llava", "text_config": {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}}`, "partial_rotary_factor is 0.25"},
	} {
		if _, _, err := Read([]byte(c.config)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, c.want %q", c.config, err, c.want)
		}
	}
}

// Both spellings of scaled rotary embeddings, and what is worked out from what they leave open.
func TestRopeConfigs(t *testing.T) {
	base := decoder.Rope{Theta: 10000}
	for text, change := range map[string]func(*decoder.Rope){
		`"rope_scaling": null`: func(*decoder.Rope) {},
		`"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}`:    func(r *decoder.Rope) { r.Theta = 5e5; r.OriginalMaxLen = 2048 },
		`"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}`: func(r *decoder.Rope) { r.Theta = 1e6; r.OriginalMaxLen = 2048 },
		`"rope_scaling": {"type": "linear", "factor": 2}`: func(r *decoder.Rope) {
			r.Scaling, r.Factor,
				r.OriginalMaxLen = decoder.RopeLinear, 2, 2048
		},
		`"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}`: func(r *decoder.Rope) {
			r.Scaling, r.Factor, r.LowFreq, r.HighFreq, r.OriginalMaxLen = decoder.RopeLlama3, 8, 1, 4, 8192
		},
		`"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 512}`: func(r *decoder.Rope) {
			r.Scaling, r.Factor, r.BetaFast, r.BetaSlow, r.Truncate, r.OriginalMaxLen = decoder.RopeYarn, 4, 32, 1, true, 512
			r.Magnitude = 1.138629436111989 // 0.1 ln 4 + 1
		},
		`"rope_scaling": {"rope_type": "yarn", "factor": 4, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2, "truncate": false}`: func(r *decoder.Rope) {
			r.Scaling, r.Factor, r.BetaFast, r.BetaSlow, r.Magnitude, r.OriginalMaxLen = decoder.RopeYarn, 4, 16, 2, 1.5, 2048
		},
	} {
		want := base
		change(&want)
		_, s, err := Read([]byte(`{"model_type": "llava", "text_config": {` + text + `}}`))
		if got := s.Decoder.Rope; err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", text, got, err, want)
		}
	}
}
