package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/vision"
)

func init() {
	exportFamilies["qwen2_vl"] = exportFamily{read: qwen2VL}
	exportFamilies["qwen2_5_vl"] = exportFamily{read: qwen2VL}
}

// graphText is what a decoder's graph leaves open. Files of before transformers 4.52 have it beside the vision tower's,
// newer ones under text_config.
type graphText struct {
	Hidden  int  `json:"hidden_size"`
	Layers  int  `json:"num_hidden_layers"`
	Heads   int  `json:"num_attention_heads"`
	KVHeads *int `json:"num_key_value_heads"`
	Vocab   int  `json:"vocab_size"`
	MaxLen  int  `json:"max_position_embeddings"`
}

// read decodes a config.json and its text_config over what t holds.
func (t *graphText) read(config []byte) (d decoder.Config, err error) {
	var nested struct {
		Text json.RawMessage `json:"text_config"`
	}
	if err := errors.Join(json.Unmarshal(config, t), json.Unmarshal(config, &nested)); err != nil {
		return d, err
	}
	if len(nested.Text) > 0 {
		if err := json.Unmarshal(nested.Text, t); err != nil {
			return d, fmt.Errorf("text_config: %w", err)
		}
	}
	return t.config()
}

// config is what is known of the decoder.
func (t graphText) config() (d decoder.Config, err error) {
	d = decoder.Config{Hidden: t.Hidden, Layers: t.Layers, Heads: t.Heads, KVHeads: t.Heads, Vocab: t.Vocab, MaxLen: t.MaxLen}
	if t.KVHeads != nil {
		d.KVHeads = *t.KVHeads
	}
	if d.Hidden < 1 || d.Vocab < 1 || d.MaxLen < 1 || d.Heads < 1 || max(d.Hidden, d.Vocab, d.MaxLen, d.Heads) > 1<<24 {
		return d, fmt.Errorf("hidden_size is %d, num_attention_heads %d, vocab_size %d, max_position_embeddings %d, want 1 to %d", d.Hidden, d.Heads, d.Vocab, d.MaxLen, 1<<24)
	}
	d.HeadDim = d.Hidden / d.Heads
	return d, nil
}

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
		Processor:        "Qwen2VLImageProcessor",
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
