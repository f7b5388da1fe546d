package decoder

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestMRopeAxes(t *testing.T) {
	for _, c := range []struct {
		MRope
		want []uint8
	}{
		{MRope{Sections: [3]int{2, 3, 3}}, []uint8{0, 0, 1, 1, 1, 2, 2, 2}},
		{MRope{Sections: [3]int{8, 0, 0}}, []uint8{0, 0, 0, 0, 0, 0, 0, 0}},
		{MRope{Sections: [3]int{0, 5, 3}}, []uint8{1, 1, 1, 1, 1, 2, 2, 2}},
		{MRope{Sections: [3]int{3, 3, 2}, Interleaved: true}, []uint8{0, 1, 2, 0, 1, 2, 0, 1}},
		{MRope{Sections: [3]int{5, 2, 1}, Interleaved: true}, []uint8{0, 1, 2, 0, 1, 0, 0, 0}},
		{MRope{Sections: [3]int{8, 0, 0}, Interleaved: true}, []uint8{0, 0, 0, 0, 0, 0, 0, 0}},
	} {
		if err := c.validate(8); err != nil {
			t.Errorf("%+v: %v", c.MRope, err)
		}
		if got := c.axes(8); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.MRope, got, c.want)
		}
	}
}

func TestMRopeRefusals(t *testing.T) {
	base := Config{
		Layers: 2, Hidden: 64, Intermediate: 64, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 10, MaxLen: 64,
		Rope: Rope{Theta: 1e6}, Activation: "silu",
	}
	if err := base.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"is [2 3 2], want a sum of 8":                         func(c *Config) { c.MRope = &MRope{Sections: [3]int{2, 3, 2}} },
		"is [4 4 4], want a sum of 8":                         func(c *Config) { c.MRope = &MRope{Sections: [3]int{4, 4, 4}} },
		"is [9 -2 1], want three numbers from 0 to 8":         func(c *Config) { c.MRope = &MRope{Sections: [3]int{9, -2, 1}} },
		"is [2 3 3] with mrope_interleaved, which has pair 8": func(c *Config) { c.MRope = &MRope{Sections: [3]int{2, 3, 3}, Interleaved: true} },
		"features for 3 layers":                               func(c *Config) { c.Deepstack = 3 },
		"names 17 layers, want at most 16":                    func(c *Config) { c.Layers, c.Deepstack = 17, 17 },
		"features for -1 layers":                              func(c *Config) { c.Deepstack = -1 },
		"not of both":                                         func(c *Config) { c.ImageBlocks, c.WholePrompt = true, true },
		"has no images among":                                 func(c *Config) { c.ImageBlocks, c.EncoderStates = true, 3 },
	} {
		c := base
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// Each pair turns by the place on its axis, scaled as the frequencies are.
func TestTurns(t *testing.T) {
	c := Config{
		HeadDim: 8, Rope: Rope{Theta: 100, Scaling: RopeLinear, Factor: 2, Magnitude: 3},
		MRope: &MRope{Sections: [3]int{1, 2, 1}},
	}
	cos, sin := make([]float32, 4), make([]float32, 4)
	c.turns().at([3]int64{5, 7, 11}, cos, sin)
	for i, place := range []float64{5, 7, 7, 11} {
		s, co := math.Sincos(place * math.Pow(100, -float64(i)/4) / 2)
		if math.Abs(float64(cos[i])-3*co) > 1e-6 || math.Abs(float64(sin[i])-3*s) > 1e-6 {
			t.Errorf("pair %d: %g and %g, want %g and %g", i, cos[i], sin[i], 3*co, 3*s)
		}
	}
	if (Config{}).turns() != nil {
		t.Error("a decoder of one axis has places")
	}
}
