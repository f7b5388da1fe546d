package families

import (
	"encoding/json"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/vision"
)

func init() { Register(Family{Graphs: &Graphs{Read: moondream, InferSizes: true}}, "moondream1") }

// moondream reads the exports of Moondream 1 and 2 of their time: a prompt of theirs has one placeholder for an image,
// with an id that no tokenizer gives (-200), and the patches took its place in the embeddings. Here it is a token of
// its own, once for each patch as everywhere.
func moondream(config []byte) (Spec, error) {
	text := graphText{Hidden: 2048, Layers: 24, Heads: 32, Vocab: 51200, MaxLen: 2048}
	var c struct {
		Phi json.RawMessage `json:"phi_config"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return Spec{}, err
	}
	if len(c.Phi) > 0 {
		if err := json.Unmarshal(c.Phi, &text); err != nil {
			return Spec{}, err
		}
	}
	d, err := text.read(config)
	if err != nil {
		return Spec{}, err
	}
	s := Spec{
		ImageProcessor: "SiglipImageProcessor",
		Tower:          vision.ViT{ImageSize: 378},
		Decoder:        d,
		Layout: fusion.Layout{
			Placeholder: "<image>", ImageTokenID: int32(d.Vocab), AddPlaceholder: true,
			Frame: &fusion.Frame{Before: "<|endoftext|>", Start: "\n\nQuestion: ", End: "\n\nAnswer:"},
		},
	}
	s.SingleTile(vision.InGraph{PerTile: 729, TextHidden: d.Hidden})
	return s, nil
}
