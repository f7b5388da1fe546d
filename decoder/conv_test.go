package decoder

import (
	"strings"
	"testing"
)

// While a sequence is at a position, the columns that are looked back at, and those that others may start after, each
// have a row of their own, whatever drafts were written behind it.
func TestConvRows(t *testing.T) {
	for _, taps := range []int{2, 3, 4, 32} {
		const most = 300
		v := &convCache{taps: taps}
		v.rows = v.used(most) + 1
		c := Config{ShortConv: &ShortConv{Taps: taps}}
		written := make([]int, v.rows) // the last position of each row, plus one
		for past := range most {
			for p := past; p < min(past+c.longestStep(), most); p++ { // a step of drafts, none of which is right
				row, _ := v.row(p)
				if row < 0 || row >= v.rows-1 {
					t.Fatalf("position %d has row %d of %d", p, row, v.rows)
				}
				written[row] = p + 1
			}
			for back := 1; back < taps; back++ {
				p := past + 1 - back
				row, _ := v.row(p)
				if p >= 0 && written[row] != p+1 || p < 0 && row != v.rows-1 {
					t.Fatalf("%d taps at position %d: the column of %d was written over", taps, past+1, p)
				}
			}
			for start := convPeriod; start <= past; start += convPeriod {
				for back := 1; back < taps; back++ {
					if row, kept := v.row(start - back); !kept || written[row] != start-back+1 {
						t.Fatalf("%d taps at position %d: none can start at %d", taps, past+1, start)
					}
				}
			}
		}
	}
}

func TestShortConvRefusals(t *testing.T) {
	base := Config{Layers: 2, Hidden: 32, Intermediate: 32, Heads: 2, KVHeads: 2, HeadDim: 16, Vocab: 8, MaxLen: 64,
		Rope: Rope{Theta: 10000}, Activation: "silu", ShortConv: &ShortConv{Taps: 3, Layers: []bool{true, false}}}
	if err := base.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"conv_L_cache is 1":            func(c *Config) { c.ShortConv.Taps = 1 },
		"conv_L_cache is 33":           func(c *Config) { c.ShortConv.Taps = 33 },
		"layer_types has 1 layers":     func(c *Config) { c.ShortConv.Layers = []bool{false} },
		"no layer of full_attention":   func(c *Config) { c.ShortConv.Layers = []bool{true, true} },
		"are not supported together":   func(c *Config) { c.WholePrompt = true },
		"are not supported together: ": func(c *Config) { c.ImageBlocks = true },
	} {
		c := base
		s := *base.ShortConv
		c.ShortConv = &s
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(want, ": ")) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	// What is kept for each 64 positions, and the newest columns, count as memory.
	if kv := int64(2 * 2 * 16 * 4); base.KVBytesPerToken() != kv+4 || base.KVBytes(100, 2)-base.KVBytes(100, 1) < 67*32*4 {
		t.Errorf("%d bytes a token, %d a sequence", base.KVBytesPerToken(), base.KVBytes(100, 2)-base.KVBytes(100, 1))
	}
	if n := base.KVTokens(base.KVBytes(100, 2), 2); n != 100 {
		t.Errorf("%d positions in the memory of 100", n)
	}
}
