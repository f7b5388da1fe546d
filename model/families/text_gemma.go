package families

import (
	"cmp"
	"errors"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/decoder"
)

func init() {
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 3072, Intermediate: 24576, Layers: 28, Heads: 16, KVHeads: new(16), HeadDim: new(256), Vocab: 256000,
			MaxLen: 8192, Eps: 1e-6, Tied: new(true),
		}
	}, finish: gemma}, "gemma")
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 2304, Intermediate: 9216, Layers: 26, Heads: 8, KVHeads: new(4), HeadDim: new(256), Vocab: 256000,
			MaxLen: 8192, Eps: 1e-6, Tied: new(true), Window: new(4096), QueryScalar: new(256.0), Softcap: new(float32(50)),
		}
	}, finish: gemma2Text}, "gemma2")
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 2304, Intermediate: 9216, Layers: 26, Heads: 8, KVHeads: new(4), HeadDim: new(256), Vocab: 262208,
			MaxLen: 131072, Eps: 1e-6, Tied: new(true), Window: new(4096), QueryScalar: new(256.0),
			HiddenActivation: "gelu_pytorch_tanh", Pattern: new(6),
		}
	}, finish: gemma3Text}, "gemma3_text")
}

// gemma has the tanh form of gelu whatever hidden_act says: files of the first release say "gelu" and mean it.
func gemma(c textConfig, d *decoder.Config) error {
	d.Activation = "gelu_pytorch_tanh"
	d.UnitNorms = true
	d.EmbedScale = float32(math.Sqrt(float64(max(c.Hidden, 0))))
	return nil
}

// queryScale is the attention scale that query_pre_attn_scalar stands for.
func (c textConfig) queryScale() (float32, error) {
	if c.QueryScalar == nil {
		return 0, errors.New("query_pre_attn_scalar is null")
	}
	if !(*c.QueryScalar > 0 && *c.QueryScalar <= 1<<24) {
		return 0, fmt.Errorf("query_pre_attn_scalar is %g, want more than 0, up to %d", *c.QueryScalar, 1<<24)
	}
	return float32(1 / math.Sqrt(*c.QueryScalar)), nil
}

func gemma2Text(c textConfig, d *decoder.Config) (err error) {
	if err := gemma(c, d); err != nil {
		return err
	}
	d.SandwichNorms = true
	if d.Windows, err = c.narrow(c.windows(func(layer int) bool { return layer%2 == 0 })); err != nil {
		return err
	}
	if c.Softcap != nil {
		d.Softcap = *c.Softcap
	}
	d.AttentionScale, err = c.queryScale()
	return err
}

// gemma3Text has no cap on the products of queries and keys, whatever attn_logit_softcapping says. A layer's kind
// counts however long its window is: it has a rope of its own.
// Reference: transformers Gemma3TextConfig, Gemma3Attention.
func gemma3Text(c textConfig, d *decoder.Config) (err error) {
	if err := gemma(c, d); err != nil {
		return err
	}
	if s := string(c.BothWays); s != "" && s != "null" && s != "false" {
		return fmt.Errorf("use_bidirectional_attention is %.40s, supported is false", s)
	}
	d.Activation = c.HiddenActivation
	d.SandwichNorms, d.QKNorm = true, true
	if d.AttentionScale, err = c.queryScale(); err != nil {
		return err
	}
	if c.Pattern == nil || *c.Pattern < 1 {
		return errors.New("sliding_window_pattern is below 1 or null")
	}
	if d.Windows, err = c.windows(func(layer int) bool { return (layer+1)%*c.Pattern != 0 }); err != nil {
		return err
	}
	if d.Windows == nil {
		return errors.New("sliding_window is null, want 1 or more")
	}
	given := cmp.Or(c.Rope, new(ropes))
	if given.Theta != nil || given.kind() != "" {
		return errors.New("rope_parameters is one rope, want full_attention and sliding_attention in it")
	}
	full, local := cmp.Or(given.Full, c.RopeScaling).theta(c.RopeTheta), given.Sliding.theta(c.LocalTheta)
	d.Rope, d.LocalRope = decoder.Rope{Theta: 1e6}, &decoder.Rope{Theta: 1e4}
	return errors.Join(full.over(&d.Rope, c.MaxLen), local.over(d.LocalRope, c.MaxLen))
}
