package families

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() {
	Register(Family{Checkpoint: llava, Graphs: &Graphs{}}, "llava")
	Register(Family{Instead: "these are LLaVA's original files; take the repository of the same model that transformers " +
		"reads, such as those of llava-hf (model_type \"llava\", \"llava_next\" or \"llava_onevision\")"},
		"llava_llama", "llava_mistral", "llava_qwen")
}

// llavaConfig is the part of config.json that LLaVA's descendants share.
type llavaConfig struct {
	ImageToken   *int32          `json:"image_token_index"`
	ImageTokenID *int32          `json:"image_token_id"`
	Layer        json.RawMessage `json:"vision_feature_layer"`
	Select       string          `json:"vision_feature_select_strategy"`
	Activation   string          `json:"projector_hidden_act"`
	Bias         bool            `json:"multimodal_projector_bias"`
	Tied         *bool           `json:"tie_word_embeddings"`
	Text         json.RawMessage `json:"text_config"`
	Vision       json.RawMessage `json:"vision_config"`
}

// llavaPrefixes are the names of three generations of files: of the hub (transformers up to 4.51), of 4.52 and later,
// and of 5.x. The longer of two that fit comes first.
var llavaPrefixes = []graph.Prefix{
	{From: "vision_tower.vision_model.", To: "vision."},
	{From: "vision_tower.", To: "vision."},
	{From: "model.vision_tower.vision_model.", To: "vision."},
	{From: "model.vision_tower.", To: "vision."},
	{From: "multi_modal_projector.", To: "connector."},
	{From: "model.multi_modal_projector.", To: "connector."},
	{From: "language_model.lm_head.", To: "lm_head."},
	{From: "language_model.model.", To: "text."},
	{From: "model.language_model.", To: "text."},
	{From: "model.image_newline", To: "image_newline"},
}

// llava reads LLaVA-1.5 and what was built like it (llava-interleave-qwen): a CLIP or SigLIP tower of which one of the
// later layers is taken, two linear layers, a Llama-style decoder.
// Reference: transformers LlavaForConditionalGeneration.
func llava(config []byte) (Spec, error) {
	c := llavaConfig{Layer: json.RawMessage("-2"), Select: "default", Activation: "gelu", Bias: true}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	if isPixtral(c.Vision) {
		return c.llavaPixtral()
	}
	s, err := c.spec(32000, visionConfig{
		Type: "clip_vision_model", Hidden: 1024, Intermediate: 4096, Layers: 24, Heads: 16, ImageSize: 336, PatchSize: 14,
		Eps:        1e-5,
		Activation: "quick_gelu",
	}, "llama")
	if err != nil {
		return Spec{}, err
	}
	s.ImageProcessor = "CLIPImageProcessor"
	s.SingleTile(s.Connector)
	return s, nil
}

// spec is all but the image processor and the expansion of a placeholder.
func (c llavaConfig) spec(imageToken int32, missing visionConfig, textClass string) (Spec, error) {
	for _, id := range []*int32{c.ImageTokenID, c.ImageToken} {
		if id != nil {
			imageToken = *id
		}
	}
	text, textTied, err := parseText(c.Text, textClass)
	if err != nil {
		return Spec{}, err
	}
	text.Tied = tied(c.Tied, textTied)
	tower, err := parseVision(c.Vision, missing)
	if err != nil {
		return Spec{}, err
	}
	layers := tower.Layers
	if tower, err = c.features(tower); err != nil {
		return Spec{}, err
	}
	s := Spec{
		Tower:     tower,
		Connector: vision.MLP{TextHidden: text.Hidden, Activation: c.Activation, Bias: c.Bias},
		Decoder:   text,
		Prefixes:  llavaPrefixes,

		TowerLayers: layers, Untied: !text.Tied && said(c.Tied, textTied),
	}
	if err := s.validate(); err != nil {
		return Spec{}, err
	}
	s.Layout = fusion.Layout{Placeholder: "<image>", ImageTokenID: imageToken, PatchTokens: s.Connector.Tokens(tower)}
	return s, nil
}

// features cuts a whole tower down to the hidden states that vision_feature_layer takes: 0 is what enters the first
// layer, -1 what leaves the last, before the norm after it. Of a list all are taken, side by side.
func (c llavaConfig) features(t vision.ViT) (vision.ViT, error) {
	var list []int
	var layer int
	if json.Unmarshal(c.Layer, &layer) == nil {
		list = []int{layer}
	} else if err := json.Unmarshal(c.Layer, &list); err != nil || len(list) == 0 {
		return t, fmt.Errorf("vision_feature_layer is %s, want a number or a list of numbers", bytes.TrimSpace(c.Layer))
	}
	states := make([]int, len(list))
	for i, n := range list {
		states[i] = n
		if n < 0 {
			states[i] += t.Layers + 1
		}
		if states[i] < 0 || states[i] > t.Layers || len(list) == 1 && states[i] == 0 {
			return t, fmt.Errorf("vision_feature_layer is %d, supported are %d to %d without 0", n, -t.Layers, t.Layers)
		}
	}
	t.Layers, t.PostNorm = slices.Max(states), false
	if len(states) > 1 {
		t.FeatureLayers = states
	}
	switch c.Select {
	case "default":
		t.DropFirst = true
	case "full":
	default:
		return t, fmt.Errorf("vision_feature_select_strategy is %q, want \"default\" or \"full\"", c.Select)
	}
	return t, nil
}

// said tells whether the files set tie_word_embeddings.
func said(whole, text *bool) bool { return whole != nil || text != nil }

// tied tells whether the head is the embedding table. transformers looks at the whole model's setting, and at the text
// model's only where that one is absent.
func tied(whole, text *bool) bool {
	if whole == nil {
		whole = text
	}
	return whole != nil && *whole
}
