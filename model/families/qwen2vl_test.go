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
		if _, _, err := Read([]byte(config)); err == nil || !strings.Contains(err.Error(), "only from ready-made ONNX graphs") {
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
