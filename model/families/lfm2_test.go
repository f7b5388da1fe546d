package families

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/vision"
)

// What files leave out is as transformers fills it in; the width of an MLP is made of the file's.
func TestLfm2Text(t *testing.T) {
	for text, want := range map[string]struct {
		width, layers int
		conv          []int // the first layers that attend
	}{
		`{}`: {8192, 32, nil},
		`{"full_attn_idxs": [2, 5], "num_hidden_layers": 6}`:                       {8192, 6, []int{2, 5}},
		`{"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}`:      {8192, 2, []int{1}},
		`{"block_ff_dim": 6656, "intermediate_size": 999}`:                         {4608, 32, nil},
		`{"block_ff_dim": 6656, "block_auto_adjust_ff_dim": false}`:                {6656, 32, nil},
		`{"intermediate_size": 1000, "block_ffn_dim_multiplier": 1.5}`:             {1024, 32, nil},
		`{"intermediate_size": 1000, "block_multiple_of": 1}`:                      {666, 32, nil},
		`{"intermediate_size": 96, "block_multiple_of": 16, "theta": 5e5}`:         {64, 32, nil},
		`{"intermediate_size": 96, "block_multiple_of": 16, "rope_theta": 500000}`: {64, 32, nil},
	} {
		d, tied, err := parseText(json.RawMessage(text), "lfm2")
		if err != nil || tied == nil || !*tied {
			t.Errorf("%s: %v, tied %v", text, err, tied)
			continue
		}
		var attend []int
		if d.ShortConv != nil {
			for i, conv := range d.ShortConv.Layers {
				if !conv {
					attend = append(attend, i)
				}
			}
		}
		theta := 1e6
		if strings.Contains(text, "theta") {
			theta = 5e5
		}
		if d.Intermediate != want.width || d.Layers != want.layers || !slices.Equal(attend, want.conv) || !d.QKNorm ||
			d.Rope.Theta != theta || d.Vocab != 65536 || d.Eps != 1e-5 {
			t.Errorf("%s gives %+v, attention in %v", text, d, attend)
		}
	}
}

func TestRefusedLfm2(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{`"text_config": {"conv_L_cache": 1, "full_attn_idxs": [0]}`, "conv_L_cache is 1"},
		{`"text_config": {"full_attn_idxs": []}`, "no layer of full_attention"},
		{`"text_config": {"layer_types": ["conv"], "num_hidden_layers": 2}`, "layer_types has 1 layers"},
		{`"text_config": {"layer_types": ["conv", "sliding_attention"], "num_hidden_layers": 2}`, `layer_types[1] is "sliding_attention"`},
		{`"text_config": {"intermediate_size": 0}`, "intermediate_size (block_ff_dim) is 0"},
		{`"text_config": {"block_multiple_of": 0}`, "block_multiple_of is 0"},
		{`"text_config": {"block_ffn_dim_multiplier": 1e9}`, "block_ffn_dim_multiplier is 1e+09"},
		{`"text_config": {"block_ffn_dim_multiplier": -1}`, "block_ffn_dim_multiplier is -1"},
		{`"vision_config": {"model_type": "siglip_vision_model"}`, `vision_config.model_type "siglip_vision_model"`},
		{`"vision_config": {"num_patches": 200}`, "num_patches is 200"},
		{`"vision_config": {"num_patches": -4}`, "num_patches is -4"},
		{`"vision_config": {"num_channels": 4}`, "num_channels is 4"},
		{`"vision_feature_layer": -2`, "vision_feature_layer is -2"},
		{`"projector_hidden_act": "mish"`, `projector_hidden_act "mish"`},
		{`"projector_hidden_size": 0`, "inner layer has a width out of range"},
		{`"downsample_factor": 0`, "downsample_factor is 0"},
		{`"downsample_factor": 3`, "tile_size is 512, want a multiple of 48"},
		{`"tile_size": 1000`, "tile_size is 1000"},
		{`"tile_size": -512`, "tile_size is -512"},
	} {
		_, _, err := Read([]byte(`{"model_type": "lfm2_vl", ` + c.config + `}`))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.config, err, c.want)
		}
	}
	_, s, err := Read([]byte(`{"model_type": "lfm2_vl"}`))
	if err != nil || s.AnySize.Positions.Side != 16 || s.Layout.ImageTokenID != 396 || !s.Decoder.Tied ||
		s.Layout.Patches(vision.Grid{Rows: 2, Cols: 3, Width: 512, Height: 256}) != 6*256+128 {
		t.Errorf("%+v %v", s, err)
	}
}
