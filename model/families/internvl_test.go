package families

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
)

// What released files leave out is as transformers fills it in.
func TestInternVLDefaults(t *testing.T) {
	// OpenGVLab/InternVL3-1B-hf
	_, s, err := Read([]byte(`{"model_type": "internvl", "downsample_ratio": 0.5, "image_seq_length": 256, "image_token_id": 151667,
		"projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
		"text_config": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
			"num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0, "vocab_size": 151674,
			"rope_scaling": {"factor": 2.0, "rope_type": "dynamic"}},
		"vision_config": {"model_type": "internvl_vision", "attention_bias": true, "image_size": [448, 448], "patch_size": [14, 14],
			"layer_norm_eps": 1e-06, "norm_type": "layer_norm", "use_mean_pooling": true, "use_qk_norm": false}}`))
	if r := s.Decoder.Rope; err != nil || r.Scaling != decoder.RopeUnscaled || r.Theta != 1e6 || r.Factor != 0 {
		t.Errorf("RoPE that is scaled beyond the context only: %+v %v", r, err)
	}
	_, s, err = Read([]byte(`{"model_type": "internvl", "vision_config": {"attention_bias": true, "image_size": 448},
		"text_config": {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}}`))
	if err != nil {
		t.Fatal(err)
	}
	d, v := s.Decoder, s.Tower
	if !d.QKVBias || d.Hidden != 896 || d.HeadDim != 64 || !d.Tied || s.Untied || s.Layout.ImageTokenID != 151667 {
		t.Errorf("decoder %+v", d)
	}
	if v.Hidden != 1024 || v.Intermediate != 4096 || v.Layers != 24 || v.Heads != 16 || v.ImageSize != 448 ||
		v.PatchSize != 14 || v.Eps != 1e-6 || v.Activation != "gelu" || !v.ClassToken || !v.DropFirst || !v.PatchBias ||
		v.PostNorm || v.PreNorm || !v.LayerScale || v.QKNorm || v.RMSNorm || v.NoQKVBias || v.NoPositions ||
		s.Layout.PatchTokens != 256 || s.ImageProcessor != "GotOcr2ImageProcessor" {
		t.Errorf("tower %+v, %d tokens", v, s.Layout.PatchTokens)
	}
	// The tower of 6 billion weights.
	_, s, err = Read([]byte(`{"model_type": "internvl", "tie_word_embeddings": false, "vision_config": {"hidden_size": 3200,
		"intermediate_size": 12800, "num_hidden_layers": 45, "num_attention_heads": 25, "norm_type": "rms_norm", "use_qk_norm": true,
		"use_mean_pooling": false, "use_absolute_position_embeddings": false}}`))
	if v := s.Tower; err != nil || !v.RMSNorm || !v.QKNorm || !v.NoQKVBias || !v.PostNorm || !v.NoPositions || !s.Untied {
		t.Errorf("tower %+v %v", v, err)
	}
}

func TestInternVLRefusals(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{`{"model_type": "internvl_chat", "architectures": ["InternVLChatModel"]}`, "whose name ends in -hf"},
		{`{"model_type": "internvl", "vision_config": {"image_size": [448, 224]}}`, "image_size is 448×224"},
		{`{"model_type": "internvl", "vision_config": {"patch_size": [14, 7]}}`, "patch_size is 14×7"},
		{`{"model_type": "internvl", "vision_config": {"image_size": [448]}}`, "want a number or two"},
		{`{"model_type": "internvl", "vision_config": {"image_size": [-448, -448]}}`, "image_size is -448"},
		{`{"model_type": "internvl", "vision_config": {"norm_type": "group_norm"}}`, `norm_type is "group_norm"`},
		{`{"model_type": "internvl", "vision_config": {"model_type": "siglip_vision_model"}}`, `"siglip_vision_model"`},
		{`{"model_type": "internvl", "vision_config": {"num_channels": 1}}`, "num_channels is 1"},
		{`{"model_type": "internvl", "vision_config": {"image_size": 462}}`, "downsample_ratio is 1/2"}, // 33 patches a side
		{`{"model_type": "internvl", "vision_config": {"hidden_act": "mish"}}`, `hidden_act "mish"`},
		{`{"model_type": "internvl", "downsample_ratio": 0.4}`, "downsample_ratio is 0.4"},
		{`{"model_type": "internvl", "downsample_ratio": 2}`, "downsample_ratio is 2"},
		{`{"model_type": "internvl", "downsample_ratio": 0}`, "downsample_ratio is 0"},
		{`{"model_type": "internvl", "downsample_ratio": -0.5}`, "downsample_ratio is -0.5"},
		{`{"model_type": "internvl", "downsample_ratio": 1e-300}`, "downsample_ratio is 1e-300"},
		{`{"model_type": "internvl", "vision_feature_select_strategy": "full"}`, `supported is "default"`},
		{`{"model_type": "internvl", "vision_feature_layer": [-1, -2]}`, "vision_feature_layer is [-1, -2]"},
		{`{"model_type": "internvl", "vision_feature_layer": -25}`, "vision_feature_layer is -25"},
		{`{"model_type": "internvl", "vision_feature_layer": 25}`, "vision_feature_layer is 25"},
		{`{"model_type": "internvl", "projector_hidden_act": "tanh"}`, `projector_hidden_act "tanh"`},
		{`{"model_type": "internvl", "image_token_id": -1}`, "image token's id is -1"},
		{`{"model_type": "internvl", "text_config": {"rope_scaling": {"type": "dynamic", "factor": 2, "original_max_position_embeddings": 99}}}`,
			`rope type "dynamic" with original_max_position_embeddings 99`},
		{`{"model_type": "internvl", "text_config": {"model_type": "internlm2"}}`, `text_config: model_type "internlm2"`},
	} {
		if _, _, err := Read([]byte(c.config)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.config, err, c.want)
		}
	}
}

