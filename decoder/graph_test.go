package decoder

import (
	"math"
	"strings"
	"testing"
)

func TestConfigValidate(t *testing.T) {
	good := Config{Layers: 1, Hidden: 32, Intermediate: 64, Heads: 2, KVHeads: 1, HeadDim: 16, Vocab: 10, MaxLen: 8,
		Rope: Rope{Theta: 10000}, Eps: 1e-5, Activation: "silu"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"head_dim 24":             func(c *Config) { c.HeadDim = 24 },
		"num_attention_heads 3":   func(c *Config) { c.Heads, c.KVHeads = 3, 2 },
		"vocab_size is 0":         func(c *Config) { c.Vocab = 0 },
		"hidden_size is -1":       func(c *Config) { c.Hidden = -1 },
		`hidden_act "relu_cubed"`: func(c *Config) { c.Activation = "relu_cubed" },
		"rope_theta is 0":         func(c *Config) { c.Rope.Theta = 0 },
		"rope_theta is +Inf":      func(c *Config) { c.Rope.Theta = math.Inf(1) },
		"(sliding_attention)":     func(c *Config) { c.LocalRope = &Rope{} },
		"rms_norm_eps is -1":      func(c *Config) { c.Eps = -1 },
		"rms_norm_eps is NaN":     func(c *Config) { c.Eps = float32(math.NaN()) },
		"3 of the 16 values":      func(c *Config) { c.RotaryDim = 3 },
		"18 of the 16 values":     func(c *Config) { c.RotaryDim = 18 },
		"-2 of the 16 values":     func(c *Config) { c.RotaryDim = -2 },
		"sliding_window is -1":    func(c *Config) { c.Windows = []int{-1} },
		"layer_types has 2":       func(c *Config) { c.Windows = []int{1, 1} },
		"residual_multiplier is":  func(c *Config) { c.ResidualScale = float32(math.NaN()) },
		"embedding_multiplier is": func(c *Config) { c.InputScale = float32(math.Inf(1)) },
		"llama_4_scaling_beta is": func(c *Config) { c.QueryScaling = &QueryScaling{Beta: 1} },
		"rope of its own for windows": func(c *Config) {
			c.LocalRope, c.MRope = &Rope{Theta: 9}, &MRope{Sections: [3]int{2, 3, 3}}
		},
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
