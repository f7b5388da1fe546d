package families

import (
	"cmp"
	"errors"

	"github.com/mmserve/mmserve/decoder"
)

func init() {
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 14336, Layers: 32, Heads: 32, KVHeads: new(8), Vocab: 32000, MaxLen: 4096 * 32,
			Eps: 1e-6, Activation: "silu", Window: new(4096),
		}
	}, finish: mistralText}, "mistral")
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 14336, Layers: 34, Heads: 32, KVHeads: new(8), HeadDim: new(128), Vocab: 131072,
			MaxLen: 262144, Eps: 1e-5, Activation: "silu",
		}
	}, finish: ministral3Text}, "ministral3")
}

// mistralText has one kind of layers whatever layer_types says, and no biases.
func mistralText(c textConfig, d *decoder.Config) (err error) {
	c.LayerTypes = nil
	d.QKVBias, d.OBias, d.MLPBias = false, false, false
	d.Windows, err = c.narrow(c.windows(func(int) bool { return true }))
	return err
}

// ministral3Text is Mistral with queries that grow with their position.
// Reference: transformers Ministral3Config, Ministral3Attention.
func ministral3Text(c textConfig, d *decoder.Config) error {
	if err := mistralText(c, d); err != nil {
		return err
	}
	var r rope
	if list := c.flat(); len(list) > 0 {
		r = *list[len(list)-1]
	} else {
		r = rope{Theta: cmp.Or(c.RopeTheta, new(1e6)), Type: "yarn", Factor: 16, Original: new(16384), MScale: 1,
			MScaleAllDim: 1, Beta: new(0.1)}
		if err := r.apply(&d.Rope, c.MaxLen); err != nil {
			return err
		}
	}
	switch {
	case r.Beta == nil:
		return errors.New("llama_4_scaling_beta is missing from rope_parameters (rope_scaling)")
	case r.Original == nil:
		return errors.New("original_max_position_embeddings is missing from rope_parameters (rope_scaling)")
	}
	d.QueryScaling = &decoder.QueryScaling{Beta: *r.Beta, Every: *r.Original}
	return nil
}
