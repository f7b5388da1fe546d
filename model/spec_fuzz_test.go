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