func TestLlavaNextDefaults(t *testing.T) {
	// llava-hf/llava-v1.6-mistral-7b-hf
	_, s, err := Read([]byte(`{"model_type": "llava_next", "image_token_index": 32000, "projector_hidden_act": "gelu",
		"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], "tie_word_embeddings": false,
		"use_image_newline_parameter": true, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
		"text_config": {"model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768,
			"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null, "vocab_size": 32064},
		"vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
			"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000}}`))
	if err != nil {
		t.Fatal(err)
	}
	d, v := s.Decoder, s.Tower
	if d.KVHeads != 8 || d.Rope.Theta != 1e6 || d.Windows != nil || d.Tied || !s.Untied || v.Layers != 23 ||
		!v.DropFirst ||
		v.FeatureLayers != nil || s.ImageProcessor != "LlavaNextImageProcessor" || s.Layout.SplitAlone {
		t.Errorf("%+v", s)
	}
	// Several hidden states, of a tower without a class token.
	_, s, err = Read([]byte(`{"model_type": "llava_next", "vision_feature_layer": [-24, -20, -12, -1],
		"vision_feature_select_strategy": "full", "image_grid_pinpoints": [[384, 384], [384, 768]],
		"vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
			"num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}}`))
	if v := s.Tower; err != nil || v.Layers != 27 || v.PostNorm || v.Width() != 4*1152 || len(v.FeatureLayers) != 4 ||
		v.FeatureLayers[0] != 4 || v.FeatureLayers[3] != 27 || v.DropFirst {
		t.Errorf("tower %+v %v", v, err)
	}
}

func TestLlavaNextRefusals(t *testing.T) {
	const siglip = `"vision_config": {"model_type": "siglip_vision_model", "image_size": 336, "patch_size": 14}`
	for _, c := range []struct{ config, want string }{
		{`{"model_type": "llava_next", "image_grid_pinpoints": []}`, "image_grid_pinpoints is empty"},
		{`{"model_type": "llava_next", "image_grid_pinpoints": [[336, 400]]}`, "[336 400]"},
		{`{"model_type": "llava_next", "image_grid_pinpoints": [[336]]}`, "[336 0]"},
		{`{"model_type": "llava_next", "vision_config": {"image_size": 384}}`, "[336 672]"}, // the class's pinpoints
		{`{"model_type": "llava_next", "vision_feature_select_strategy": "full"}`, "577 hidden states of 576 patches"},
		{`{"model_type": "llava_next", ` + siglip + `}`, "575 hidden states of 576 patches"},
		{`{"model_type": "llava_next", "vision_feature_layer": [-30]}`, "vision_feature_layer is -30"},
		{`{"model_type": "llava_next", "vision_feature_layer": [1.5]}`, "vision_feature_layer is [1.5]"},
		{`{"model_type": "llava_next", "vision_feature_layer": [` + strings.Repeat("-1, ", 64) + `-1]}`, "65 layers"},
	} {
		if _, _, err := Read([]byte(c.config)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200s: %v, want %q", c.config, err, c.want)
		}
	}
}
