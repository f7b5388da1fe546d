package decoder

import (
	"math"
	"strings"
	"testing"
)

// The frequencies of 8 pairs, as the formulas of transformers' modeling_rope_utils give them in Python.
func TestRopeFrequencies(t *testing.T) {
	for name, c := range map[string]struct {
		rope Rope
		want [8]float64
	}{
		"default": {Rope{Theta: 10000}, [8]float64{1, 0.316227766, 0.1, 0.0316227766, 0.01, 0.00316227766, 0.001,
			0.000316227766}},
		"linear": {Rope{Theta: 10000, Scaling: RopeLinear, Factor: 2},
			[8]float64{0.5, 0.158113883, 0.05, 0.0158113883, 0.005, 0.00158113883, 0.0005, 0.000158113883}},
		"llama3": {Rope{Theta: 500000, Scaling: RopeLlama3, Factor: 8, OriginalMaxLen: 8192, LowFreq: 1, HighFreq: 4},
			[8]float64{1, 0.193922745, 0.0376060309, 0.00729266474, 0.000524846161, 3.4281022e-05, 6.64786987e-06,
				1.28917317e-06}},
		"yarn": {Rope{Theta: 10000, Scaling: RopeYarn, Factor: 4, OriginalMaxLen: 2048, BetaFast: 32, BetaSlow: 1,
			Truncate: true},
			[8]float64{1, 0.316227766, 0.1, 0.025693506, 0.00625, 0.00138349648, 0.00025, 7.90569415e-05}},
		"yarn without rounding": {Rope{Theta: 10000, Scaling: RopeYarn, Factor: 4, OriginalMaxLen: 2048, BetaFast: 32,
			BetaSlow: 1},
			[8]float64{1, 0.316227766, 0.1, 0.0238701923, 0.00505697152, 0.000811290382, 0.00025, 7.90569415e-05}},
	} {
		for i, got := range c.rope.frequencies(16) {
			if math.Abs(got/c.want[i]-1) > 1e-8 {
				t.Errorf("%s: frequency %d is %.9g, want %.9g", name, i, got, c.want[i])
			}
		}
	}
}

func TestRopeValidate(t *testing.T) {
	for want, r := range map[string]Rope{
		"rope_theta is 1":                       {Theta: 1},
		"rope factor is 0.5":                    {Theta: 1e4, Scaling: RopeLinear, Factor: 0.5},
		"original_max_position_embeddings is 0": {Theta: 1e4, Scaling: RopeYarn, Factor: 2},
		"low_freq_factor is 4": {Theta: 1e4, Scaling: RopeLlama3, Factor: 2, OriginalMaxLen: 10, LowFreq: 4,
			HighFreq: 4},
		"beta_slow is 0":    {Theta: 1e4, Scaling: RopeYarn, Factor: 2, OriginalMaxLen: 10, BetaFast: 32},
		"rope_theta is NaN": {Theta: math.NaN()},
	} {
		if err := r.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
	}
}
