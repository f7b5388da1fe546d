package families

import (
	"fmt"

	"github.com/mmserve/mmserve/decoder"
)

func init() {
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 11008, Layers: 32, Heads: 32, Vocab: 32000, MaxLen: 2048, Eps: 1e-6, Activation: "silu",
			EmbeddingMultiplier: 1, AttentionMultiplier: 1, ResidualMultiplier: 1,
		}
	}, finish: graniteText}, "granite")
}

// graniteText does not divide logits by logits_scaling: the models of transformers that see images do not.
// Reference: transformers GraniteModel.
func graniteText(c textConfig, d *decoder.Config) error {
	for _, f := range []struct {
		name  string
		value float32
	}{
		{"embedding_multiplier", c.EmbeddingMultiplier}, {"attention_multiplier", c.AttentionMultiplier},
		{"residual_multiplier", c.ResidualMultiplier},
	} {
		if !(f.value > 0) {
			return fmt.Errorf("%s is %g, want more than 0", f.name, f.value)
		}
	}
	d.InputScale, d.AttentionScale, d.ResidualScale = c.EmbeddingMultiplier, c.AttentionMultiplier, c.ResidualMultiplier
	return nil
}
