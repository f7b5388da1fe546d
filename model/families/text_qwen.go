package families

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/decoder"
)

func init() {
	qwen2 := func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 22016, Layers: 32, Heads: 32, KVHeads: new(32), Vocab: 151936, MaxLen: 32768, Eps: 1e-6,
			Activation: "silu", UseWindow: new(false), Window: new(4096), MaxWindow: 28,
		}
	}
	registerText(textClass{defaults: qwen2, finish: qwen2Text}, "qwen2")
	registerText(textClass{defaults: func() textConfig {
		c := qwen2()
		c.HeadDim = new(128)
		return c
	}, finish: qwen3Text}, "qwen3")
	// Files of before transformers 4.52 have the text model's settings beside the vision tower's.
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 8192, Intermediate: 29568, Layers: 80, Heads: 64, KVHeads: new(8), Vocab: 152064, MaxLen: 32768, Eps: 1e-5,
			Activation: "silu", RopeTheta: new(1e6), UseWindow: new(false), Window: new(4096), MaxWindow: 80,
		}
	}, finish: func(c textConfig, d *decoder.Config) (err error) {
		if err := qwen2Text(c, d); err != nil {
			return err
		}
		d.MRope, err = c.sections(nil, false)
		return err
	}}, "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl")
	registerText(textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 4096, Intermediate: 22016, Layers: 32, Heads: 32, KVHeads: new(32), HeadDim: new(128), Vocab: 151936,
			MaxLen: 128000, Eps: 1e-6, Activation: "silu", RopeTheta: new(5e5),
		}
	}, finish: func(c textConfig, d *decoder.Config) (err error) {
		d.QKNorm = true
		d.MRope, err = c.sections([]int{24, 20, 20}, true)
		return err
	}}, "qwen3_vl_text")
}

// qwen2Text has biases whatever attention_bias says.
func qwen2Text(c textConfig, d *decoder.Config) (err error) {
	d.QKVBias, d.OBias = true, false
	d.Windows, err = c.narrow(c.windows(func(layer int) bool { return layer >= c.MaxWindow }))
	return err
}

func qwen3Text(c textConfig, d *decoder.Config) (err error) {
	d.QKNorm = true
	d.Windows, err = c.narrow(c.windows(func(layer int) bool { return layer >= c.MaxWindow }))
	return err
}

// mropeType is a rope type of 4.x that stands for the default one with an mrope_section.
const mropeType = "mrope"

// sections reads mrope_section, which is missing where nobody says it; nil as missing wants it there. A class is
// interleaved or not, whatever the file says: one that says otherwise is refused.
func (c textConfig) sections(missing []int, interleaved bool) (*decoder.MRope, error) {
	list := missing
	for _, r := range c.flat() {
		if r.Sections != nil {
			list = r.Sections
		}
		if r.Interleaved != nil && *r.Interleaved != interleaved {
			return nil, fmt.Errorf("mrope_interleaved is %t, supported with model_type %q is %t", *r.Interleaved, c.Type, interleaved)
		}
	}
	if list == nil {
		return nil, errors.New("mrope_section is missing from rope_parameters (rope_scaling)")
	}
	if len(list) != 3 {
		return nil, fmt.Errorf("mrope_section has %d numbers, want 3", len(list))
	}
	return &decoder.MRope{Sections: [3]int(list), Interleaved: interleaved}, nil
}
