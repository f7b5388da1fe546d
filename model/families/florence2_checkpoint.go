package families

import (
	"encoding/json"
	"fmt"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

// florence2Text is text_config, of a BART.
type florence2Text struct {
	Type         string `json:"model_type"`
	Hidden       int    `json:"d_model"`
	Layers       int    `json:"decoder_layers"`
	Heads        int    `json:"decoder_attention_heads"`
	FFN          int    `json:"decoder_ffn_dim"`
	EncoderLayer int    `json:"encoder_layers"`
	EncoderHeads int    `json:"encoder_attention_heads"`
	EncoderFFN   int    `json:"encoder_ffn_dim"`
	Vocab        int    `json:"vocab_size"`
	MaxLen       int    `json:"max_position_embeddings"`
	Activation   string `json:"activation_function"`
	Scale        bool   `json:"scale_embedding"`
	Tied         *bool  `json:"tie_word_embeddings"`
	Start        *int32 `json:"decoder_start_token_id"`
	ForceBOS     *int32 `json:"forced_bos_token_id"`
}

// florence2Vision is vision_config.
type florence2Vision struct {
	Type       string  `json:"model_type"`
	Channels   int     `json:"in_channels"`
	Depths     []int   `json:"depths"`
	Dims       []int   `json:"embed_dim"`
	Heads      []int   `json:"num_heads"`
	Groups     []int   `json:"num_groups"`
	Kernels    []int   `json:"patch_size"`
	Strides    []int   `json:"patch_stride"`
	Paddings   []int   `json:"patch_padding"`
	PreNorm    []bool  `json:"patch_prenorm"`
	Window     int     `json:"window_size"`
	MLP        float64 `json:"mlp_ratio"`
	Bias       *bool   `json:"qkv_bias"`
	Activation string  `json:"activation_function"`
	Projection int     `json:"projection_dim"`
	Positions  int     `json:"max_position_embeddings"`
	Frames     int     `json:"max_temporal_embeddings"`
}

// florence2Checkpoint reads Florence-2 in the layout of transformers (florence-community): a DaViT, its projector and a
// BART. Prompts are those of florence2.
// Reference: transformers Florence2ForConditionalGeneration.
func florence2Checkpoint(config []byte) (Spec, error) {
	c := struct {
		ImageToken *int32          `json:"image_token_id"`
		Tied       *bool           `json:"tie_word_embeddings"`
		Text       florence2Text   `json:"text_config"`
		Vision     florence2Vision `json:"vision_config"`
	}{
		Text: florence2Text{
			Type: "bart", Hidden: 1024, Layers: 12, Heads: 16, FFN: 4096, EncoderLayer: 12, EncoderHeads: 16,
			EncoderFFN: 4096, Vocab: 50265, MaxLen: 1024, Activation: "gelu",
		},
		Vision: florence2Vision{
			Channels: 3, Depths: []int{1, 1, 9, 1}, Dims: []int{128, 256, 512, 1024}, Heads: []int{4, 8, 16, 32},
			Groups: []int{4, 8, 16, 32}, Kernels: []int{7, 3, 3, 3}, Strides: []int{4, 2, 2, 2}, Paddings: []int{3, 1, 1, 1},
			PreNorm: []bool{false, true, true, true}, Window: 12, MLP: 4, Activation: "gelu", Projection: 1024,
			Positions: 50, Frames: 100,
		},
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	d, err := c.Text.config()
	if err != nil {
		return Spec{}, err
	}
	d.Tied = tied(c.Tied, c.Text.Tied) || c.Tied == nil && c.Text.Tied == nil
	tower, err := c.Vision.tower()
	if err != nil {
		return Spec{}, err
	}
	if tower.TextHidden != d.Hidden {
		return Spec{}, fmt.Errorf("vision_config.projection_dim is %d, text_config.d_model %d: want the same",
			tower.TextHidden, d.Hidden)
	}
	image := int32(51289)
	if c.ImageToken != nil {
		image = *c.ImageToken
	}
	s := florence2Spec(d, image)
	s.DaViT, s.Tower.ImageSize, s.Prefixes, s.Untied = &tower, tower.ImageSize, florence2Prefixes, !d.Tied
	s.SingleTile(vision.InGraph{PerTile: tower.Tokens(), TextHidden: tower.TextHidden})
	return s, nil
}

// config is the text model.
func (t florence2Text) config() (d decoder.Config, err error) {
	switch {
	case t.Type != "bart" && t.Type != "florence2_language":
		return d, fmt.Errorf("text_config.model_type %q is not supported; supported is bart", t.Type)
	case t.Scale:
		return d, fmt.Errorf("text_config.scale_embedding is true, supported is false")
	case t.Start != nil && *t.Start != 2:
		return d, fmt.Errorf("text_config.decoder_start_token_id is %d, supported is 2", *t.Start)
	case t.ForceBOS != nil && *t.ForceBOS != 0:
		return d, fmt.Errorf("text_config.forced_bos_token_id is %d, supported is 0", *t.ForceBOS)
	}
	if err := inRange(
		limited{"text_config.decoder_layers", t.Layers, maxLayers}, limited{"text_config.d_model", t.Hidden, maxWidth},
		limited{"text_config.decoder_ffn_dim", t.FFN, maxMLP}, limited{"text_config.vocab_size", t.Vocab, maxVocab},
		limited{"text_config.decoder_attention_heads", t.Heads, maxHeads},
		limited{"text_config.encoder_layers", t.EncoderLayer, maxLayers},
		limited{"text_config.encoder_ffn_dim", t.EncoderFFN, maxMLP},
		limited{"text_config.encoder_attention_heads", t.EncoderHeads, maxHeads},
		limited{"text_config.max_position_embeddings", t.MaxLen, maxContext},
	); err != nil {
		return d, err
	}
	d = decoder.Config{
		Layers: t.Layers, Hidden: t.Hidden, Intermediate: t.FFN, Heads: t.Heads, KVHeads: t.Heads,
		HeadDim: t.Hidden / t.Heads, Vocab: t.Vocab, Eps: 1e-5, Activation: t.Activation, WholePrompt: true,
		// What the encoder reads and what the decoder writes have positions of their own: together they fit both.
		MaxLen: t.MaxLen,
		Bart: &decoder.Bart{
			EncoderLayers: t.EncoderLayer, EncoderHeads: t.EncoderHeads, EncoderIntermediate: t.EncoderFFN,
			Start: florence2Start,
		},
	}
	return d, d.Validate()
}

// tower is the vision tower with its projector.
func (v florence2Vision) tower() (t vision.DaViT, err error) {
	n := len(v.Dims)
	for name, list := range map[string]int{
		"depths": len(v.Depths), "num_heads": len(v.Heads), "num_groups": len(v.Groups), "patch_size": len(v.Kernels),
		"patch_stride": len(v.Strides), "patch_padding": len(v.Paddings), "patch_prenorm": len(v.PreNorm),
	} {
		if list != n || n > 16 {
			return t, fmt.Errorf("vision_config.%s has %d stages, embed_dim %d; want the same, at most 16", name, list, n)
		}
	}
	if v.Channels != 3 || v.Bias != nil && !*v.Bias {
		return t, fmt.Errorf("vision_config.in_channels is %d or qkv_bias false, supported are 3 and true", v.Channels)
	}
	if !(v.MLP > 0 && v.MLP <= 64) {
		return t, fmt.Errorf("vision_config.mlp_ratio is %g, want more than 0 and at most 64", v.MLP)
	}
	t = vision.DaViT{
		Window: v.Window, Activation: v.Activation, Positions: v.Positions, Frames: v.Frames,
		TextHidden: v.Projection,
	}
	for i := range n {
		t.Stages = append(t.Stages, vision.DaViTStage{
			Depth: v.Depths[i], Dim: v.Dims[i], MLP: int(float64(v.Dims[i]) * v.MLP), Heads: v.Heads[i], Groups: v.Groups[i],
			Kernel: v.Kernels[i], Stride: v.Strides[i], Padding: v.Paddings[i], PreNorm: v.PreNorm[i],
		})
	}
	return t.Within(florence2Side)
}

var florence2Prefixes = []graph.Prefix{
	{From: "model.vision_tower.", To: "vision."},
	{From: "model.multi_modal_projector.", To: "connector."},
	{From: "model.language_model.shared.", To: "text.embed_tokens."},
	{From: "model.language_model.", To: "text."},
}
