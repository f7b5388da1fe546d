package families

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/mmserve/mmserve/vision"
)

func init() {
	Register(Family{Checkpoint: llavaOneVision, Graphs: &Graphs{Read: llavaOneVisionGraphs}}, "llava_onevision")
}

// llavaOneVision reads LLaVA-OneVision: LLaVA with images cut into tiles ("anyres") and put together again.
// Reference: transformers LlavaOnevisionForConditionalGeneration.
func llavaOneVision(config []byte) (Spec, error) {
	var c struct {
		llavaConfig
		AspectRatio string   `json:"vision_aspect_ratio"`
		Pinpoints   [][2]int `json:"image_grid_pinpoints"`
	}
	c.llavaConfig = llavaConfig{Layer: json.RawMessage("-1"), Select: "full", Activation: "gelu", Bias: true}
	c.AspectRatio = "anyres_max_9"
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	const prefix = "anyres_max_"
	most, err := strconv.Atoi(strings.TrimPrefix(c.AspectRatio, prefix))
	if err != nil || most < 1 || !strings.HasPrefix(c.AspectRatio, prefix) {
		return Spec{}, fmt.Errorf("vision_aspect_ratio is %q, want %q and a number of tiles", c.AspectRatio, prefix)
	}
	s, err := c.spec(151646, visionConfig{
		Type: "siglip_vision_model", Hidden: 1152, Intermediate: 4304, Layers: 26, Heads: 16, ImageSize: 384, PatchSize: 14,
		Eps:        1e-6,
		Activation: "gelu_pytorch_tanh",
	}, "qwen2")
	if err != nil {
		return Spec{}, err
	}
	if s.Tower.DropFirst {
		return Spec{}, fmt.Errorf("vision_feature_select_strategy is %q, supported is \"full\": tiles are put together patch by patch", c.Select)
	}
	grids, err := vision.ParsePinpoints(c.Pinpoints, s.Tower.ImageSize)
	if err != nil {
		return Spec{}, err
	}
	s.Layout.SplitAlone = true
	packed := vision.AnyRes{MLP: s.Connector.(vision.MLP), MaxTiles: most, Pinpoints: grids}
	return s, s.anyRes(packed, "LlavaOnevisionImageProcessor")
}

// llavaOneVisionGraphs reads it for ready-made graphs, which do not put tiles together: every image is one tile, and
// its patches what the graph gives.
func llavaOneVisionGraphs(config []byte) (Spec, error) {
	s, err := llavaOneVision(config)
	if err != nil {
		return Spec{}, err
	}
	c := s.Connector.(vision.AnyRes) // made above
	s.SingleTile(c.MLP)
	s.Layout.ImageTokens = nil
	s.WholeImages = true
	return s, nil
}
