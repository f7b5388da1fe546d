package families

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

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

// visionClasses are the towers of transformers by vision_config.model_type: their defaults, and the tower that they
// describe, whole. Reference: transformers 5.12.1 CLIPVisionConfig, SiglipVisionConfig.
var visionClasses = map[string]struct {
	defaults visionConfig
	tower    func(visionConfig) vision.ViT
}{
	"clip_vision_model": {visionConfig{
		Hidden: 768, Intermediate: 3072, Layers: 12, Heads: 12, ImageSize: 224, PatchSize: 32, Eps: 1e-5,
		Activation: "quick_gelu",
	}, visionConfig.clip},
	"siglip_vision_model": {visionConfig{
		Hidden: 768, Intermediate: 3072, Layers: 12, Heads: 12, ImageSize: 224, PatchSize: 16, Eps: 1e-6,
		Activation: "gelu_pytorch_tanh",
	}, visionConfig.siglip},
}

// parseVision reads a vision_config. missing is what a model's class has where there is none at all.
func parseVision(raw json.RawMessage, missing visionConfig) (vision.ViT, error) {
	v := missing
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &v); err != nil {
			return vision.ViT{}, fmt.Errorf("vision_config: %w", err)
		}
	}
	class, ok := visionClasses[v.Type]
	if !ok {
		return vision.ViT{}, fmt.Errorf("vision_config.model_type %q is not supported; supported are %s", v.Type,
			strings.Join(slices.Sorted(maps.Keys(visionClasses)), ", "))
	}
	if len(raw) > 0 {
		v = class.defaults
	}
	if err := v.read(raw); err != nil {
		return vision.ViT{}, err
	}
	return class.tower(v), nil
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

// plain is what the towers have in common.
func (v visionConfig) plain() vision.ViT {
	return vision.ViT{
		Hidden: v.Hidden, Intermediate: v.Intermediate, Layers: v.Layers, Heads: v.Heads,
		ImageSize: v.ImageSize, PatchSize: v.PatchSize, Eps: v.Eps, Activation: v.Activation,
	}
}

// siglip is the tower of SigLIP, whole: all layers and the norm after them.
func (v visionConfig) siglip() vision.ViT {
	t := v.plain()
	t.PatchBias, t.PostNorm = true, true
	return t
}

// clip is the tower of CLIP. Its norm after the last layer sees the class token only, which no family here reads.
func (v visionConfig) clip() vision.ViT {
	t := v.plain()
	t.ClassToken, t.PreNorm = true, true
	return t
}
