package families

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/vision"
)

// Both generations of files give the same; one without text_config has its values beside the tower's.
func TestReadQwen2VL(t *testing.T) {
	for name, config := range map[string]string{
		"flat": `{"model_type": "qwen2_vl", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
			"vocab_size": 151936, "max_position_embeddings": 32768, "vision_config": {"in_chans": 3, "spatial_patch_size": 14, "hidden_size": 1536}}`,
		"nested": `{"model_type": "qwen2_5_vl", "image_token_id": 151655, "text_config": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
			"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768}, "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}`,
	} {
		_, s, _, err := ReadGraphs([]byte(config))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := decoder.Config{Hidden: 1536, Layers: 28, Heads: 12, KVHeads: 2, HeadDim: 128, Vocab: 151936, MaxLen: 32768}
		if got := fmt.Sprint(s.Decoder); got != fmt.Sprint(want) ||
			*s.NativeResolution != (vision.NativeResolution{PatchSize: 14, MergeSize: 2, Width: 1536}) {
			t.Errorf("%s: %s %+v", name, got, *s.NativeResolution)
		}
		g := vision.Grid{Width: 4 * 28, Height: 3 * 28}
		if rows, cols := s.Layout.Map(g); rows != 3 || cols != 4 ||
			s.Layout.Expand(g) != strings.Repeat("<|image_pad|>", 12) {
			t.Errorf("%s: %d rows, %d columns, %q", name, rows, cols, s.Layout.Expand(g))
		}
		if _, _, err := Read([]byte(config)); err == nil || !strings.Contains(err.Error(), "mrope_section is missing") {
			t.Errorf("%s as a checkpoint: %v", name, err)
		}
	}
	for _, config := range []string{
		`{"model_type": "qwen2_vl", "hidden_size": 0}`,
		`{"model_type": "qwen2_vl", "vision_config": {"patch_size": 0}}`,
		`{"model_type": "qwen2_vl", "vocab_size": 99999999999}`,
		`{"model_type": "gemma3"}`,
	} {
		if _, _, _, err := ReadGraphs([]byte(config)); err == nil {
			t.Errorf("%s was taken", config)
		}
	}
}

// sections is what the models' own files say of their positions.
const sections = `"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}`

// The published shapes are read in the layouts of transformers 4.51 and 4.52, each with what its class leaves out.
func TestReadQwen2VLCheckpoints(t *testing.T) {
	two := `"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
		"num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-06, ` + sections
	want := vision.AnySize{
		NativeResolution: vision.NativeResolution{PatchSize: 14, MergeSize: 2, Width: 1536}, Frames: 2,
		Hidden: 1280, Intermediate: 5120, Layers: 32, Heads: 16, Norm: vision.Norm{Eps: 1e-6}, Activation: "quick_gelu",
		JointQKV: true, QKVBias: true, OutBias: true, MLPBias: true, Rope: vision.AxisRope{Theta: 10000},
		Merger: vision.BlockMerger{Norm: vision.Norm{Eps: 1e-6}},
	}
	later := want
	later.Norm.RMS, later.GatedMLP, later.Activation, later.Intermediate = true, true, "silu", 3420
	later.Merger = vision.BlockMerger{Norm: later.Norm}
	later.Window, later.Whole = 8, []int{7, 15, 23, 31}
	for config, want := range map[string]vision.AnySize{
		`{"model_type": "qwen2_vl", ` + two + `, "vision_config": {"hidden_size": 1536}}`:                            want,
		`{"model_type": "qwen2_vl", "text_config": {` + two + `}, "vision_config": {"hidden_size": 1536}}`:           want,
		`{"model_type": "qwen2_5_vl", ` + two + `, "vision_config": {"hidden_size": 1280, "out_hidden_size": 1536}}`: later,
	} {
		_, s, err := Read([]byte(config))
		if err != nil {
			t.Errorf("%s: %v", config, err)
			continue
		}
		if got := fmt.Sprintf("%+v", *s.AnySize); got != fmt.Sprintf("%+v", want) {
			t.Errorf("%s: %s, want %+v", config, got, want)
		}
		if m := s.Decoder.MRope; m == nil || m.Sections != [3]int{16, 24, 24} || m.Interleaved || !s.Decoder.QKVBias ||
			s.Decoder.Rope.Theta != 1e6 || s.Decoder.Tied {
			t.Errorf("%s: decoder %+v", config, s.Decoder)
		}
	}
}

