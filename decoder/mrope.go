package decoder

import (
	"cmp"
	"fmt"
	"math"
)

// MRope has the pairs of a head turn by the place of a position in time, height or width (see places) instead of by
// its number.
// Reference: transformers Qwen2VLRotaryEmbedding, apply_multimodal_rotary_pos_emb, Qwen3VLTextRotaryEmbedding.
type MRope struct {
	// Sections are the numbers of pairs that time, height and width turn. Their sum is all that rotate.
	Sections [3]int
	// Interleaved deals the pairs out one by one: time, height, width, time, …, as long as height and width have any
	// left; the rest is time's. Otherwise sections lie one behind the other.
	Interleaved bool
}

// validate refuses sections that do not give each of so many pairs one axis. The reference cuts some of them off
// without a word.
func (m MRope) validate(pairs int) error {
	sum := 0
	for _, n := range m.Sections {
		if n < 0 || n > pairs {
			return fmt.Errorf("text_config's mrope_section is %v, want three numbers from 0 to %d", m.Sections, pairs)
		}
		sum += n
	}
	if sum != pairs {
		return fmt.Errorf("text_config's mrope_section is %v, want a sum of %d: half of what rotates of a head", m.Sections, pairs)
	}
	if !m.Interleaved {
		return nil
	}
	for axis := 1; axis < 3; axis++ {
		if last := axis + 3*(m.Sections[axis]-1); last >= pairs {
			return fmt.Errorf("text_config's mrope_section is %v with mrope_interleaved, which has pair %d turn; want less than %d", m.Sections, last, pairs)
		}
	}
	return nil
}

// axes says which axis turns each of so many pairs: 0 for time, 1 for height, 2 for width.
func (m MRope) axes(pairs int) []uint8 {
	list := make([]uint8, pairs)
	for axis, from := 1, m.Sections[0]; axis < 3; axis++ {
		for i := range m.Sections[axis] {
			if m.Interleaved {
				list[axis+3*i] = uint8(axis)
			} else {
				list[from+i] = uint8(axis)
			}
		}
		from += m.Sections[axis]
	}
	return list
}

// turns gives the cosines and sines of places.
type turns struct {
	frequencies []float64 // radians that a place turns each pair by
	axes        []uint8
	magnitude   float64
}

// turns is nil where pairs turn by the number of a position.
func (c Config) turns() *turns {
	if c.MRope == nil {
		return nil
	}
	f := c.Rope.frequencies(c.rotaryDim())
	return &turns{frequencies: f, axes: c.MRope.axes(len(f)), magnitude: cmp.Or(c.Rope.Magnitude, 1)}
}

// at writes the row [pairs] of a place into cos and sin.
func (t *turns) at(place [3]int64, cos, sin []float32) {
	for i, f := range t.frequencies {
		s, c := math.Sincos(float64(place[t.axes[i]]) * f)
		cos[i], sin[i] = float32(t.magnitude*c), float32(t.magnitude*s)
	}
}
