package families

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Checkpoint: gemma3}, "gemma3") }

// gemma3 reads Gemma 3: a SigLIP tower with its last norm, means of blocks of patches, a Gemma 3 decoder in which the
// positions of one image see each other in both directions.
// Reference: transformers Gemma3ForConditionalGeneration, which leaves out the cap on the logits.
func gemma3(config []byte) (Spec, error) {
	c := struct {
		ImageToken   *int32          `json:"image_token_index"`
		ImageTokenID *int32          `json:"image_token_id"`
		Tokens       int             `json:"mm_tokens_per_image"`
		Tied         *bool           `json:"tie_word_embeddings"`
		Text         json.RawMessage `json:"text_config"`
		Vision       json.RawMessage `json:"vision_config"`
	}{Tokens: 256}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	text, textTied, err := parseText(c.Text, "gemma3_text")
	if err != nil {
		return Spec{}, err
	}
	if err := causalText(c.Text); err != nil {
		return Spec{}, err
	}
	text.Tied = c.Tied == nil && textTied == nil || tied(c.Tied, textTied)
	text.ImageBlocks = true
	tower, err := parseVision(c.Vision, visionConfig{
		Type: "siglip_vision_model", Hidden: 768, Intermediate: 3072, Layers: 12, Heads: 12, ImageSize: 224, PatchSize: 16,
		Eps: 1e-6, Activation: "gelu_pytorch_tanh",
	})
	if err != nil {
		return Spec{}, err
	}
	side := int(math.Sqrt(float64(max(c.Tokens, 0))))
	if side*side != c.Tokens || c.Tokens == 0 {
		return Spec{}, fmt.Errorf("mm_tokens_per_image is %d, want the square of a number of blocks a side", c.Tokens)
	}
	s := Spec{
		ImageProcessor: "Gemma3ImageProcessor",
		Tower:          tower,
		Connector:      vision.AveragePool{TextHidden: text.Hidden, TokensPerSide: side},
		Decoder:        text,
		Prefixes:       llavaPrefixes,

		Untied: c.Tied != nil && !*c.Tied,
	}
	if err := s.validate(); err != nil {
		return Spec{}, err
	}
	s.Layout = gemma3Layout(c.Tokens)
	for _, id := range []*int32{c.ImageTokenID, c.ImageToken} {
		if id != nil {
			s.Layout.ImageTokenID = *id
		}
	}
	return s, nil
}

// causalText refuses a text model that reads in both directions, as an encoder does.
func causalText(raw json.RawMessage) error {
	var c struct {
		Both json.RawMessage `json:"use_bidirectional_attention"`
	}
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("text_config: %w", err)
	}
	if s := string(c.Both); s != "" && s != "null" && s != "false" {
		return errors.New("text_config.use_bidirectional_attention is set, supported is false")
	}
	return nil
}

// gemma3Layout has a template write one token for an image, which becomes a frame around the positions of its patches;
// an image in crops is a sentence.
// Reference: transformers Gemma3Processor.
func gemma3Layout(tokens int) fusion.Layout {
	const placeholder, soft = "<start_of_image>", "<image_soft_token>"
	tile := "\n\n" + placeholder + strings.Repeat(soft, tokens) + "<end_of_image>\n\n"
	return fusion.Layout{
		Placeholder: placeholder, ImageToken: soft, ImageTokenID: 262144, PatchTokens: tokens,
		Expand: func(g vision.Grid) string {
			crops := g.Tiles() - 1
			if crops == 0 {
				return tile
			}
			return "Here is the original image " + tile + " and here are some crops to help you see better " +
				strings.TrimSuffix(strings.Repeat(tile+" ", crops), " ")
		},
	}
}
