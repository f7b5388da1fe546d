package decoder

import (
	"cmp"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
)

// Rope holds the values of rotate-half position embeddings and of their scaling to long contexts.
// Reference: transformers modeling_rope_utils.
type Rope struct {
	Theta float64
	// Scaling says how frequencies are changed; the zero value leaves them.
	Scaling RopeScaling
	// Factor divides frequencies: all of them (RopeLinear), or those that turn slowly (RopeLlama3, RopeYarn).
	Factor float64
	// OriginalMaxLen is the context of the pre-training, from which RopeLlama3 and RopeYarn tell slow from fast.
	OriginalMaxLen int
	// LowFreq and HighFreq are RopeLlama3's turns over that context: below LowFreq a frequency is divided, above
	// HighFreq it is left, between them it is mixed.
	LowFreq, HighFreq float64
	// BetaFast and BetaSlow are RopeYarn's turns: as HighFreq and LowFreq, but mixed linearly by the index of the
	// frequency, which Truncate rounds outwards.
	BetaFast, BetaSlow float64
	Truncate           bool
	// Magnitude multiplies what is rotated; 0 is 1.
	Magnitude float64
}

// RopeScaling is a way to stretch position embeddings over more positions than a model was first trained on.
type RopeScaling int

// The ways that are built.
const (
	RopeUnscaled RopeScaling = iota
	RopeLinear
	RopeLlama3
	RopeYarn
)

// validate refuses values that give no frequencies.
func (r Rope) validate() error {
	switch {
	case !(r.Theta > 1):
		return fmt.Errorf("text_config.rope_theta is %g, want more than 1", r.Theta)
	case r.Scaling == RopeUnscaled:
		return nil
	case !(r.Factor >= 1):
		return fmt.Errorf("text_config's rope factor is %g, want 1 or more", r.Factor)
	case r.Scaling == RopeLinear:
		return nil
	case r.OriginalMaxLen < 1:
		return fmt.Errorf("text_config's rope original_max_position_embeddings is %d, want 1 or more", r.OriginalMaxLen)
	case r.Scaling == RopeLlama3 && !(r.LowFreq > 0 && r.HighFreq > r.LowFreq):
		return fmt.Errorf("text_config's rope low_freq_factor is %g and high_freq_factor %g, want 0 < low < high", r.LowFreq, r.HighFreq)
	case r.Scaling == RopeYarn && !(r.BetaSlow > 0 && r.BetaFast > r.BetaSlow):
		return fmt.Errorf("text_config's rope beta_slow is %g and beta_fast %g, want 0 < slow < fast", r.BetaSlow, r.BetaFast)
	}
	return nil
}

// frequencies are the angles in radians, [dim/2], by which one position turns each pair.
func (r Rope) frequencies(dim int) []float64 {
	list := make([]float64, dim/2)
	for i := range list {
		list[i] = math.Pow(r.Theta, -float64(2*i)/float64(dim))
	}
	switch r.Scaling {
	case RopeLinear:
		for i := range list {
			list[i] /= r.Factor
		}
	case RopeLlama3:
		for i, f := range list {
			turns := float64(r.OriginalMaxLen) * f / (2 * math.Pi)
			keep := min(1, max(0, (turns-r.LowFreq)/(r.HighFreq-r.LowFreq)))
			list[i] = (1-keep)*f/r.Factor + keep*f
		}
	case RopeYarn:
		// at is the index of the frequency that turns n times over the original context.
		at := func(n float64) float64 {
			return float64(dim) * math.Log(float64(r.OriginalMaxLen)/(n*2*math.Pi)) / (2 * math.Log(r.Theta))
		}
		low, high := at(r.BetaFast), at(r.BetaSlow)
		if r.Truncate {
			low, high = math.Floor(low), math.Ceil(high)
		}
		low, high = max(low, 0), min(high, float64(dim-1))
		if low == high {
			high += 0.001 // the reference's way out of a division by zero
		}
		for i, f := range list {
			slow := min(1, max(0, (float64(i)-low)/(high-low)))
			list[i] = slow*f/r.Factor + (1-slow)*f
		}
	}
	return list
}

// rotary adds the cosine and sine tables [MaxLen, HeadDim/2] of rotate-half position embeddings.
func (c Config) rotary(b *graph.Builder) (cos, sin string) {
	half := c.HeadDim / 2
	magnitude := cmp.Or(c.Rope.Magnitude, 1)
	cs, sn := make([]float32, c.MaxLen*half), make([]float32, c.MaxLen*half)
	for i, f := range c.Rope.frequencies(c.HeadDim) {
		for pos := range c.MaxLen {
			s, co := math.Sincos(float64(pos) * f)
			cs[pos*half+i], sn[pos*half+i] = float32(magnitude*co), float32(magnitude*s)
		}
	}
	return b.F32s("cos", []int{c.MaxLen, half}, cs), b.F32s("sin", []int{c.MaxLen, half}, sn)
}
