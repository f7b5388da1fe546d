package families

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

// The small readers and GLM-4.1V, with what their classes leave out.
func TestReadReaders(t *testing.T) {
	qwenLike := vision.AnySize{Frames: 2, JointQKV: true, PatchBias: true, Rope: vision.AxisRope{Theta: 10000},
		NativeResolution: vision.NativeResolution{PatchSize: 14, MergeSize: 2}, PostNorm: true}
	ocr := qwenLike
	ocr.Width, ocr.Hidden, ocr.Intermediate, ocr.Layers, ocr.Heads, ocr.Activation = 1536, 1024, 4096, 24, 16, "silu"
	ocr.Norm, ocr.GatedMLP, ocr.QKNorm = vision.Norm{RMS: true, Eps: 1e-5}, true, true
	ocr.QKVBias, ocr.OutBias, ocr.MLPBias = true, true, true
	ocr.Merger = vision.DownsampleMerger{Inner: 4608, Activation: "silu"}
	four := qwenLike
	four.Width, four.Hidden, four.Intermediate, four.Layers, four.Heads, four.Activation = 4096, 1536, 4096, 24, 12, "silu"
	four.Norm, four.GatedMLP, four.PatchNorm = vision.Norm{RMS: true, Eps: 1e-5}, true, true
	four.Positions = vision.PositionTable{Side: 24, Sampling: vision.Cubic}
	four.Merger = vision.DownsampleMerger{Inner: 13696, Activation: "silu"}
	paddle := qwenLike
	paddle.Frames, paddle.JointQKV, paddle.QKVBias, paddle.OutBias, paddle.MLPBias = 0, false, true, true, true
	paddle.Width, paddle.Hidden, paddle.Intermediate, paddle.Layers, paddle.Heads = 1024, 1152, 4304, 27, 16
	paddle.Norm, paddle.Activation = vision.Norm{Eps: 1e-6}, "gelu_pytorch_tanh"
	paddle.Positions = vision.PositionTable{Side: 27, Sampling: vision.Centres}
	paddle.Merger = vision.BlockMerger{Norm: vision.Norm{Eps: 1e-5}}
	for config, want := range map[string]struct {
		tower       vision.AnySize
		placeholder string
		image       int32
	}{
		`{"model_type": "glm_ocr", "text_config": {"model_type": "glm_ocr_text", "hidden_size": 1536, "head_dim": 128,
			"rope_parameters": {"mrope_section": [16, 24, 24], "partial_rotary_factor": 1.0}}}`: {ocr, "<|image|>", 59280},
		`{"model_type": "glm4v", "text_config": {"model_type": "glm4v_text", "partial_rotary_factor": 0.5, "rope_scaling": {"type": "default",
			"mrope_section": [8, 12, 12]}}}`: {four, "<|image|>", 151343},
		`{"model_type": "paddleocr_vl", "hidden_size": 1024, "rope_scaling": {"mrope_section": [16, 24, 24], "type": "default"},
			"tie_word_embeddings": false, "use_bias": false}`: {paddle, "<|IMAGE_PLACEHOLDER|>", 100295},
	} {
		_, s, err := Read([]byte(config))
		if err != nil {
			t.Errorf("%s: %v", config, err)
			continue
		}
		if got := fmt.Sprintf("%+v", *s.AnySize); got != fmt.Sprintf("%+v", want.tower) {
			t.Errorf("%s: %s, want %+v", config, got, want.tower)
		}
		g := vision.Grid{Width: 28 * 3, Height: 28}
		if got := s.Layout.Expand(g); got != strings.Repeat(want.placeholder, 3) || s.Layout.ImageTokenID != want.image {
			t.Errorf("%s: %q, id %d", config, got, s.Layout.ImageTokenID)
		}
	}
	for config, want := range map[string]string{
		`{"model_type": "glm_ocr", "vision_config": {"image_size": 0}}`:                                                           "image_size",
		`{"model_type": "glm4v", "text_config": {"partial_rotary_factor": 0.5}, "vision_config": {"out_hidden_size": 100}}`:       "out_hidden_size",
		`{"model_type": "glm4v", "text_config": {"partial_rotary_factor": 0.5}, "vision_config": {"intermediate_size": 9999999}}`: "inner layer",
		`{"model_type": "glm4v", "vision_config": {"rms_norm_eps": "1"}}`:                                                         "vision_config",
		`{"model_type": "paddleocr_vl"}`:                                                                           "mrope_section",
		`{"model_type": "paddleocr_vl", "vision_config": {"num_channels": 4}}`:                                     "num_channels",
		`{"model_type": "paddleocr_vl", "vision_config": {"image_size": -5}}`:                                      "image_size",
		`{"model_type": "paddleocr_vl", "vision_config": {"image_size": 8000, "patch_size": 1}, ` + sections + `}`: "position table",
	} {
		if _, _, err := Read([]byte(config)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %s", config, err, want)
		}
	}
}

// What a checkpoint calls a parameter is read as that parameter, in every family with a tower for images of any size.
func TestNamesThereAndBack(t *testing.T) {
	for _, prefixes := range [][]graph.Prefix{
		qwen2Prefixes, qwen3Prefixes, pixtralPrefixes, glmPrefixes, paddlePrefixes,
	} {
		s := Spec{Prefixes: prefixes}
		for _, name := range []string{
			"vision.embeddings.patch_embedding.weight", "vision.embeddings.position_embedding.weight", "vision.pre_layernorm.weight",
			"vision.encoder.layers.7.layer_norm1.weight", "vision.encoder.layers.7.layer_norm2.bias",
			"vision.encoder.layers.7.self_attn.qkv.weight", "vision.encoder.layers.7.self_attn.q_proj.bias",
			"vision.encoder.layers.7.self_attn.out_proj.weight", "vision.encoder.layers.7.self_attn.q_norm.weight",
			"vision.encoder.layers.7.mlp.fc1.weight", "vision.encoder.layers.7.mlp.gate_proj.weight", "vision.post_layernorm.weight",
			"connector.norm.weight", "connector.linear_1.bias", "connector.linear_2.weight", "connector.deepstack.1.linear_1.weight",
			"connector.downsample.weight", "connector.patch_merger.merging_layer.weight", "text.embed_tokens.weight",
			"text.layers.3.post_attention_layernorm.weight", "text.layers.3.pre_feedforward_layernorm.weight", "lm_head.weight",
		} {
			stored, canonical := s.CheckpointName(name), ""
			for _, p := range prefixes {
				if c, ok := p.Canonical(stored); ok {
					canonical = c
					break
				}
			}
			if canonical != name && canonical != "" {
				t.Errorf("%s is stored as %s, which is read as %s", name, stored, canonical)
			}
		}
	}
}
