package families

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() {
	Register(Family{Checkpoint: internVL}, "internvl")
	Register(Family{Instead: "these are the original InternVLChatModel files; take the repository of the same model " +
		"whose name ends in -hf (model_type \"internvl\")"}, "internvl_chat")
}

// internVLConfig is the part of config.json that is read.
type internVLConfig struct {
	ImageToken int32           `json:"image_token_id"`
	Ratio      float64         `json:"downsample_ratio"`
	Activation string          `json:"projector_hidden_act"`
	Layer      json.RawMessage `json:"vision_feature_layer"`
	Select     string          `json:"vision_feature_select_strategy"`
	Tied       *bool           `json:"tie_word_embeddings"`
	Text       json.RawMessage `json:"text_config"`
	Vision     json.RawMessage `json:"vision_config"`
}

// internVL reads InternVL in the layout of transformers (the repositories whose names end in -hf): a ViT with layer
// scale, blocks of patches put together, two linear layers, a decoder of any class here.
// Reference: transformers InternVLForConditionalGeneration.
func internVL(config []byte) (Spec, error) {
	c := internVLConfig{ImageToken: 151667, Ratio: 0.5, Activation: "gelu", Layer: json.RawMessage("-1"),
		Select: "default"}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	text, textTied, err := parseText(c.Text, "qwen2")
	if err != nil {
		return Spec{}, err
	}
	text.Tied = c.Tied == nil && textTied == nil || tied(c.Tied, textTied)
	scale, err := c.scale()
	if err != nil {
		return Spec{}, err
	}
	whole, err := parseInternVLTower(c.Vision)
	if err != nil {
		return Spec{}, err
	}
	tower, err := c.features(whole)
	if err != nil {
		return Spec{}, err
	}
	s := Spec{
		ImageProcessor: "GotOcr2ImageProcessor",
		Tower:          tower,
		Connector:      vision.ShuffleMLP{Scale: scale, TextHidden: text.Hidden, Activation: c.Activation},
		Decoder:        text,
		Prefixes:       internVLPrefixes,

		TowerLayers: whole.Layers, Untied: c.Tied != nil && !*c.Tied,
	}
	if err := s.validate(); err != nil {
		return Spec{}, err
	}
	const placeholder = "<IMG_CONTEXT>"
	run := strings.Repeat(placeholder, s.Connector.Tokens(tower))
	s.Layout = fusion.Layout{
		Placeholder: placeholder, ImageTokenID: c.ImageToken, PatchTokens: s.Connector.Tokens(tower),
		// Reference: transformers InternVLProcessor.
		Expand: func(g vision.Grid) string { return "<img>" + strings.Repeat(run, g.Tiles()) + "</img>" },
	}
	return s, nil
}

// scale is the side of the blocks of patches that become one.
func (c internVLConfig) scale() (int, error) {
	const most = 64
	if n := int(1 / max(c.Ratio, 1./(2*most))); n >= 1 && n <= most && 1/float64(n) == c.Ratio {
		return n, nil
	}
	return 0, fmt.Errorf("downsample_ratio is %g, want one over a whole number up to %d", c.Ratio, most)
}

// features cuts a whole tower down to the hidden state that is taken. The norm after the last layer belongs to -1
// alone.
func (c internVLConfig) features(t vision.ViT) (vision.ViT, error) {
	var layer int
	if err := json.Unmarshal(c.Layer, &layer); err != nil {
		return t, fmt.Errorf("vision_feature_layer is %s, supported is one number", bytes.TrimSpace(c.Layer))
	}
	if c.Select != "default" {
		return t, fmt.Errorf("vision_feature_select_strategy is %q, supported is \"default\": "+
			"patches are put together in blocks without the class token", c.Select)
	}
	t.DropFirst = true
	if layer == -1 {
		return t, nil
	}
	n := layer
	if n < 0 {
		n += t.Layers + 1
	}
	if n < 1 || n > t.Layers {
		return t, fmt.Errorf("vision_feature_layer is %d, supported are %d to %d without 0", layer, -t.Layers, t.Layers)
	}
	t.Layers, t.PostNorm = n, false
	return t, nil
}

// sides is a size in pixels as configurations write it: a number, or height and width.
type sides [2]int

