package families

import "github.com/mmserve/mmserve/decoder"

// mrope is how positions of three axes turn heads, nil where the file does not say.
func (c textConfig) mrope() (m *decoder.MRope) {
	for _, r := range []*rope{c.RopeScaling, c.Rope} {
		if r != nil && len(r.Sections) == 3 {
			m = &decoder.MRope{Sections: [3]int(r.Sections), Interleaved: r.Interleaved}
		}
	}
	return m
}

// The text classes of the Qwen-VL models, also by the model types of files that have a decoder's settings beside the
// others. Reference: transformers 5.12.1 Qwen2VLTextConfig, Qwen2_5_VLTextConfig.
func init() {
	qwen2VLText := textClass{defaults: func() textConfig {
		return textConfig{
			Hidden: 8192, Intermediate: 29568, Layers: 80, Heads: 64, KVHeads: new(8), Vocab: 152064, MaxLen: 32768, Eps: 1e-5,
			Activation: "silu", RopeTheta: new(1e6), UseWindow: new(false), Window: new(4096), MaxWindow: 80,
		}
	}, finish: func(c textConfig, d *decoder.Config) {
		d.QKVBias, d.MRope = true, c.mrope()
		d.Windows = c.windows(func(layer int) bool { return layer >= c.MaxWindow })
	}}
	for _, name := range []string{"qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"} {
		textClasses[name] = qwen2VLText
	}
}
