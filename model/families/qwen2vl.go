package families

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() {
	Register(Family{Checkpoint: qwen2VLCheckpoint, Graphs: &Graphs{Read: qwen2VL}}, "qwen2_vl")
	Register(Family{Checkpoint: qwen25VLCheckpoint, Graphs: &Graphs{Read: qwen2VL}}, "qwen2_5_vl")
}

// qwen2VL reads Qwen2-VL and Qwen2.5-VL for ready-made graphs: images of any size, and positions that follow their rows
// and columns.
// Reference: transformers Qwen2VLConfig, Qwen2_5_VLConfig, Qwen2VLProcessor.
func qwen2VL(config []byte) (Spec, error) {
	c := qwenConfig{ImageToken: 151655}
	if err := c.read(config); err != nil {
		return Spec{}, err
	}
	text := graphText{Hidden: 8192, Layers: 80, Heads: 64, KVHeads: new(8), Vocab: 152064, MaxLen: 32768}
	d, err := text.read(config)
	if err != nil {
		return Spec{}, err
	}
	s := Spec{ImageProcessor: "Qwen2VLImageProcessor", Decoder: d}
	s.anySize(vision.NativeResolution{PatchSize: c.patch(), MergeSize: c.merge(), Width: d.Hidden},
		"<|image_pad|>", c.ImageToken)
	return s, nil
}

// anySize lays images of any size out: a placeholder for each patch embedding, whose positions follow rows and columns.
func (s *Spec) anySize(p vision.NativeResolution, placeholder string, imageToken int32) {
	s.NativeResolution = &p
	s.Layout = fusion.Layout{
		Placeholder: placeholder, ImageTokenID: imageToken,
		ImageTokens: p.Tokens,
		Map:         p.Map,
		Expand:      func(g vision.Grid) string { return strings.Repeat(placeholder, p.Tokens(g)) },
	}
}

// qwenConfig is the part of config.json that the Qwen-VL models share. Files of before transformers 4.52 have the
// decoder's settings beside it.
type qwenConfig struct {
	ImageToken int32           `json:"image_token_id"`
	Tied       *bool           `json:"tie_word_embeddings"`
	Text       json.RawMessage `json:"text_config"`
	VisionRaw  json.RawMessage `json:"vision_config"`
	Vision     qwenVision      `json:"-"`
	// placeholder is the text of an image's token.
	placeholder string
}

// qwenVision is vision_config of the Qwen-VL and GLM models.
type qwenVision struct {
	Depth        int     `json:"depth"`
	Embed        int     `json:"embed_dim"`
	Hidden       int     `json:"hidden_size"`
	Out          int     `json:"out_hidden_size"`
	Intermediate int     `json:"intermediate_size"`
	Ratio        float64 `json:"mlp_ratio"`
	Heads        int     `json:"num_heads"`
	Activation   string  `json:"hidden_act"`
	Channels     *int    `json:"in_channels"`
	OldChannels  *int    `json:"in_chans"`
	Patch        *int    `json:"patch_size"`
	SpatialPatch *int    `json:"spatial_patch_size"`
	Merge        *int    `json:"spatial_merge_size"`
	Frames       *int    `json:"temporal_patch_size"`
	Window       int     `json:"window_size"`
	Whole        []int   `json:"fullatt_block_indexes"`
	Positions    int     `json:"num_position_embeddings"`
	Deepstack    []int   `json:"deepstack_visual_indexes"`
}

// read decodes config.json and its vision_config over what c has.
func (c *qwenConfig) read(config []byte) error {
	if err := json.Unmarshal(config, c); err != nil {
		return err
	}
	if len(c.VisionRaw) > 0 {
		if err := json.Unmarshal(c.VisionRaw, &c.Vision); err != nil {
			return fmt.Errorf("vision_config: %w", err)
		}
	}
	return inRange(limited{"vision_config.patch_size", c.patch(), 64},
		limited{"vision_config.spatial_merge_size", c.merge(), 8},
		limited{"vision_config.temporal_patch_size", or(c.Vision.Frames, 2), 8})
}

func (c *qwenConfig) patch() int {
	if c.Vision.Patch == nil && c.Vision.SpatialPatch != nil { // what some files have besides
		return *c.Vision.SpatialPatch
	}
	return or(c.Vision.Patch, 14)
}

func (c *qwenConfig) merge() int { return or(c.Vision.Merge, 2) }

func or(v *int, missing int) int {
	if v == nil {
		return missing
	}
	return *v
}

// tower is what the towers of the Qwen-VL and GLM models have in common.
func (c *qwenConfig) tower() (vision.AnySize, error) {
	v := c.Vision
	for _, n := range []*int{v.Channels, v.OldChannels} {
		if or(n, 3) != 3 {
			return vision.AnySize{}, fmt.Errorf("vision_config.in_channels is %d, supported is 3", *n)
		}
	}
	return vision.AnySize{
		NativeResolution: vision.NativeResolution{PatchSize: c.patch(), MergeSize: c.merge(), Width: v.Out},
		Frames:           or(v.Frames, 2), Hidden: v.Hidden, Intermediate: v.Intermediate, Layers: v.Depth, Heads: v.Heads,
		Activation: v.Activation, Norm: vision.Norm{Eps: 1e-6}, JointQKV: true, QKVBias: true, OutBias: true, MLPBias: true,
		Rope: vision.AxisRope{Theta: 10000},
	}, nil
}

// text is text_config or, where it is missing and older files had its settings beside the others, the whole file.
func (c *qwenConfig) text(config []byte) json.RawMessage {
	if len(c.Text) > 0 && string(c.Text) != "null" {
		return c.Text
	}
	modelType, err := ModelType(config)
	if _, flat := textClasses[modelType]; err == nil && flat {
		return config
	}
	return nil
}

