package families

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Graphs: &Graphs{Read: qwen2VL}}, "qwen2_vl", "qwen2_5_vl") }

// qwen2VL reads Qwen2-VL and Qwen2.5-VL: images of any size, and positions that follow their rows and columns.
// Reference: transformers Qwen2VLConfig, Qwen2_5_VLConfig, Qwen2VLProcessor.
func qwen2VL(config []byte) (Spec, error) {
	c := struct {
		ImageToken int32 `json:"image_token_id"`
		Vision     struct {
			Patch        int  `json:"patch_size"`
			SpatialPatch *int `json:"spatial_patch_size"`
			Merge        int  `json:"spatial_merge_size"`
		} `json:"vision_config"`
	}{ImageToken: 151655}
	c.Vision.Patch, c.Vision.Merge = 14, 2
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	if c.Vision.SpatialPatch != nil {
		c.Vision.Patch = *c.Vision.SpatialPatch
	}
	if c.Vision.Patch < 1 || c.Vision.Patch > 64 || c.Vision.Merge < 1 || c.Vision.Merge > 8 {
		return Spec{}, fmt.Errorf("vision_config.patch_size is %d and spatial_merge_size %d, want 1 to 64 and 1 to 8", c.Vision.Patch, c.Vision.Merge)
	}
	text := graphText{Hidden: 8192, Layers: 80, Heads: 64, KVHeads: new(8), Vocab: 152064, MaxLen: 32768}
	d, err := text.read(config)
	if err != nil {
		return Spec{}, err
	}
	p := vision.NativeResolution{PatchSize: c.Vision.Patch, MergeSize: c.Vision.Merge, Width: d.Hidden}
	const placeholder = "<|image_pad|>"
	return Spec{
		ImageProcessor:   "Qwen2VLImageProcessor",
		NativeResolution: &p,
		Decoder:          d,
		Layout: fusion.Layout{
			Placeholder: placeholder, ImageTokenID: c.ImageToken,
			ImageTokens: p.Tokens,
			Map:         p.Map,
			Expand:      func(g vision.Grid) string { return strings.Repeat(placeholder, p.Tokens(g)) },
		},
	}, nil
}
