package families

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/vision"
)

// What released files leave out is as transformers fills it in.
func TestGemma3Defaults(t *testing.T) {
	// google/gemma-3-4b-it
	_, s, err := Read([]byte(`{"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
		"eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
		"text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
			"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
		"vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
			"num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false}}`))
	if err != nil {
		t.Fatal(err)
	}
	d, v := s.Decoder, s.Tower
	if d.Heads != 8 || d.KVHeads != 4 || d.HeadDim != 256 || d.Vocab != 262208 || !d.Tied || s.Untied ||
		!d.ImageBlocks || d.WholePrompt || !d.QKNorm || !d.UnitNorms || !d.SandwichNorms || d.Rope.Theta != 1e6 ||
		d.Rope.Factor != 8 || d.LocalRope == nil ||
		d.LocalRope.Theta != 1e4 || d.LocalRope.Factor != 0 || d.AttentionScale != 1./16 || d.Softcap != 0 {
		t.Errorf("decoder %+v", d)
	}
	for i, n := range d.Windows {
		if want := 1024 * min((i+1)%6, 1); n != want {
			t.Errorf("layer %d sees %d positions, want %d", i, n, want)
		}
	}
	if v.Patches() != 4096 || !v.PostNorm || !v.PatchBias || v.ClassToken || s.Layout.PatchTokens != 256 ||
		s.Layout.ImageTokenID != 262144 || s.ImageProcessor != "Gemma3ImageProcessor" {
		t.Errorf("tower %+v, layout %+v", v, s.Layout)
	}
	// transformers writes either name of the image token's id.
	_, s, err = Read([]byte(`{"model_type": "gemma3", "image_token_id": 7, "mm_tokens_per_image": 4}`))
	if err != nil || s.Layout.ImageTokenID != 7 || s.Tower.Hidden != 768 || s.Tower.Patches() != 196 {
		t.Errorf("%+v %v", s, err)
	}
}

// An image in crops is a sentence around the whole and them.
func TestGemma3Crops(t *testing.T) {
	const tile = "\n\n<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\n"
	got := gemma3Layout(2).Expand(vision.Grid{Rows: 1, Cols: 2})
	want := "Here is the original image " + tile + " and here are some crops to help you see better " + tile + " " + tile
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestGemma3Refusals(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{`{"mm_tokens_per_image": 255}`, "mm_tokens_per_image is 255"},
		{`{"mm_tokens_per_image": 0}`, "mm_tokens_per_image is 0"},
		{`{"mm_tokens_per_image": -4}`, "mm_tokens_per_image is -4"},
		{`{"mm_tokens_per_image": 100}`, "mm_tokens_per_image is 10×10"}, // of 14 patches a side
		{`{"mm_tokens_per_image": 4611686014132420609}`, "mm_tokens_per_image is 2147483647×"},
		{`{"vision_config": {"model_type": "clip_vision_model"}, "mm_tokens_per_image": 49}`, "50 hidden states of 49 patches"},
		{`{"text_config": {"use_bidirectional_attention": true}}`, "use_bidirectional_attention"},
		{`{"text_config": {"model_type": "mamba"}}`, `model_type "mamba"`},
	} {
		config := strings.Replace(c.config, "{", `{"model_type": "gemma3", `, 1)
		if _, _, err := Read([]byte(config)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", config, err, c.want)
		}
	}
}
