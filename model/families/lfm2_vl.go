package families

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Checkpoint: lfm2VL}, "lfm2_vl") }

// lfm2VLConfig is the part of config.json that is read.
type lfm2VLConfig struct {
	ImageToken int32           `json:"image_token_id"`
	Inner      int             `json:"projector_hidden_size"`
	Activation string          `json:"projector_hidden_act"`
	Bias       bool            `json:"projector_bias"`
	Norm       bool            `json:"projector_use_layernorm"`
	Merge      int             `json:"downsample_factor"`
	TileSize   int             `json:"tile_size"` // in files of the hub
	Layer      *int            `json:"vision_feature_layer"`
	Tied       *bool           `json:"tie_word_embeddings"`
	TiedOld    *bool           `json:"tie_embedding"`
	Text       json.RawMessage `json:"text_config"`
	Vision     json.RawMessage `json:"vision_config"`
}

// lfm2VL reads LFM2-VL: SigLIP 2's tower, which takes tiles and wholes of any shape, blocks of patches, two linear
// layers, and a decoder of short convolutions and some attention.
// Reference: transformers Lfm2VlForConditionalGeneration, Lfm2VlConfig.
func lfm2VL(config []byte) (Spec, error) {
	c := lfm2VLConfig{ImageToken: 396, Inner: 2560, Activation: "gelu", Bias: true, Norm: true, Merge: 2, TileSize: 512}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	if c.Layer != nil && *c.Layer != -1 {
		return Spec{}, fmt.Errorf("vision_feature_layer is %d, supported is -1", *c.Layer)
	}
	text, textTied, err := parseText(c.Text, "lfm2")
	if err != nil {
		return Spec{}, err
	}
	if c.TiedOld != nil {
		c.Tied = c.TiedOld
	}
	text.Tied = c.Tied == nil && textTied == nil || tied(c.Tied, textTied)
	tower, err := c.tower()
	if err != nil {
		return Spec{}, err
	}
	tower.Width = text.Hidden
	s := Spec{ImageProcessor: "Lfm2VlImageProcessor", Decoder: text, AnySize: &tower,
		Prefixes: lfm2VLPrefixes(), Untied: !text.Tied && said(c.Tied, textTied)}
	const placeholder = "<image>"
	s.anySize(tower.NativeResolution, placeholder, c.ImageToken)
	s.Layout.Map, s.Layout.Expand = nil, lfm2VLExpand(tower.NativeResolution, placeholder)
	return s, s.validate()
}

// tower reads vision_config over the defaults of Siglip2VisionConfig.
func (c lfm2VLConfig) tower() (vision.AnySize, error) {
	v := struct {
		visionConfig
		Patches int `json:"num_patches"`
	}{visionConfig: visionConfig{
		Type: "siglip2_vision_model", Hidden: 768, Intermediate: 3072, Layers: 12, Heads: 12, PatchSize: 16, Eps: 1e-6,
		Activation: "gelu_pytorch_tanh",
	}, Patches: 256}
	if len(c.Vision) > 0 {
		if err := json.Unmarshal(c.Vision, &v); err != nil {
			return vision.AnySize{}, fmt.Errorf("vision_config: %w", err)
		}
	}
	if v.Type != "siglip2_vision_model" {
		return vision.AnySize{}, fmt.Errorf("vision_config.model_type %q is not supported; supported is siglip2_vision_model", v.Type)
	}
	if err := v.visionConfig.read(nil); err != nil {
		return vision.AnySize{}, err
	}
	side := int(math.Sqrt(float64(max(v.Patches, 0))))
	if side < 1 || side*side != v.Patches {
		return vision.AnySize{}, fmt.Errorf("vision_config.num_patches is %d, want a square of 1 or more", v.Patches)
	}
	if err := inRange(limited{"vision_config.patch_size", v.PatchSize, 64}, limited{"downsample_factor", c.Merge, 8},
		limited{"tile_size", c.TileSize, maxPixels}); err != nil {
		return vision.AnySize{}, err
	}
	return vision.AnySize{
		NativeResolution: vision.NativeResolution{PatchSize: v.PatchSize, MergeSize: c.Merge, TileSize: c.TileSize},
		Hidden:           v.Hidden, Intermediate: v.Intermediate, Layers: v.Layers, Heads: v.Heads, Activation: v.Activation,
		Norm: vision.Norm{Eps: v.Eps}, PixelsLast: true, PatchBias: true, QKVBias: true, OutBias: true, MLPBias: true,
		PostNorm: true, NoRope: true, Positions: vision.PositionTable{Side: side, Sampling: vision.Area},
		Merger: vision.ShuffleMerger{Inner: c.Inner, Activation: c.Activation, Norm: c.Norm, Bias: c.Bias},
	}, nil
}

// lfm2VLExpand writes the tiles of an image, each after its place, and then the whole.
// Reference: transformers Lfm2VlProcessor.expand_text_with_placeholders.
func lfm2VLExpand(p vision.NativeResolution, placeholder string) func(vision.Grid) string {
	return func(g vision.Grid) string {
		var b strings.Builder
		b.WriteString("<|image_start|>")
		tile := strings.Repeat(placeholder, p.TileTokens())
		for i := range g.Rows * g.Cols {
			fmt.Fprintf(&b, "<|img_row_%d_col_%d|>%s", i/g.Cols+1, i%g.Cols+1, tile)
		}
		if g.Rows > 0 {
			b.WriteString("<|img_thumbnail|>")
		}
		rows, cols := p.Map(g)
		b.WriteString(strings.Repeat(placeholder, rows*cols) + "<|image_end|>")
		return b.String()
	}
}

// lfm2VLPrefixes are the names of the hub's files and of 5.x.
func lfm2VLPrefixes() []graph.Prefix {
	return slices.Concat([]graph.Prefix{
		{From: "model.vision_tower.vision_model.", To: "vision."},
		{From: "model.vision_tower.", To: "vision."},
		{From: "model.multi_modal_projector.", To: "connector."},
	}, lfm2TextPrefixes("model.language_model."))
}
