package families

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Checkpoint: idefics3, Graphs: &Graphs{}}, "idefics3", "smolvlm") }

// idefics3 reads Idefics3, SmolVLM, SmolVLM2 and granite-docling: a SigLIP tower, pixel shuffle, a Llama decoder.
func idefics3(config []byte) (Spec, error) {
	c := struct {
		ImageToken int32           `json:"image_token_id"`
		Scale      int             `json:"scale_factor"`
		Tied       *bool           `json:"tie_word_embeddings"`
		Text       json.RawMessage `json:"text_config"`
		Vision     json.RawMessage `json:"vision_config"`
	}{ImageToken: 128257, Scale: 2}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	v := visionConfig{Hidden: 1152, Intermediate: 3072, Layers: 12, Heads: 16, ImageSize: 224, PatchSize: 32, Eps: 1e-6,
		Activation: "gelu_pytorch_tanh"}
	if err := v.read(c.Vision); err != nil {
		return Spec{}, err
	}
	text, textTied, err := parseText(c.Text, "llama")
	if err != nil {
		return Spec{}, err
	}
	text.Tied = tied(c.Tied, textTied)
	s := Spec{
		ImageProcessor: "Idefics3ImageProcessor",
		Tower:          v.siglip(),
		Connector:      vision.PixelShuffle{Scale: c.Scale, TextHidden: text.Hidden},
		Decoder:        text,
		Prefixes: []graph.Prefix{
			{From: "model.vision_model.", To: "vision."},
			{From: "model.connector.", To: "connector."},
			{From: "model.text_model.", To: "text."},
		},
	}
	if err := s.validate(); err != nil {
		return Spec{}, err
	}
	s.Untied = !text.Tied && said(c.Tied, textTied)
	tokens := s.Connector.Tokens(s.Tower)
	s.Layout = fusion.Layout{
		Placeholder: "<image>", ImageTokenID: c.ImageToken, PatchTokens: tokens,
		Expand: func(g vision.Grid) string { return idefics3Expand(g, tokens) },
	}
	return s, nil
}

// idefics3Expand writes one image into the prompt. It is text, put in before tokenising, because the tokenizer
// merges the two line breaks before the whole image into one token.
// Reference: transformers Idefics3Processor.get_image_prompt_string.
func idefics3Expand(g vision.Grid, tokens int) string {
	const fence = "<fake_token_around_image>"
	run := strings.Repeat("<image>", tokens)
	var b strings.Builder
	for r := range g.Rows {
		for c := range g.Cols {
			fmt.Fprintf(&b, "%s<row_%d_col_%d>%s", fence, r+1, c+1, run)
		}
		b.WriteString("\n")
	}
	if g.Rows > 0 {
		b.WriteString("\n")
	}
	b.WriteString(fence + "<global-img>" + run + fence)
	return b.String()
}