// What is not built is refused by the name of its field.
func TestReadQwenRefuses(t *testing.T) {
	text := `"text_config": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "rope_scaling":
		{"mrope_section": [2, 3, 3]}}`
	for config, want := range map[string]string{
		`{"model_type": "qwen2_vl", ` + text + `}`:                                                                 "out_hidden_size",
		`{"model_type": "qwen2_vl", ` + text + `, "vision_config": {"hidden_size": 64, "mlp_ratio": -1}}`:          "mlp_ratio",
		`{"model_type": "qwen2_vl", ` + text + `, "vision_config": {"hidden_size": 64, "in_chans": 4}}`:            "in_channels",
		`{"model_type": "qwen2_vl", ` + text + `, "vision_config": {"hidden_size": 64, "num_heads": 7}}`:           "heads over a width",
		`{"model_type": "qwen2_vl", ` + text + `, "vision_config": {"hidden_size": 64, "embed_dim": 8589934592}}`:  "hidden_size",
		`{"model_type": "qwen2_vl", ` + text + `, "vision_config": {"hidden_size": 64, "depth": 100000}}`:          "layers",
		`{"model_type": "qwen2_vl", ` + text + `, "vision_config": {"hidden_size": 64, "hidden_act": "relu6"}}`:    "hidden_act",
		`{"model_type": "qwen2_vl", ` + text + `, "vision_config": {"hidden_size": 64, "temporal_patch_size": 0}}`: "temporal_patch_size",
		`{"model_type": "qwen2_5_vl", ` + text + `, "vision_config": {"out_hidden_size": 64, "window_size": 27}}`:  "window_size",
		`{"model_type": "qwen2_5_vl", ` + text + `, "vision_config": {"out_hidden_size": 64, "patch_size": 9999}}`: "patch_size",
		`{"model_type": "qwen2_vl", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}`:        "mrope_section",
		`{"model_type": "qwen2_vl", "hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, ` + sections + `,
			"vision_config": {"hidden_size": 64}}`: "out_hidden_size",
	} {
		if _, _, err := Read([]byte(config)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %s", config, err, want)
		}
	}
}

// Qwen3-VL-8B as its files say it, and what its class leaves out.
func TestReadQwen3VL(t *testing.T) {
	text := `"text_config": {"model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
		"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5000000,
		"rope_scaling": {"mrope_interleaved": true, "mrope_section": [24, 20, 20], "rope_type": "default"}}`
	_, s, err := Read([]byte(`{"model_type": "qwen3_vl", ` + text + `, "vision_config": {"out_hidden_size": 4096}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := vision.AnySize{
		NativeResolution: vision.NativeResolution{PatchSize: 16, MergeSize: 2, Width: 4 * 4096}, Frames: 2,
		Hidden: 1152, Intermediate: 4304, Layers: 27, Heads: 16, Norm: vision.Norm{Eps: 1e-6},
		Activation: "gelu_pytorch_tanh", JointQKV: true, PatchBias: true, QKVBias: true, OutBias: true, MLPBias: true,
		Rope:      vision.AxisRope{Theta: 10000},
		Positions: vision.PositionTable{Side: 48, Sampling: vision.Corners}, Deepstack: []int{8, 16, 24},
		Merger: vision.BlockMerger{Norm: vision.Norm{Eps: 1e-6}},
	}
	if got := fmt.Sprintf("%+v", *s.AnySize); got != fmt.Sprintf("%+v", want) {
		t.Errorf("%s, want %+v", got, want)
	}
	if s.Decoder.Deepstack != 3 || !s.Decoder.QKNorm || s.NativeResolution.Width != 4*4096 {
		t.Errorf("decoder %+v, %+v", s.Decoder, s.NativeResolution)
	}
	for change, want := range map[string]string{
		`"num_position_embeddings": 2300`: "num_position_embeddings", `"deepstack_visual_indexes": [16, 8]`: "layers [16 8]",
		`"deepstack_visual_indexes": [8, 8]`: "layers [8 8]", `"deepstack_visual_indexes": [27]`: "layers [27]",
		`"num_position_embeddings": -4`: "num_position_embeddings", `"out_hidden_size": 4095`: "out_hidden_size",
	} {
		config := `{"model_type": "qwen3_vl", ` + text + `, "vision_config": {"out_hidden_size": 4096, ` + change + `}}`
		if _, _, err := Read([]byte(config)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %s", change, err, want)
		}
	}
}
