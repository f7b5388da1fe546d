package families

import (
	"encoding/json"
	"strings"

	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Checkpoint: llavaNext}, "llava_next") }

// llavaNext reads LLaVA-NeXT (LLaVA-1.6) and Granite Vision: LLaVA with images cut into tiles ("anyres") and put
// together again, each as large as it comes out, however many a prompt has.
// Reference: transformers LlavaNextForConditionalGeneration, which leaves out Granite's division of the logits.
func llavaNext(config []byte) (Spec, error) {
	var c struct {
		llavaConfig
		Pinpoints [][2]int `json:"image_grid_pinpoints"`
	}
	c.llavaConfig = llavaConfig{Layer: json.RawMessage("-2"), Select: "default", Activation: "gelu", Bias: true}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	if c.Pinpoints == nil {
		c.Pinpoints = [][2]int{{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}}
	}
	s, err := c.spec(32000, visionConfig{
		Type: "clip_vision_model", Hidden: 1024, Intermediate: 4096, Layers: 24, Heads: 16, ImageSize: 336, PatchSize: 14,
		Eps:        1e-5,
		Activation: "quick_gelu",
	}, "llama")
	if err != nil {
		return Spec{}, err
	}
	grids, err := vision.ParsePinpoints(c.Pinpoints, s.Tower.ImageSize)
	if err != nil {
		return Spec{}, err
	}
	return s, s.anyRes(vision.AnyRes{MLP: s.Connector.(vision.MLP), Pinpoints: grids}, "LlavaNextImageProcessor")
}

// anyRes puts the tiles of an image together.
func (s *Spec) anyRes(c vision.AnyRes, processor string) error {
	if err := c.Validate(s.Tower); err != nil {
		return err
	}
	tokens := func(g vision.Grid) int { return vision.ImageTokens(c, s.Tower, g) }
	placeholder := s.Layout.Placeholder
	s.Connector, s.ImageProcessor, s.Layout.ImageTokens = c, processor, tokens
	s.Layout.Expand = func(g vision.Grid) string { return strings.Repeat(placeholder, tokens(g)) }
	return nil
}
