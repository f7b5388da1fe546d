package families

import (
	"os"
	"testing"

	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// No config.json makes reading it panic, and one that is taken has a layout that can be used.
func FuzzRead(f *testing.F) {
	for name := range modeltest.TinyCheckpoints {
		config, err := os.ReadFile(modeltest.Path("testdata", "tiny-hf", name, "config.json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(config)
	}
	f.Add([]byte(`{"model_type": "llava", "vision_config": {"model_type": "clip_vision_model", "image_size": 1000000, "patch_size": 1}}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		_, s, err := Read(config)
		if err != nil {
			return
		}
		g := vision.Grid{}
		if n := s.NativeResolution; n != nil {
			g.Width, g.Height = n.PatchSize*n.MergeSize, n.PatchSize*n.MergeSize
		}
		if s.Layout.Expand(g) == "" || s.Decoder.KVBytesPerToken() <= 0 || s.ImageProcessor == "" {
			t.Errorf("%s gives %+v", config, s)
		}
	})
}

// Neither does reading it for ready-made graphs.
func FuzzReadGraphs(f *testing.F) {
	f.Add([]byte(`{"model_type": "qwen2_vl", "vision_config": {"spatial_patch_size": 14}, "transformers.js_config": {"dtype": "q4"}}`))
	f.Add([]byte(`{"model_type": "florence2", "text_config": {"d_model": 768}, "transformers.js_config": {"dtype": {"embed_tokens": "fp16"}}}`))
	f.Add([]byte(`{"model_type": "moondream1", "phi_config": {"hidden_size": 2048}}`))
	f.Add([]byte(`{"model_type": "idefics3"}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		_, s, _, err := ReadGraphs(config)
		if err != nil {
			return
		}
		if s.Layout.Expand(vision.Grid{Width: 512, Height: 512}) == "" || s.Decoder.Hidden < 1 || s.Decoder.MaxLen < 1 ||
			s.ImageProcessor == "" {
			t.Errorf("%s gives %+v", config, s)
		}
	})
}