// spec is a model of a tower and a text class.
func (c *qwenConfig) spec(config []byte, class string, t vision.AnySize) (Spec, error) {
	text, textTied, err := parseText(c.text(config), class)
	if err != nil {
		return Spec{}, err
	}
	if text.MRope == nil {
		return Spec{}, fmt.Errorf("text_config.model_type is of a class whose positions have one axis, want one like %q", class)
	}
	if t.Width = cmp.Or(t.Width, text.Hidden); t.Width != text.Hidden {
		return Spec{}, fmt.Errorf("vision_config: the tower gives embeddings of %d values (out_hidden_size), text_config.hidden_size is %d", t.Width, text.Hidden)
	}
	text.Tied, text.Deepstack = tied(c.Tied, textTied), len(t.Deepstack)
	t.Width = text.PatchWidth()
	s := Spec{ImageProcessor: "Qwen2VLImageProcessor", Decoder: text, AnySize: &t, Prefixes: qwen2Prefixes,
		Untied: !text.Tied && said(c.Tied, textTied)}
	s.anySize(t.NativeResolution, cmp.Or(c.placeholder, "<|image_pad|>"), c.ImageToken)
	return s, s.validate()
}

// qwenParts rename what lies within a tower of the Qwen-VL and GLM models.
var qwenParts = []graph.Part{
	{From: "patch_embed.proj.", To: "embeddings.patch_embedding."},
	{From: "blocks.", To: "encoder.layers."}, {From: "norm1.", To: "layer_norm1."}, {From: "norm2.", To: "layer_norm2."},
	{From: "attn.proj.", To: "self_attn.out_proj."}, {From: "attn.qkv.", To: "self_attn.qkv."},
}

// qwen2Prefixes are those of Qwen2-VL and Qwen2.5-VL.
var qwen2Prefixes = qwenPrefixes([]graph.Part{
	{From: "ln_q.", To: "norm."}, {From: "mlp.0.", To: "linear_1."}, {From: "mlp.2.", To: "linear_2."},
}, nil)

// qwenPrefixes are the names of files of transformers 4.52 and later, then of older ones and of those that 5.x writes.
// merger are the parts of a merger's names, tower those of a tower's beside qwenParts.
func qwenPrefixes(merger, tower []graph.Part) []graph.Prefix {
	var list []graph.Prefix
	for _, at := range []string{"model.visual.", "visual."} {
		list = append(list,
			graph.Prefix{From: at + "deepstack_merger_list.", To: "connector.deepstack.", Parts: merger},
			graph.Prefix{From: at + "merger.", To: "connector.", Parts: merger},
			graph.Prefix{From: at, To: "vision.", Parts: slices.Concat(qwenParts, tower)})
	}
	return append(list, graph.Prefix{From: "model.language_model.", To: "text."},
		graph.Prefix{From: "model.", To: "text."})
}

// qwen2VLCheckpoint reads Qwen2-VL.
// Reference: transformers Qwen2VLForConditionalGeneration.
func qwen2VLCheckpoint(config []byte) (Spec, error) {
	c := qwenConfig{ImageToken: 151655, Vision: qwenVision{
		Depth: 32, Embed: 1280, Hidden: 3584, Heads: 16, Ratio: 4, Activation: "quick_gelu",
	}}
	if err := c.read(config); err != nil {
		return Spec{}, err
	}
	v := c.Vision
	if !(v.Ratio > 0 && v.Ratio <= 64) {
		return Spec{}, fmt.Errorf("vision_config.mlp_ratio is %g, want more than 0 and at most 64", v.Ratio)
	}
	t, err := c.tower()
	if err != nil {
		return Spec{}, err
	}
	// What the others call out_hidden_size is hidden_size here.
	t.Width, t.Hidden, t.Intermediate = v.Hidden, v.Embed, int(float64(v.Embed)*v.Ratio)
	t.Merger = vision.BlockMerger{Norm: t.Norm}
	return c.spec(config, "qwen2_vl_text", t)
}

// qwen25VLCheckpoint reads Qwen2.5-VL: RMS norms and gated layers, and attention within windows in most of them.
// Reference: transformers Qwen2_5_VLForConditionalGeneration.
func qwen25VLCheckpoint(config []byte) (Spec, error) {
	c := qwenConfig{ImageToken: 151655, Vision: qwenVision{
		Depth: 32, Hidden: 3584, Out: 3584, Intermediate: 3420, Heads: 16, Activation: "silu", Window: 112,
		Whole: []int{7, 15, 23, 31},
	}}
	if err := c.read(config); err != nil {
		return Spec{}, err
	}
	v := c.Vision
	t, err := c.tower()
	if err != nil {
		return Spec{}, err
	}
	t.Norm.RMS, t.GatedMLP, t.Merger = true, true, vision.BlockMerger{Norm: vision.Norm{RMS: true, Eps: 1e-6}}
	if t.Window = v.Window / t.MergeSize / t.PatchSize * t.MergeSize; t.Window < 1 {
		return Spec{}, fmt.Errorf("vision_config.window_size is %d, want at least the %d of a block of patches", v.Window, t.MergeSize*t.PatchSize)
	}
	t.Whole = slices.DeleteFunc(slices.Clone(v.Whole), func(i int) bool { return i < 0 || i >= t.Layers }) // as there
	slices.Sort(t.Whole)
	t.Whole = slices.Compact(t.Whole)
	return c.spec(config, "qwen2_5_vl_text", t)
}
