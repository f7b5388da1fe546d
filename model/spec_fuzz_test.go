package model

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/vision"
)

// No config.json makes reading it panic, and one that is taken has a layout that can be used.
func FuzzReadSpec(f *testing.F) {
	for name := range tinyCheckpoints {
		config, err := os.ReadFile(filepath.Join("..", "testdata", "tiny-hf", name, "config.json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(config)
	}
	f.Add([]byte(`{"model_type": "llava", "vision_config": {"model_type": "clip_vision_model", "image_size": 1000000, "patch_size": 1}}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		_, s, err := ReadSpec(config)
		if err != nil {
			return
		}
		if s.Layout.Expand(vision.Grid{}) == "" || s.Decoder.KVBytesPerToken() <= 0 || s.Processor == "" {
			t.Errorf("%s gives %+v", config, s)
		}
	})
}

// Neither does reading it for ready-made graphs, nor the choice among them that it holds.
func FuzzReadExport(f *testing.F) {
	f.Add([]byte(`{"model_type": "qwen2_vl", "vision_config": {"spatial_patch_size": 14}, "transformers.js_config": {"dtype": "q4"}}`))
	f.Add([]byte(`{"model_type": "florence2", "text_config": {"d_model": 768}, "transformers.js_config": {"dtype": {"embed_tokens": "fp16"}}}`))
	f.Add([]byte(`{"model_type": "moondream1", "phi_config": {"hidden_size": 2048}}`))
	f.Add([]byte(`{"model_type": "idefics3"}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		if c, err := newExportChoice("none", "", config); err == nil {
			c.files = []string{"embed_tokens_q4.onnx", "embed_tokens.onnx"}
			if _, _, err := c.pick("embed_tokens"); err != nil {
				t.Errorf("%s: %v", config, err)
			}
		}
		_, s, err := readExportSpec(config)
		if err != nil {
			return
		}
		if s.Layout.Expand(vision.Grid{Width: 512, Height: 512}) == "" || s.Decoder.Hidden < 1 || s.Decoder.MaxLen < 1 || s.Processor == "" {
			t.Errorf("%s gives %+v", config, s)
		}
	})
}
