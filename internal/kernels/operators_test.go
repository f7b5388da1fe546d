package kernels_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// startLibrary loads the repository's fetched library; without it these tests cannot mean anything.
func startLibrary(t testing.TB) {
	t.Helper()
	lib, err := ort.FindLibrary(os.Getenv("MMSERVE_ORT_LIB"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ort.Start(lib); err != nil {
		t.Fatal(err)
	}
}

func alloc(t testing.TB, n int) *ort.Memory[float32] {
	t.Helper()
	m, err := ort.Alloc[float32](n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Free() })
	return m
}

func view[T ort.Element](t testing.TB, values []T, dims ...int) ort.Tensor {
	t.Helper()
	m, err := ort.Alloc[T](len(values))
	if err != nil {
		t.Fatal(err)
	}
	copy(m.Slice(), values)
	v, err := ort.View(m.Slice(), dims...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Destroy(); m.Free() })
	return v
}

func randoms(seed uint64, n int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 0))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// linearGraph is a RowLinear8 of 3 panels over random weights.
func linearGraph(k, activation int) *onnx.Graph {
	const n, channels = 48, 48
	rng := rand.New(rand.NewPCG(uint64(k), 1))
	steps := (k + 3) / 4
	weights, scale, start := make([]byte, channels*steps*4), make([]float32, channels), make([]byte, channels*4)
	for panel := range channels / 16 {
		for i := range steps {
			for lane := range 16 {
				for j := range min(4, k-i*4) {
					w := int8(rng.IntN(255) - 127)
					weights[((panel*steps+i)*16+lane)*4+j] = byte(w)
					at := (panel*16 + lane) * 4
					binary.LittleEndian.PutUint32(start[at:], binary.LittleEndian.Uint32(start[at:])-uint32(128*int32(w)))
				}
			}
		}
	}
	for i := range scale {
		scale[i] = rng.Float32() / 100
	}
	g := onnx.New("linear")
	g.Input("x", onnx.F32, "R", k)
	g.Inline("w", onnx.I8, []int{channels / 16, steps, 16, 4}, weights)
	g.F32s("scale", []int{channels}, scale)
	g.Inline("start", onnx.I32, []int{channels}, start)
	g.F32s("bias", []int{n}, randoms(uint64(k), n))
	attrs := onnx.Attrs{"k": k, "n": n, "activation": activation}
	g.Node(onnx.Own, "RowLinear8", attrs, []string{"x", "w", "scale", "start", "bias"}, []string{"y"})
	g.Output("y", onnx.F32, "R", n)
	return g
}

// linearGraph4 is a RowLinear4 of n channels over random weights.
func linearGraph4(k, n, activation int) *onnx.Graph {
	rng := rand.New(rand.NewPCG(uint64(k), 2))
	panels, blocks := (n+15)/16, k/32
	weights, scales := make([]byte, panels*blocks*256), make([]byte, 0, panels*blocks*32)
	for i := range weights {
		weights[i] = byte(rng.IntN(256))
	}
	for range panels * blocks * 16 {
		scales = binary.LittleEndian.AppendUint16(scales, uint16(math.Float32bits(rng.Float32()/50)>>16))
	}
	g := onnx.New("linear")
	g.Input("x", onnx.F32, "R", k)
	g.Inline("w", onnx.U8, []int{panels, blocks, 256}, weights)
	g.Inline("scale", onnx.BF16, []int{panels, blocks, 16}, scales)
	g.F32s("bias", []int{n}, randoms(uint64(k), n))
	attrs := onnx.Attrs{"k": k, "n": n, "activation": activation}
	g.Node(onnx.Own, "RowLinear4", attrs, []string{"x", "w", "scale", "bias"}, []string{"y"})
	if activation == 1 {
		n /= 2
	}
	g.Output("y", onnx.F32, "R", n)
	return g
}