// UnmarshalJSON takes a number, a list of two or null.
func (s *sides) UnmarshalJSON(b []byte) error {
	var one int
	if string(b) == "null" {
		return nil
	}
	if json.Unmarshal(b, &one) == nil {
		*s = sides{one, one}
		return nil
	}
	var list []int
	if err := json.Unmarshal(b, &list); err != nil || len(list) != 2 {
		return fmt.Errorf("a size of the vision tower is %.40s, want a number or two", b)
	}
	*s = sides(list)
	return nil
}

// square gives the side of a size that is one for both directions.
func (s sides) square(field string) (int, error) {
	if s[0] != s[1] {
		return 0, fmt.Errorf("vision_config.%s is %d×%d pixels, supported are squares", field, s[0], s[1])
	}
	return s[0], nil
}

// parseInternVLTower reads a vision_config over the defaults of InternVLVisionConfig of transformers 5.12.1.
func parseInternVLTower(raw json.RawMessage) (vision.ViT, error) {
	v := struct {
		visionConfig
		ImageSize sides  `json:"image_size"`
		PatchSize sides  `json:"patch_size"`
		Bias      bool   `json:"attention_bias"`
		QKNorm    bool   `json:"use_qk_norm"`
		Norm      string `json:"norm_type"`
		Pooling   bool   `json:"use_mean_pooling"`
		Positions bool   `json:"use_absolute_position_embeddings"`
	}{
		visionConfig: visionConfig{
			Type: "internvl_vision", Hidden: 1024, Intermediate: 4096, Layers: 24, Heads: 16, Eps: 1e-6, Activation: "gelu",
		},
		ImageSize: sides{448, 448}, PatchSize: sides{14, 14}, Norm: "layer_norm", Pooling: true, Positions: true,
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &v); err != nil {
			return vision.ViT{}, fmt.Errorf("vision_config: %w", err)
		}
	}
	if v.Type != "internvl_vision" {
		return vision.ViT{}, fmt.Errorf("vision_config.model_type %q is not supported; supported is internvl_vision", v.Type)
	}
	if v.Norm != "layer_norm" && v.Norm != "rms_norm" {
		return vision.ViT{}, fmt.Errorf("vision_config.norm_type is %q, supported are layer_norm and rms_norm", v.Norm)
	}
	var err error
	if v.visionConfig.ImageSize, err = v.ImageSize.square("image_size"); err != nil {
		return vision.ViT{}, err
	}
	if v.visionConfig.PatchSize, err = v.PatchSize.square("patch_size"); err != nil {
		return vision.ViT{}, err
	}
	if err := v.visionConfig.read(nil); err != nil {
		return vision.ViT{}, err
	}
	t := v.plain()
	t.ClassToken, t.PatchBias, t.LayerScale = true, true, true
	t.NoQKVBias, t.QKNorm, t.RMSNorm = !v.Bias, v.QKNorm, v.Norm == "rms_norm"
	t.PostNorm, t.NoPositions = !v.Pooling, !v.Positions
	return t, nil
}

// internVLParts are the tower's own names for what a ViT is made of.
var internVLParts = []graph.Part{
	{From: "encoder.layer.", To: "encoder.layers."},
	{From: ".attention.projection_layer.", To: ".self_attn.out_proj."},
	{From: ".attention.", To: ".self_attn."},
	{From: ".layernorm_before.", To: ".layer_norm1."},
	{From: ".layernorm_after.", To: ".layer_norm2."},
	{From: "embeddings.patch_embeddings.projection.", To: "embeddings.patch_embedding."},
	{From: "embeddings.position_embeddings", To: "embeddings.position_embedding.weight"},
	{From: "embeddings.cls_token", To: "embeddings.class_embedding"},
	{From: "layernorm.", To: "post_layernorm."},
}

// internVLPrefixes are the names of 5.x and of the hub's files (transformers 4.52 and later).
var internVLPrefixes = []graph.Prefix{
	{From: "vision_tower.", To: "vision.", Parts: internVLParts},
	{From: "model.vision_tower.", To: "vision.", Parts: internVLParts},
	{From: "multi_modal_projector.", To: "connector."},
	{From: "model.multi_modal_projector.", To: "connector."},
	{From: "language_model.lm_head.", To: "lm_head."},
	{From: "language_model.model.", To: "text."},
	{From: "model.language_model.", To: "text."},
}
