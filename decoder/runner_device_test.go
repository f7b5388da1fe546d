package decoder

import (
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
)

func TestSizes(t *testing.T) {
	for n, want := range map[int][]int{
		1: {1}, 4: {1, 2, 3, 4}, 6: {1, 2, 3, 4, 5, 6}, 20: {1, 2, 3, 4, 5, 8, 9, 16, 17, 20}, 64: {1, 2, 3, 4, 5, 8, 9, 16,
			17, 32, 33, 64},
	} {
		if got := sizes(n); !slices.Equal(got, want) {
			t.Errorf("up to %d: %v, want %v", n, got, want)
		}
	}
}

// A decoder that the device's graph cannot be built for is refused by what it has.
func TestDeviceGraphRefuses(t *testing.T) {
	c := Config{Layers: 1, Hidden: 32, Intermediate: 32, Heads: 2, KVHeads: 2, HeadDim: 16, Vocab: 8, MaxLen: 64,
		Rope: Rope{Theta: 10000}, Activation: "silu"}
	for want, change := range map[string]func(*Config){
		"attn_logit_softcapping":            func(c *Config) { c.Softcap = 50 },
		"sliding windows":                   func(c *Config) { c.Windows = []int{16} },
		"attention both ways in the prompt": func(c *Config) { c.WholePrompt = true },
		"cross-attention":                   func(c *Config) { c.EncoderStates = 4 },
		"head_dim":                          func(c *Config) { c.HeadDim = 24 },
		"among an image's positions":        func(c *Config) { c.ImageBlocks = true },
		"short convolutions":                func(c *Config) { c.ShortConv = &ShortConv{Taps: 3, Layers: []bool{false}} },
	} {
		with := c
		change(&with)
		_, err := with.deviceGraph(nil, graph.FP32, graph.Target{Device: true})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want a refusal for %s", err, want)
		}
	}
}
