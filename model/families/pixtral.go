package families

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

// pixtralConfig is vision_config of a Pixtral tower over the defaults of its class.
type pixtralConfig struct {
	visionConfig
	HeadDim *int     `json:"head_dim"`
	Theta   *float64 `json:"rope_theta"`
	Rope    *rope    `json:"rope_parameters"`
}

// pixtralTower reads a vision_config: rotary positions of rows and columns, RMS norms, gated layers without biases.
// block is the side in patches of what becomes one token.
// Reference: transformers PixtralVisionModel.
func pixtralTower(raw json.RawMessage, block int) (vision.AnySize, error) {
	c := pixtralConfig{visionConfig: visionConfig{
		Type: "pixtral", Hidden: 1024, Intermediate: 4096, Layers: 24, Heads: 16, ImageSize: 1024, PatchSize: 16,
		Activation: "gelu",
	}}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &c); err != nil {
			return vision.AnySize{}, fmt.Errorf("vision_config: %w", err)
		}
	}
	if c.Type != "pixtral" {
		return vision.AnySize{}, fmt.Errorf("vision_config.model_type is %q, supported is \"pixtral\"", c.Type)
	}
	if c.Channels != 0 && c.Channels != 3 {
		return vision.AnySize{}, fmt.Errorf("vision_config.num_channels is %d, supported is 3", c.Channels)
	}
	if c.HeadDim != nil && *c.HeadDim*c.Heads != c.Hidden {
		return vision.AnySize{}, fmt.Errorf("vision_config.head_dim is %d, want hidden_size %d / num_attention_heads %d",
			*c.HeadDim, c.Hidden, c.Heads)
	}
	theta, err := c.theta()
	return vision.AnySize{
		NativeResolution: vision.NativeResolution{PatchSize: c.PatchSize, MergeSize: block},
		Hidden:           c.Hidden, Intermediate: c.Intermediate, Layers: c.Layers, Heads: c.Heads, Activation: c.Activation,
		Norm: vision.Norm{RMS: true, Eps: 1e-5}, GatedMLP: true, PatchNorm: true,
		Rope: vision.AxisRope{Theta: theta, Alternate: true},
	}, err
}

func (c pixtralConfig) theta() (float64, error) {
	theta := 10000.0
	if c.Theta != nil {
		theta = *c.Theta
	}
	if c.Rope == nil {
		return theta, nil
	}
	if kind := c.Rope.kind(); kind != "" && kind != "default" {
		return 0, fmt.Errorf("vision_config.rope_parameters: rope type %q is not supported, supported is default", kind)
	}
	if c.Rope.Theta != nil {
		theta = *c.Rope.Theta
	}
	return theta, nil
}

// pixtralParts rename what lies within a Pixtral tower.
var pixtralParts = []graph.Part{
	{From: "patch_conv.", To: "embeddings.patch_embedding."}, {From: "ln_pre.", To: "pre_layernorm."},
	{From: "transformer.layers.", To: "encoder.layers."}, {From: "attention_norm.", To: "layer_norm1."},
	{From: "ffn_norm.", To: "layer_norm2."}, {From: "attention.", To: "self_attn."},
	{From: "self_attn.o_proj.", To: "self_attn.out_proj."}, {From: "feed_forward.", To: "mlp."},
}

// pixtralPrefixes are the names of files of transformers up to 4.51 and of 5.x, then those of 4.52 and later.
var pixtralPrefixes = []graph.Prefix{
	{From: "vision_tower.", To: "vision.", Parts: pixtralParts},
	{From: "multi_modal_projector.", To: "connector."},
	{From: "language_model.lm_head.", To: "lm_head."},
	{From: "language_model.model.", To: "text."},
	{From: "model.vision_tower.", To: "vision.", Parts: pixtralParts},
	{From: "model.multi_modal_projector.", To: "connector."},
	{From: "model.language_model.", To: "text."},
}

// rowsOfImage writes an image row by row: a placeholder for each patch embedding, and what ends a row or the image.
// Reference: transformers PixtralProcessor.
func rowsOfImage(p vision.NativeResolution, placeholder string) func(vision.Grid) string {
	return func(g vision.Grid) string {
		rows, cols := p.Map(g)
		row := strings.Repeat(placeholder, cols)
		return strings.Join(slices.Repeat([]string{row}, rows), "[IMG_BREAK]") + "[IMG_END]"
	}
}

// featureLayer is the number of layers that run, of so many, for vision_feature_layer: -1 is what leaves the last.
func featureLayer(raw json.RawMessage, layers int) (int, error) {
	var layer int
	if err := json.Unmarshal(raw, &layer); err != nil {
		return 0, fmt.Errorf("vision_feature_layer is %s, supported with a Pixtral tower is one number", raw)
	}
	n := layer
	if n < 0 {
		n += layers + 1
	}
	if n < 1 || n > layers {
		return 0, fmt.Errorf("vision_feature_layer is %d, supported are %d to %d without 0", layer, -layers, layers)
	}
	return n, nil
}

// pixtralSpec is a model of a Pixtral tower and a decoder whose positions have one axis.
// class is its text class where the file names none, tiedMissing whether its head is the embedding table where no file
// says.
func (c llavaConfig) pixtralSpec(t vision.AnySize, class string, imageToken int32, tiedMissing bool) (Spec, error) {
	for _, id := range []*int32{c.ImageTokenID, c.ImageToken} {
		if id != nil {
			imageToken = *id
		}
	}
	text, textTied, err := parseText(c.Text, class)
	if err != nil {
		return Spec{}, err
	}
	if text.MRope != nil {
		return Spec{}, fmt.Errorf("text_config: positions of three axes are not supported with a Pixtral tower")
	}
	text.Tied = tied(c.Tied, textTied) || tiedMissing && !said(c.Tied, textTied)
	layers := t.Layers
	if t.Layers, err = featureLayer(c.Layer, layers); err != nil {
		return Spec{}, err
	}
	t.Width = text.Hidden
	if m, ok := t.Merger.(vision.UnfoldMerger); ok {
		m.Eps = text.Eps
		t.Merger = m
	}
	s := Spec{ImageProcessor: "PixtralImageProcessor", Decoder: text, AnySize: &t, Prefixes: pixtralPrefixes,
		TowerLayers: layers, Untied: !text.Tied && said(c.Tied, textTied)}
	s.anySize(t.NativeResolution, "[IMG]", imageToken)
	s.Layout.Map, s.Layout.Expand = nil, rowsOfImage(t.NativeResolution, "[IMG]")
	return s, s.validate()
}

// llavaPixtral reads LLaVA with a Pixtral tower (Pixtral 12B): every patch is a token.
// Reference: transformers LlavaForConditionalGeneration, PixtralProcessor.
func (c llavaConfig) llavaPixtral() (Spec, error) {
	if c.Select != "full" {
		return Spec{}, fmt.Errorf("vision_feature_select_strategy is %q, supported with a Pixtral tower is \"full\"",
			c.Select)
	}
	t, err := pixtralTower(c.Vision, 1)
	if err != nil {
		return Spec{}, err
	}
	t.Merger = vision.MLPMerger{Activation: c.Activation, Bias: c.Bias}
	return c.pixtralSpec(t, "llama", 32000, false)
}

// isPixtral tells whether a vision_config is that of a Pixtral tower.
func isPixtral(raw json.RawMessage) bool {
	var c struct {
		Type string `json:"model_type"`
	}
	return json.Unmarshal(raw, &c) == nil && c.Type == "pixtral"
}
