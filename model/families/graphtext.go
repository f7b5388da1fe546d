package families

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/decoder"
)

// graphText is what a decoder's graph leaves open. Files of before transformers 4.52 have it beside the vision tower's,
// newer ones under text_config.
type graphText struct {
	Hidden  int  `json:"hidden_size"`
	Layers  int  `json:"num_hidden_layers"`
	Heads   int  `json:"num_attention_heads"`
	KVHeads *int `json:"num_key_value_heads"`
	Vocab   int  `json:"vocab_size"`
	MaxLen  int  `json:"max_position_embeddings"`
}

// read decodes a config.json and its text_config over what t holds.
func (t *graphText) read(config []byte) (d decoder.Config, err error) {
	var nested struct {
		Text json.RawMessage `json:"text_config"`
	}
	if err := errors.Join(json.Unmarshal(config, t), json.Unmarshal(config, &nested)); err != nil {
		return d, err
	}
	if len(nested.Text) > 0 {
		if err := json.Unmarshal(nested.Text, t); err != nil {
			return d, fmt.Errorf("text_config: %w", err)
		}
	}
	return t.config()
}

// config is what is known of the decoder.
func (t graphText) config() (d decoder.Config, err error) {
	d = decoder.Config{Hidden: t.Hidden, Layers: t.Layers, Heads: t.Heads, KVHeads: t.Heads, Vocab: t.Vocab,
		MaxLen: t.MaxLen}
	if t.KVHeads != nil {
		d.KVHeads = *t.KVHeads
	}
	if d.Hidden < 1 || d.Vocab < 1 || d.MaxLen < 1 || d.Heads < 1 || max(d.Hidden, d.Vocab, d.MaxLen, d.Heads) > 1<<24 {
		return d, fmt.Errorf("hidden_size is %d, num_attention_heads %d, vocab_size %d, max_position_embeddings %d, want 1 to %d", d.Hidden, d.Heads, d.Vocab, d.MaxLen, 1<<24)
	}
	d.HeadDim = d.Hidden / d.Heads
	return d, nil
}
