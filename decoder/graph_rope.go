package decoder

import (
	"cmp"
	"errors"
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

// QueryScaling multiplies the queries of position p by 1 + Beta·ln(1 + ⌊p/Every⌋), after they are rotated.
// Reference: transformers Ministral3Attention (llama_4_scaling_beta).
type QueryScaling struct {
	Beta  float64
	Every int
}

// at is the factor of a position.
func (q QueryScaling) at(position int) float64 {
	return 1 + q.Beta*math.Log(1+math.Floor(float64(position)/float64(q.Every)))
}

// rotaryDim is the number of a head's values that rotate.
func (c Config) rotaryDim() int { return cmp.Or(c.RotaryDim, c.HeadDim) }

// RopeBytes is the memory of the tables of cosines and sines of a position.
func (c Config) RopeBytes() int {
	switch {
	case c.EncoderStates > 0 || c.MRope != nil:
		return 0
	case c.LocalRope != nil:
		return 2 * 4 * c.rotaryDim()
	}
	return 4 * c.rotaryDim()
}

// validateRotation refuses what heads cannot be rotated by.
func (c Config) validateRotation() error {
	if n := c.rotaryDim(); n < 2 || n > c.HeadDim || n%2 != 0 {
		return fmt.Errorf("text_config: %d of the %d values of a head rotate (partial_rotary_factor), want an even number from 2", n, c.HeadDim)
	}
	if q := c.QueryScaling; q != nil && !(q.Every >= 1 && q.Beta >= 0 && q.Beta <= math.MaxFloat32 && c.MRope == nil) {
		return fmt.Errorf("text_config: llama_4_scaling_beta is %g over original_max_position_embeddings %d, want none below 0 over 1 or more, and no mrope_section", q.Beta, q.Every)
	}
	if c.LocalRope != nil {
		if c.MRope != nil {
			return errors.New("text_config: mrope_section with a rope of its own for windows is not supported")
		}
		if err := c.LocalRope.validate(); err != nil {
			return fmt.Errorf("%w (sliding_attention)", err)
		}
	}
	return c.Rope.validate()
}

// validate refuses values that give no frequencies.
func (r Rope) validate() error {
	switch {
	case !(r.Theta > 1 && r.Theta <= math.MaxFloat64):
		return fmt.Errorf("text_config.rope_theta is %g, want more than 1", r.Theta)
	case r.Scaling == RopeUnscaled:
		return nil
	case !(r.Factor >= 1 && r.Factor <= math.MaxFloat64):
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

// tables adds the cosines and sines of every position's angles, [positions, dim/2].
func (r Rope) tables(b *graph.Builder, name string, positions, dim int) rotation {
	half := dim / 2
	magnitude := cmp.Or(r.Magnitude, 1)
	cs, sn := make([]float32, positions*half), make([]float32, positions*half)
	for i, f := range r.frequencies(dim) {
		for pos := range positions {
			s, co := math.Sincos(float64(pos) * f)
			cs[pos*half+i], sn[pos*half+i] = float32(magnitude*co), float32(magnitude*s)
		}
	}
	return rotation{b.F32s(name+"cos", []int{positions, half}, cs), b.F32s(name+"sin", []int{positions, half}, sn)}
}
