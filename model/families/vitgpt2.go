package families

import (
	"encoding/json"
	"fmt"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() {
	Register(Family{Checkpoint: vitGPT2, Graphs: &Graphs{Sessions: []string{EncoderGraph, DecoderGraph}}},
		"vision-encoder-decoder")
}

// vitGPT2Config is the part of config.json that is read.
type vitGPT2Config struct {
	Start   *int32 `json:"decoder_start_token_id"`
	Encoder struct {
		visionConfig
		QKVBias *bool `json:"qkv_bias"`
	} `json:"encoder"`
	Decoder struct {
		Type         string  `json:"model_type"`
		Hidden       int     `json:"n_embd"`
		Intermediate *int    `json:"n_inner"`
		Layers       int     `json:"n_layer"`
		Heads        int     `json:"n_head"`
		Positions    int     `json:"n_positions"`
		Vocab        int     `json:"vocab_size"`
		Eps          float32 `json:"layer_norm_epsilon"`
		Activation   string  `json:"activation_function"`
		BOS          *int32  `json:"bos_token_id"`
		Tied         *bool   `json:"tie_word_embeddings"`
		Cross        bool    `json:"add_cross_attention"`
		Scale        *bool   `json:"scale_attn_weights"`
		ScaleByLayer bool    `json:"scale_attn_by_inverse_layer_idx"`
	} `json:"decoder"`
}

// vitGPT2 reads captioning models of a ViT and a GPT-2 that attends to it (nlpconnect/vit-gpt2-image-captioning). They
// take one image and no text.
// Reference: transformers VisionEncoderDecoderModel, ViTModel, GPT2LMHeadModel.
func vitGPT2(config []byte) (Spec, error) {
	var c vitGPT2Config
	c.Encoder.visionConfig = visionConfig{
		Hidden: 768, Intermediate: 3072, Layers: 12, Heads: 12, ImageSize: 224, PatchSize: 16, Eps: 1e-12, Activation: "gelu",
	}
	d := &c.Decoder
	d.Hidden, d.Layers, d.Heads, d.Positions, d.Vocab, d.Eps, d.Activation = 768, 12, 12, 1024, 50257, 1e-5, "gelu_new"
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	if err := c.check(); err != nil {
		return Spec{}, err
	}
	if err := c.Encoder.read(nil); err != nil {
		return Spec{}, err
	}
	tower := c.Encoder.plain()
	tower.PatchBias, tower.ClassToken, tower.PostNorm = true, true, true
	s := Spec{
		ImageProcessor: "ViTImageProcessor",
		Tower:          tower,
		Connector:      vision.Identity{Hidden: d.Hidden},
		Prefixes:       vitGPT2Prefixes,
	}
	if err := s.validate(); err != nil {
		return Spec{}, err
	}
	states := s.Connector.Tokens(tower)
	s.Decoder = decoder.Config{
		Layers: d.Layers, Hidden: d.Hidden, Intermediate: 4 * d.Hidden, Heads: d.Heads, KVHeads: d.Heads, Vocab: d.Vocab,
		MaxLen: states + d.Positions, Eps: d.Eps, Activation: d.Activation, Tied: d.Tied == nil || *d.Tied,
		WholePrompt: true, EncoderStates: states,
	}
	if d.Intermediate != nil {
		s.Decoder.Intermediate = *d.Intermediate
	}
	if d.Heads > 0 {
		s.Decoder.HeadDim = d.Hidden / d.Heads
	}
	s.Layout = fusion.Layout{
		// No tokenizer has this placeholder: its id is the first that the vocabulary leaves free.
		Placeholder: "<image>", ImageTokenID: int32(d.Vocab),
		Frame:          &fusion.Frame{Start: "<|endoftext|>", OneImage: true},
		AddPlaceholder: true,
	}
	s.SingleTile(s.Connector)
	s.Untied = !s.Decoder.Tied
	return s, s.Decoder.Validate()
}

// check refuses what is not computed.
func (c vitGPT2Config) check() error {
	d := c.Decoder
	switch {
	case c.Encoder.Type != "vit":
		return fmt.Errorf("encoder.model_type %q is not supported; supported is vit", c.Encoder.Type)
	case d.Type != "gpt2":
		return fmt.Errorf("decoder.model_type %q is not supported; supported is gpt2", d.Type)
	case !d.Cross || d.ScaleByLayer || d.Scale != nil && !*d.Scale || c.Encoder.QKVBias != nil && !*c.Encoder.QKVBias:
		return fmt.Errorf("decoder.add_cross_attention %t, scale_attn_by_inverse_layer_idx %t, scale_attn_weights or encoder.qkv_bias false: not supported", d.Cross, d.ScaleByLayer)
	case c.Start != nil && d.BOS != nil && *c.Start != *d.BOS:
		return fmt.Errorf("decoder_start_token_id is %d, supported is decoder.bos_token_id, %d", *c.Start, *d.BOS)
	}
	return nil
}

var vitGPT2Prefixes = []graph.Prefix{
	{From: "encoder.", To: "vision.", Parts: []graph.Part{
		{From: "encoder.layer.", To: "encoder.layers."},
		{From: ".attention.attention.query.", To: ".self_attn.q_proj."},
		{From: ".attention.attention.key.", To: ".self_attn.k_proj."},
		{From: ".attention.attention.value.", To: ".self_attn.v_proj."},
		{From: ".attention.output.dense.", To: ".self_attn.out_proj."},
		{From: ".intermediate.dense.", To: ".mlp.fc1."},
		{From: ".output.dense.", To: ".mlp.fc2."},
		{From: ".layernorm_before.", To: ".layer_norm1."},
		{From: ".layernorm_after.", To: ".layer_norm2."},
		{From: "embeddings.patch_embeddings.projection.", To: "embeddings.patch_embedding."},
		{From: "embeddings.position_embeddings", To: "embeddings.position_embedding.weight"},
		{From: "embeddings.cls_token", To: "embeddings.class_embedding"},
		{From: "layernorm.", To: "post_layernorm."},
	}},
	{From: "decoder.transformer.wte.", To: "text.embed_tokens."},
	{From: "decoder.transformer.", To: "text."},
	{From: "decoder.lm_head.", To: "lm_head."},
}
