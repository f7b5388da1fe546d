package decoder

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// A prompt, then single steps, through one attention layer in every variant, against attention written out in float64.
func TestAttentionVariants(t *testing.T) {
	lib, err := ort.FindLibrary(os.Getenv("MMSERVE_ORT_LIB"))
	if err == nil {
		err = ort.Start(lib)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func(had bool) { graph.HasKernels = had }(graph.HasKernels)
	base := Config{Layers: 1, Heads: 4, KVHeads: 2, HeadDim: 16, MaxLen: 32, Rope: Rope{Theta: 100}}
	for name, change := range map[string]func(*Config){
		"a part of the head": func(c *Config) { c.RotaryDim = 6 },
		"pairs":              func(c *Config) { c.RopePairs = true },
		"a part in pairs":    func(c *Config) { c.RotaryDim, c.RopePairs = 10, true },
		"query scaling":      func(c *Config) { c.QueryScaling = &QueryScaling{Beta: 0.7, Every: 3} },
		"a rope for windows": func(c *Config) { c.Windows, c.LocalRope = []int{3}, &Rope{Theta: 7} },
		"a rope for others":  func(c *Config) { c.Windows, c.LocalRope = []int{0}, &Rope{Theta: 7} },
		"all": func(c *Config) {
			c.Windows, c.LocalRope = []int{4}, &Rope{Theta: 9, Magnitude: 1.5, Scaling: RopeLinear, Factor: 3}
			c.RotaryDim, c.RopePairs, c.Softcap, c.QueryScaling = 12, true, 0.5, &QueryScaling{Beta: 2, Every: 2}
		},
	} {
		for _, whole := range []bool{false, true} {
			c := base
			change(&c)
			c.WholePrompt = whole
			for _, own := range slices.Compact([]bool{false, kernels.Available()}) {
				graph.HasKernels = own
				t.Run(fmt.Sprintf("%s/whole=%t/kernels=%t", name, whole, own), func(t *testing.T) { checkAttention(t, c) })
			}
		}
	}
	graph.HasKernels = kernels.Available()
	for _, window := range []int{0, 1, 3} {
		for _, softcap := range []float32{0, 0.5} {
			for _, scale := range []float32{0, 0.7} {
				for _, whole := range []bool{false, true} {
					c := base
					c.Softcap, c.AttentionScale, c.WholePrompt = softcap, scale, whole
					if window > 0 {
						c.Windows = []int{window}
					}
					t.Run(fmt.Sprintf("window=%d/softcap=%g/scale=%g/whole=%t", window, softcap, scale, whole),
						func(t *testing.T) { checkAttention(t, c) })
				}
			}
		}
	}
}

func checkAttention(t *testing.T, c Config) {
	const prompt, steps = 7, 4
	b := graph.NewBuilder("attention", nil, graph.FP32)
	q := b.Input("q", onnx.F32, "B", "S", c.Heads*c.HeadDim)
	k := b.Input("k", onnx.F32, "B", "S", c.KVHeads*c.HeadDim)
	v := b.Input("v", onnx.F32, "B", "S", c.KVHeads*c.HeadDim)
	a := attention{Config: c, seqlens: b.Input("seqlens_k", onnx.I32, "B"),
		total: b.Input("total_sequence_length", onnx.I32, 1)}
	a.rotary(b, func() string { return b.Op("Squeeze", nil, b.Op("Shape", onnx.Attrs{"start": 1, "end": 2}, q)) })
	if c.WholePrompt {
		a.first = isFirst(b, q, a.seqlens)
	}
	b.Output("y", onnx.F32, "B", "S", c.Heads*c.HeadDim)
	b.Name(a.layer(b, 0, []string{q, k, v}), "y")
	s, err := ort.NewSession(b, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	kv, err := newKVCache(c, 1, c.MaxLen)
	if err != nil {
		t.Fatal(err)
	}
	defer kv.close()
	cache, err := kv.view(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	lengths, err := ort.Alloc[int32](2)
	if err != nil {
		t.Fatal(err)
	}
	defer lengths.Free()
	rng := rand.New(rand.NewPCG(1, 2))
	widths := [...]int{c.Heads * c.HeadDim, c.KVHeads * c.HeadDim, c.KVHeads * c.HeadDim, c.Heads * c.HeadDim}
	var all [3][]float32 // q, k and v of the sequence so far
	for past, n := 0, prompt; past < prompt+steps; past, n = past+n, 1 {
		var views viewList
		var data [4][]float32 // q, k, v, y
		var tensors [4]ort.Tensor
		for i, w := range widths {
			m, err := ort.Alloc[float32](n * w)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Free()
			data[i] = m.Slice()
			tensors[i] = view(&views, data[i], 1, n, w)
			if i < 3 {
				for j := range data[i] {
					data[i][j] = float32(rng.NormFloat64())
				}
				all[i] = append(all[i], data[i]...)
			}
		}
		lengths.Slice()[0], lengths.Slice()[1] = int32(past+n-1), int32(past+n)
		in := append(tensors[:3:3], view(&views, lengths.Slice(), 1), view(&views, lengths.Slice()[1:], 1))
		if err := s.Run(append(in, cache...), append(tensors[3:4:4], cache...)); err != nil {
			t.Fatal(err)
		}
		views.destroy()
		for at := past; at < past+n; at++ {
			first, last := 0, at
			if w := c.Windows; w != nil {
				first = max(0, at-w[0]+1)
			}
			if c.WholePrompt && at < prompt {
				first, last = 0, prompt-1
			}
			want := attend(c, all, at, first, last)
			for i, x := range data[3][(at-past)*widths[3]:][:widths[3]] {
				if math.Abs(float64(x)-want[i]) > 1e-5 {
					t.Fatalf("position %d, value %d: %g, want %g", at, i, x, want[i])
				}
			}
		}
	}
}

// attend is what position at gets from positions first to last.
func attend(c Config, all [3][]float32, at, first, last int) []float64 {
	var out []float64
	for h := range c.Heads {
		kvHead := h / (c.Heads / c.KVHeads)
		q := rotate(c, all[0][(at*c.Heads+h)*c.HeadDim:], at)
		scale := float64(c.AttentionScale)
		if scale == 0 {
			scale = 1 / math.Sqrt(float64(c.HeadDim))
		}
		if s := c.QueryScaling; s != nil {
			scale *= 1 + s.Beta*math.Log(1+float64(at/s.Every))
		}
		sum, y := 0.0, make([]float64, c.HeadDim)
		for p := first; p <= last; p++ {
			score := 0.0
			for i, x := range rotate(c, all[1][(p*c.KVHeads+kvHead)*c.HeadDim:], p) {
				score += x * q[i]
			}
			score *= scale
			if limit := float64(c.Softcap); limit > 0 {
				score = math.Tanh(score/limit) * limit
			}
			w := math.Exp(score)
			sum += w
			for i := range y {
				y[i] += w * float64(all[2][(p*c.KVHeads+kvHead)*c.HeadDim+i])
			}
		}
		for _, x := range y {
			out = append(out, x/sum)
		}
	}
	return out
}

// rotate turns one head's values by its position, halves against each other, or pairs that lie beside each other.
func rotate(c Config, x []float32, position int) []float64 {
	rope, dim, magnitude := c.Rope, c.HeadDim, 1.0
	if c.LocalRope != nil && c.Windows[0] > 0 {
		rope = *c.LocalRope
	}
	if c.RotaryDim > 0 {
		dim = c.RotaryDim
	}
	if rope.Magnitude > 0 {
		magnitude = rope.Magnitude
	}
	out := make([]float64, c.HeadDim)
	for i := range out {
		out[i] = float64(x[i])
	}
	for i := range dim / 2 {
		angle := float64(position) * math.Pow(rope.Theta, -float64(2*i)/float64(dim))
		if rope.Scaling == RopeLinear {
			angle /= rope.Factor
		}
		m, n := i, i+dim/2
		if c.RopePairs {
			m, n = 2*i, 2*i+1
		}
		sin, cos := math.Sincos(angle)
		a, b := float64(x[m])*magnitude, float64(x[n])*magnitude
		out[m], out[n] = a*cos-b*sin, b*cos+a*sin
	}
	return out
}
