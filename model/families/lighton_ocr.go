package families

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Checkpoint: lightOnOCR}, "lighton_ocr") }

// lightOnOCR reads LightOnOCR: the tower and merger of Mistral 3 before Qwen3's decoder.
// Reference: transformers LightOnOcrForConditionalGeneration, LightOnOcrProcessor.
func lightOnOCR(config []byte) (Spec, error) {
	c := struct {
		llavaConfig
		Merge int `json:"spatial_merge_size"`
	}{llavaConfig{Vision: json.RawMessage(`{"hidden_act": "silu", "image_size": 1540, "patch_size": 14}`)}, 2}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	if err := inRange(limited{"spatial_merge_size", c.Merge, 8}); err != nil {
		return Spec{}, err
	}
	t, err := pixtralTower(c.Vision, c.Merge)
	if err != nil {
		return Spec{}, err
	}
	c.Layer = json.RawMessage("-1")
	t.Merger = vision.UnfoldMerger{MLPMerger: vision.MLPMerger{Activation: "gelu"}}
	s, err := c.pixtralSpec(t, "qwen3", 151655, true)
	if err != nil {
		return Spec{}, err
	}
	const placeholder = "<|image_pad|>"
	s.Layout.Placeholder, s.Prefixes = placeholder, lightOnPrefixes
	s.Layout.Expand = func(g vision.Grid) string { return strings.Repeat(placeholder, t.Tokens(g)) }
	return s, nil
}

// lightOnPrefixes are the names of all generations of files.
var lightOnPrefixes = slices.Concat(lightOnParts("model."), lightOnParts(""))

func lightOnParts(at string) []graph.Prefix {
	return []graph.Prefix{
		{From: at + "vision_encoder.", To: "vision.", Parts: pixtralParts},
		{From: at + "vision_projection.", To: "connector."},
		{From: at + "language_model.", To: "text."},
	}
}
