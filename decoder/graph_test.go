package decoder

import (
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
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
