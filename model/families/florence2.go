package families

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/vision"
)

func init() {
	Register(Family{Checkpoint: florence2Checkpoint, Graphs: &Graphs{
		Read: florence2, Sessions: []string{VisionGraph, EmbedGraph, EncoderGraph, DecoderGraph}, InferSizes: true,
		Start: florence2Start,
	}}, "florence2")
}

// florence2 reads Florence-2: an encoder over an image's patches and the prompt after them, and a decoder that starts
// with </s><s>. A prompt is a task's name, such as <CAPTION>, with the words that some tasks want behind it, or a
// sentence.
// Reference: transformers Florence2Processor, and the processing_florence2.py of Microsoft's files.
func florence2(config []byte) (Spec, error) {
	var c struct {
		ImageToken *int32 `json:"image_token_id"`
		Text       struct {
			Hidden   int    `json:"d_model"`
			Layers   int    `json:"decoder_layers"`
			Heads    int    `json:"decoder_attention_heads"`
			Vocab    int    `json:"vocab_size"`
			MaxLen   int    `json:"max_position_embeddings"`
			Start    *int32 `json:"decoder_start_token_id"`
			ForceBOS *int32 `json:"forced_bos_token_id"`
		} `json:"text_config"`
	}
	t := &c.Text
	t.Hidden, t.Layers, t.Heads, t.Vocab, t.MaxLen = 768, 6, 12, 51289, 1024
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	for _, f := range []struct {
		name string
		id   *int32
		want int32
	}{{"decoder_start_token_id", t.Start, 2}, {"forced_bos_token_id", t.ForceBOS, 0}} {
		if f.id != nil && *f.id != f.want {
			return Spec{}, fmt.Errorf("text_config.%s is %d, supported is %d", f.name, *f.id, f.want)
		}
	}
	text := graphText{Hidden: t.Hidden, Layers: t.Layers, Heads: t.Heads, Vocab: t.Vocab}
	// What the encoder reads and what the decoder writes have positions of their own.
	text.MaxLen = 2 * min(t.MaxLen, 1<<20)
	d, err := text.config()
	if err != nil {
		return Spec{}, fmt.Errorf("text_config: %w", err)
	}
	image := int32(t.Vocab)
	if c.ImageToken != nil {
		image = *c.ImageToken
	}
	s := florence2Spec(d, image)
	s.SingleTile(vision.InGraph{PerTile: 577, TextHidden: d.Hidden})
	return s, nil
}

// florence2Spec is what checkpoints and graphs have in common.
func florence2Spec(d decoder.Config, image int32) Spec {
	return Spec{
		ImageProcessor: "CLIPImageProcessor",
		Tower:          vision.ViT{ImageSize: florence2Side},
		Decoder:        d,
		Layout: fusion.Layout{
			Placeholder: "<image>", ImageTokenID: image, AddPlaceholder: true,
			Frame: &fusion.Frame{Start: "<s>", End: "</s></s><s>", Ask: florence2Sentence},
		},
	}
}

// florence2Side is the side of an image in pixels. No config.json says it.
const florence2Side = 768

// florence2Start is the number of ids at a prompt's end that are the decoder's: decoder_start_token_id, and the token
// that every answer is made to begin with.
const florence2Start = 2

// florence2Tasks are the sentences that the model was trained on, by the names of their tasks; {input} stands for the
// words behind a name.
var florence2Tasks = map[string]string{
	"<OCR>":                               "What is the text in the image?",
	"<OCR_WITH_REGION>":                   "What is the text in the image, with regions?",
	"<CAPTION>":                           "What does the image describe?",
	"<DETAILED_CAPTION>":                  "Describe in detail what is shown in the image.",
	"<MORE_DETAILED_CAPTION>":             "Describe with a paragraph what is shown in the image.",
	"<OD>":                                "Locate the objects with category name in the image.",
	"<DENSE_REGION_CAPTION>":              "Locate the objects in the image, with their descriptions.",
	"<REGION_PROPOSAL>":                   "Locate the region proposals in the image.",
	"<CAPTION_TO_PHRASE_GROUNDING>":       "Locate the phrases in the caption: {input}",
	"<REFERRING_EXPRESSION_SEGMENTATION>": "Locate {input} in the image with mask",
	"<REGION_TO_SEGMENTATION>":            "What is the polygon mask of region {input}",
	"<OPEN_VOCABULARY_DETECTION>":         "Locate {input} in the image.",
	"<REGION_TO_CATEGORY>":                "What is the region {input}?",
	"<REGION_TO_DESCRIPTION>":             "What does the region {input} describe?",
	"<REGION_TO_OCR>":                     "What text is in the region {input}?",
}

// florence2Sentence puts a task's sentence in the place of its name.
func florence2Sentence(text string) string {
	name, input, _ := strings.Cut(strings.TrimSpace(text), ">")
	sentence, ok := florence2Tasks[name+">"]
	if !ok || strings.Contains(sentence, "{input}") != (input != "") {
		return text
	}
	return strings.ReplaceAll(sentence, "{input}", cmp.Or(strings.TrimSpace(input), "{input}"))
}
