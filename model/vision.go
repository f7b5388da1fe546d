package model

import (
	"encoding/json"
	"fmt"

	"github.com/mmserve/mmserve/vision"
)

// visionConfig is vision_config, decoded over the defaults of the class it names.
type visionConfig struct {
	Type         string  `json:"model_type"`
	Hidden       int     `json:"hidden_size"`
	Intermediate int     `json:"intermediate_size"`
	Layers       int     `json:"num_hidden_layers"`
	Heads        int     `json:"num_attention_heads"`
	ImageSize    int     `json:"image_size"`
	PatchSize    int     `json:"patch_size"`
	Channels     int     `json:"num_channels"`
	Eps          float32 `json:"layer_norm_eps"`
	Activation   string  `json:"hidden_act"`
}

// read decodes vision_config over what v holds.
func (v *visionConfig) read(raw json.RawMessage) error {
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, v); err != nil {
			return fmt.Errorf("vision_config: %w", err)
		}
	}
	if v.Channels != 0 && v.Channels != 3 {
		return fmt.Errorf("vision_config.num_channels is %d, supported is 3", v.Channels)
	}
	return nil
}

// siglip is the tower of SigLIP, whole: all layers and the norm after them.
func (v visionConfig) siglip() vision.ViT {
	return vision.ViT{
		Hidden: v.Hidden, Intermediate: v.Intermediate, Layers: v.Layers, Heads: v.Heads,
		ImageSize: v.ImageSize, PatchSize: v.PatchSize, Eps: v.Eps, Activation: v.Activation,
		PatchBias: true, PostNorm: true,
	}
}
