package families

import (
	"encoding/json"

	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Checkpoint: mistral3}, "mistral3") }

// mistral3 reads Mistral Small 3.1 and later and Ministral 3: a Pixtral tower whose patches are mixed block by block.
// Reference: transformers Mistral3ForConditionalGeneration.
func mistral3(config []byte) (Spec, error) {
	c := struct {
		llavaConfig
		Merge int `json:"spatial_merge_size"`
	}{llavaConfig{Layer: json.RawMessage("-1"), Activation: "gelu"}, 2}
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
	t.Merger = vision.UnfoldMerger{MLPMerger: vision.MLPMerger{Activation: c.Activation, Bias: c.Bias}}
	return c.pixtralSpec(t, "mistral", 10, true)
}
