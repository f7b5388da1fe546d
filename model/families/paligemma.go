package families

import (
	"encoding/json"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/vision"
)

func init() {
	Register(Family{Checkpoint: paligemma, Graphs: &Graphs{FirstPosition: 1}}, "paligemma")
}

// paligemma reads PaliGemma and PaliGemma 2: a SigLIP tower with its last norm, one linear layer, a Gemma decoder that
// sees a prompt in both directions. The positions of transformers start at 1 here; rotary embeddings, which depend on
// differences only, give the same from 0.
// Reference: transformers PaliGemmaForConditionalGeneration, which leaves out Gemma 2's cap on the logits.
func paligemma(config []byte) (Spec, error) {
	c := struct {
		ImageToken int32           `json:"image_token_index"`
		Tied       *bool           `json:"tie_word_embeddings"`
		Text       json.RawMessage `json:"text_config"`
		Vision     json.RawMessage `json:"vision_config"`
	}{ImageToken: 256000}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	text, textTied, err := parseText(c.Text, "gemma")
	if err != nil {
		return Spec{}, err
	}
	text.Tied = c.Tied == nil && textTied == nil || tied(c.Tied, textTied)
	text.WholePrompt = true
	tower, err := parseVision(c.Vision, visionConfig{
		Type: "siglip_vision_model", Hidden: 1152, Intermediate: 4096, Layers: 27, Heads: 16, ImageSize: 224, PatchSize: 14,
		Eps:        1e-6,
		Activation: "gelu_pytorch_tanh",
	})
	if err != nil {
		return Spec{}, err
	}
	s := Spec{
		ImageProcessor: "SiglipImageProcessor",
		Tower:          tower,
		Connector:      vision.Linear{TextHidden: text.Hidden},
		Decoder:        text,
		Prefixes:       llavaPrefixes,
	}
	if err := s.validate(); err != nil {
		return Spec{}, err
	}
	s.Untied = !text.Tied
	s.Layout = fusion.Layout{
		Placeholder: "<image>", ImageTokenID: c.ImageToken,
		Frame: &fusion.Frame{Start: "<bos>", End: "\n"},
	}
	s.SingleTile(s.Connector)
	return s, nil
}
