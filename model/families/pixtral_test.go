package families

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/vision"
)

// Mistral Small 3.1 as its files say it, and what its classes leave out.
func TestReadMistral3(t *testing.T) {
	_, s, err := Read([]byte(`{"model_type": "mistral3", "text_config": {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768,
		"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072, "rms_norm_eps": 1e-05,
		"rope_theta": 1000000000.0, "sliding_window": null}, "vision_config": {"model_type": "pixtral", "hidden_act": "silu", "image_size": 1540,
		"patch_size": 14}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := vision.AnySize{
		NativeResolution: vision.NativeResolution{PatchSize: 14, MergeSize: 2, Width: 5120},
		Hidden:           1024, Intermediate: 4096, Layers: 24, Heads: 16, Activation: "silu",
		Norm: vision.Norm{RMS: true, Eps: 1e-5}, GatedMLP: true, PatchNorm: true,
		Rope:   vision.AxisRope{Theta: 10000, Alternate: true},
		Merger: vision.UnfoldMerger{MLPMerger: vision.MLPMerger{Activation: "gelu"}, Eps: 1e-5},
	}
	if got := fmt.Sprintf("%+v", *s.AnySize); got != fmt.Sprintf("%+v", want) {
		t.Errorf("%s, want %+v", got, want)
	}
	if !s.Decoder.Tied || s.Untied || s.Layout.ImageTokenID != 10 || s.Layout.Map != nil {
		t.Errorf("decoder %+v, layout %+v", s.Decoder, s.Layout)
	}
	g := vision.Grid{Width: 3 * 28, Height: 2 * 28}
	if got := s.Layout.Expand(g); got != "[IMG][IMG][IMG][IMG_BREAK][IMG][IMG][IMG][IMG_END]" || s.Layout.Patches(g) != 6 {
		t.Errorf("%q for %d patches", got, s.Layout.Patches(g))
	}
}

// What is not built is refused by the name of its field.
func TestReadPixtralRefuses(t *testing.T) {
	for config, want := range map[string]string{
		`"vision_config": {"model_type": "siglip_vision_model"}`:                   "vision_config.model_type",
		`"vision_config": {"head_dim": 32}`:                                        "head_dim",
		`"vision_config": {"num_channels": 1}`:                                     "num_channels",
		`"vision_config": {"rope_parameters": {"rope_type": "yarn", "factor": 2}}`: "rope_parameters",
		`"vision_config": {"rope_parameters": {"rope_theta": 0}}`:                  "rope_theta",
		`"vision_config": {"rope_theta": -1}`:                                      "rope_theta",
		`"vision_config": {"hidden_size": 1000}`:                                   "heads",
		`"vision_config": {"num_hidden_layers": 0}`:                                "vision_feature_layer",
		`"spatial_merge_size": 0`:                                                  "spatial_merge_size",
		`"vision_feature_layer": [-1, -2]`:                                         "vision_feature_layer",
		`"vision_feature_layer": 0`:                                                "vision_feature_layer",
		`"projector_hidden_act": "tanh"`:                                           "projector_hidden_act",
		`"text_config": {"model_type": "qwen3_vl_text"}`:                           "three axes",
		`"text_config": {"model_type": "mamba"}`:                                   "model_type",
		`"image_token_index": -5`:                                                  "image token",
	} {
		_, _, err := Read([]byte(`{"model_type": "mistral3", ` + config + `}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %s", config, err, want)
		}
	}
	const pixtral = `{"model_type": "llava", "vision_config": {"model_type": "pixtral"}, "text_config": {"model_type": "mistral"}`
	if _, _, err := Read([]byte(pixtral + `}`)); err == nil || !strings.Contains(err.Error(), "select_strategy") {
		t.Errorf("LLaVA with Pixtral: %v, want an error about vision_feature_select_strategy", err)
	}
	_, s, err := Read([]byte(pixtral + `, "vision_feature_select_strategy": "full", "vision_feature_layer": -3}`))
	if err != nil || s.AnySize.Layers != 22 || s.TowerLayers != 24 || s.AnySize.MergeSize != 1 {
		t.Errorf("LLaVA with Pixtral: %v %+v", err, s.AnySize)
	}
}