// TestKernelsAgree holds that the operators of a better processor give the very bits of the others.
func TestKernelsAgree(t *testing.T) {
	startLibrary(t)
	defer kernels.Limit(false)
	if !kernels.Limit(false) {
		t.Skip("this processor has no better instructions to compare the least with")
	}
	both := func(t *testing.T, run func() []float32) {
		t.Helper()
		kernels.Limit(false)
		want := run()
		kernels.Limit(true)
		if got := run(); !slices.Equal(got, want) {
			t.Error("the least instructions and the best differ")
		}
	}
	layer := func(g *onnx.Graph, k, out int) {
		t.Helper()
		session, err := ort.NewSession(g, ort.Options{Threads: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		for _, rows := range []int{1, 2, 5, 12, 13, 30, 200} {
			both(t, func() []float32 {
				y := alloc(t, rows*out)
				o, _ := ort.View(y.Slice(), rows, out)
				defer o.Destroy()
				if err := session.Run([]ort.Tensor{view(t, randoms(7, rows*k), rows, k)}, []ort.Tensor{o}); err != nil {
					t.Fatal(err)
				}
				return y.Slice()
			})
		}
	}
	for activation := range 4 {
		if activation == 1 { // a gate needs pairs of panels
			layer(linearGraph4(96, 64, activation), 96, 32)
			continue
		}
		for _, k := range []int{16, 61, 576} {
			layer(linearGraph(k, activation), k, 48)
		}
		for _, k := range []int{32, 576} {
			layer(linearGraph4(k, 41, activation), k, 41)
		}
	}
	for _, c := range []attentionCase{
		{heads: 9, kvHeads: 3, dim: 80, maxLen: 128, slots: 1, packed: true},
		{heads: 9, kvHeads: 3, dim: 80, maxLen: 128, slots: 1, packed: true, normed: true, window: 21, softcap: 2,
			scaled: true, rotary: 26, pairs: true, blocks: [][2]int{{11, 54}, {60, 100}}},
		{heads: 3, kvHeads: 3, dim: 64, maxLen: 128, slots: 1, normed: true, turned: true, softcap: 0.1},
	} {
		l := newAttentionLayer(t, c)
		both(t, func() []float32 {
			out, err := l.run(0, 100, []int32{99}, randoms(3, 100*(c.heads+2*c.kvHeads)*c.dim))
			if err != nil {
				t.Fatal(err)
			}
			return out
		})
	}
}

// selfAttention runs SelfAttention8 over q, k and v one after the other, each [blocks, n, heads·dim], or packed into
// one.
func selfAttention(t *testing.T, x []float32, blocks, n, heads, dim int, packed bool) []float32 {
	t.Helper()
	g, names, row := onnx.New("self"), []string{"q", "k", "v"}, heads*dim
	if packed {
		names, row = names[:1], 3*row
	}
	for _, in := range names {
		g.Input(in, onnx.F32, "B", "N", row)
	}
	attrs := onnx.Attrs{"heads": heads, "scale": float32(1 / math.Sqrt(float64(dim)))}
	g.Node(onnx.Own, "SelfAttention8", attrs, names, []string{"y"})
	g.Output("y", onnx.F32, "B", "N", heads*dim)
	session, err := ort.NewSession(g, ort.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	size := blocks * n * heads * dim
	in := []ort.Tensor{view(t, x, blocks, n, row)}
	if !packed {
		q, k, v := x[:size], x[size:2*size], x[2*size:]
		in = []ort.Tensor{view(t, q, blocks, n, row), view(t, k, blocks, n, row), view(t, v, blocks, n, row)}
	}
	y := alloc(t, size)
	out, _ := ort.View(y.Slice(), blocks, n, heads*dim)
	defer out.Destroy()
	if err := session.Run(in, []ort.Tensor{out}); err != nil {
		t.Fatal(err)
	}
	return y.Slice()
}

// TestSelfAttention8 compares with the textbook: scores that are nearly alike, and ones of which some stand out; keys
// that share a large part; blocks alone and beside others; q, k and v in one.
func TestSelfAttention8(t *testing.T) {
	startLibrary(t)
	if !kernels.HasSelfAttention8() {
		t.Skip("this processor has neither AVX-512 VNNI nor dotprod")
	}
	for _, c := range []struct{ n, heads, dim int }{{64, 4, 32}, {1, 2, 16}, {65, 3, 64}, {257, 2, 80}, {200, 1, 112}} {
		for _, spread := range []float32{0.3, 3} {
			t.Run(fmt.Sprintf("%d heads of %d, %d positions, spread %g", c.heads, c.dim, c.n, spread), func(t *testing.T) {
				const blocks = 2
				size := blocks * c.n * c.heads * c.dim
				x := randoms(uint64(c.n), 3*size)
				for i := range size {
					x[i] *= spread
					x[size+i] += 4 * float32(i%c.dim%5) // as a bias does
				}
				got := selfAttention(t, x, blocks, c.n, c.heads, c.dim, false)
				at := func(part, block, pos, head int) []float32 {
					from := part*size + ((block*c.n+pos)*c.heads+head)*c.dim
					return x[from : from+c.dim]
				}
				var off, all float64
				for block := range blocks {
					for head := range c.heads {
						for pos := range c.n {
							p, most, sum := make([]float64, c.n), math.Inf(-1), 0.0
							for key := range p {
								for i, k := range at(1, block, key, head) {
									p[key] += float64(at(0, block, pos, head)[i]) * float64(k)
								}
								p[key] /= math.Sqrt(float64(c.dim))
								most = max(most, p[key])
							}
							want := make([]float64, c.dim)
							for key := range p {
								p[key] = math.Exp(p[key] - most)
								sum += p[key]
								for i, v := range at(2, block, key, head) {
									want[i] += p[key] * float64(v)
								}
							}
							for i, w := range want {
								d := float64(got[((block*c.n+pos)*c.heads+head)*c.dim+i]) - w/sum
								off, all = off+d*d, all+w/sum*w/sum
							}
						}
					}
				}
				if share := math.Sqrt(off / all); !(share < 0.02) {
					t.Errorf("the error is %.4f of the result", share)
				}
				half := size / blocks
				second := slices.Concat(x[half:size], x[size+half:2*size], x[2*size+half:])
				if alone := selfAttention(t, second, 1, c.n, c.heads, c.dim, false); !slices.Equal(alone, got[half:]) {
					t.Error("a block alone differs from it beside another")
				}
				var packed []float32
				for i, row := 0, c.heads*c.dim; i < size; i += row {
					packed = slices.Concat(packed, x[i:i+row], x[size+i:size+i+row], x[2*size+i:2*size+i+row])
				}
				if one := selfAttention(t, packed, blocks, c.n, c.heads, c.dim, true); !slices.Equal(one, got) {
					t.Error("packed into one the result is another")
				}
			})
		}
	}
	zero := selfAttention(t, make([]float32, 3*10*32), 1, 10, 2, 16, false)
	if slices.ContainsFunc(zero, func(y float32) bool { return y != 0 }) {
		t.Errorf("of zeros: %v", zero)
	}
	const n = 301 // shares and values are as large as they get: their sums need more than 32 bits
	same := make([]float32, 3*n*16)
	for i := range n * 16 {
		same[2*n*16+i] = 7
	}
	for _, y := range selfAttention(t, same, 1, n, 1, 16, false) {
		if math.Abs(float64(y)-7) > 1e-4 {
			t.Fatalf("of sevens alone: %g", y)
		}
	}
	for i, name := range []string{"q", "k", "v"} {
		x := randoms(1, 3*11*32)
		x[i*11*32] = float32(math.NaN())
		if y := selfAttention(t, x, 1, 11, 2, 16, false); !math.IsNaN(float64(y[0])) {
			t.Errorf("NaN in %s is lost: %g", name, y[0])
		}
	}
}
