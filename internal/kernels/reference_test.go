package kernels_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// forms runs f with the best kernels that the processor has, and with those of the least instructions.
func forms(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	defer kernels.Limit(false)
	better := kernels.Limit(false)
	t.Run(kernels.Instructions(), f)
	if better {
		kernels.Limit(true)
		t.Run(kernels.Instructions(), f)
	}
}

// scalarLayer is a linear layer over weights of 8 or 4 bits, computed one number after the other.
type scalarLayer struct {
	rows, k, n, bits int
	x, bias          []float32
	w                []int     // [n, k]
	scale            []float32 // [n], or of 4 bits [n, k/32]
}

func newScalarLayer(rows, k, n, bits int) scalarLayer {
	rng := rand.New(rand.NewPCG(uint64(k), uint64(bits)))
	l := scalarLayer{rows: rows, k: k, n: n, bits: bits, x: randoms(uint64(rows), rows*k), bias: randoms(3, n)}
	l.w, l.scale = make([]int, n*k), make([]float32, n)
	if bits == 4 {
		l.scale = make([]float32, n*k/32)
	}
	for i := range l.w {
		if l.w[i] = rng.IntN(255) - 127; bits == 4 {
			l.w[i] = rng.IntN(16) - 8
		}
	}
	for i := range l.scale { // bfloat16 holds them
		l.scale[i] = math.Float32frombits(math.Float32bits(rng.Float32()/50) &^ 0xffff)
	}
	for i := range min(k, 40) { // the largest values there are
		l.w[i], l.x[i] = -127, 9
		if bits == 4 {
			l.w[i] = -8
		}
	}
	return l
}

// graph packs the weights as rowlinear.h has them.
func (l scalarLayer) graph() *onnx.Graph {
	g := onnx.New("linear")
	g.Input("x", onnx.F32, "R", l.k)
	panels, steps := (l.n+15)/16, (l.k+3)/4
	in := []string{"x", "w", "scale", "bias"}
	if l.bits == 8 {
		w, start, scale := make([]byte, panels*steps*64), make([]byte, panels*64), make([]float32, panels*16)
		for c := range l.n {
			scale[c] = l.scale[c]
			sum := int32(0)
			for k := range l.k {
				v := l.w[c*l.k+k]
				sum += int32(v)
				w[((c/16*steps+k/4)*16+c%16)*4+k%4] = byte(int8(v))
			}
			binary.LittleEndian.PutUint32(start[c*4:], uint32(-128*sum))
		}
		g.Inline("w", onnx.I8, []int{panels, steps, 16, 4}, w)
		g.F32s("scale", []int{panels * 16}, scale)
		in = []string{"x", "w", "scale", g.Inline("start", onnx.I32, []int{panels * 16}, start), "bias"}
	} else {
		blocks := l.k / 32
		w, scale := make([]byte, panels*blocks*256), make([]byte, panels*blocks*32)
		for c := range l.n {
			for k := range l.k {
				at := c/16*blocks + k/32
				w[at*256+(k%16/4*16+c%16)*4+k%4] |= byte(l.w[c*l.k+k]+8) << (k % 32 / 16 * 4)
				stored := uint16(math.Float32bits(l.scale[c*blocks+k/32]) >> 16)
				binary.LittleEndian.PutUint16(scale[(at*16+c%16)*2:], stored)
			}
		}
		g.Inline("w", onnx.U8, []int{panels, blocks, 256}, w)
		g.Inline("scale", onnx.BF16, []int{panels, blocks, 16}, scale)
	}
	g.F32s("bias", []int{l.n}, l.bias)
	attrs := onnx.Attrs{"k": l.k, "n": l.n, "activation": 0}
	g.Node(onnx.Own, fmt.Sprintf("RowLinear%d", l.bits), attrs, in, []string{"y"})
	g.Output("y", onnx.F32, "R", l.n)
	return g
}

// fused is a·b+c, rounded once.
func fused(a, b, c float32) float32 {
	exact := func(x float32) *big.Float { return new(big.Float).SetPrec(400).SetFloat64(float64(x)) }
	p := exact(a)
	y, _ := p.Add(p.Mul(p, exact(b)), exact(c)).Float32()
	return y
}

// want is the layer's output for a row. Conversions keep Go from joining a product and a sum where there are
// instructions for it.
func (l scalarLayer) want(row int) []float32 {
	x, most := l.x[row*l.k:(row+1)*l.k], float32(1e-10)
	for _, v := range x {
		most = max(most, float32(math.Abs(float64(v))))
	}
	step, inverse := most/127, 127/most
	y := make([]float32, l.n)
	for c := range y {
		sum, block := float32(0), 0
		for k, v := range x {
			block += int(math.RoundToEven(float64(float32(v*inverse)))) * l.w[c*l.k+k]
			if l.bits == 4 && k%32 == 31 {
				sum, block = fused(float32(block), l.scale[(c*l.k+k)/32], sum), 0
			}
		}
		if l.bits == 4 {
			y[c] = float32(sum*step) + l.bias[c]
		} else {
			y[c] = float32(float32(block)*float32(l.scale[c]*step)) + l.bias[c]
		}
	}
	return y
}

// TestLinearAsScalar holds that every form of the linear layers gives the very bits of the loop above, for every number
// of rows that a tile can have, and for sizes at which panels, steps and pairs of them are left over.
func TestLinearAsScalar(t *testing.T) {
	startLibrary(t)
	if !kernels.Available() {
		t.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
	}
	forms(t, func(t *testing.T) {
		for _, c := range []struct{ k, n, bits int }{
			{61, 41, 8}, {2, 16, 8}, {20, 33, 8}, {576, 48, 8}, {32, 41, 4}, {288, 50, 4},
		} {
			session, err := ort.NewSession(newScalarLayer(1, c.k, c.n, c.bits).graph(), ort.Options{Threads: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			for rows := range 14 {
				l := newScalarLayer(rows+1, c.k, c.n, c.bits)
				y := alloc(t, l.rows*l.n)
				out, _ := ort.View(y.Slice(), l.rows, l.n)
				if err := session.Run([]ort.Tensor{view(t, l.x, l.rows, l.k)}, []ort.Tensor{out}); err != nil {
					t.Fatal(err)
				}
				out.Destroy()
				for row := range l.rows {
					for i, want := range l.want(row) {
						if got := y.Slice()[row*l.n+i]; got != want {
							t.Fatalf("%d bits, %d inputs, %d rows: row %d, channel %d is %g, want %g",
								c.bits, c.k, l.rows, row, i, got, want)
						}
					}
				}
			}
		}
	})
}

// digest tells bits apart.
func digest(x []float32) string {
	h := sha256.New()
	for _, v := range x {
		_ = binary.Write(h, binary.LittleEndian, math.Float32bits(v))
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// layerOutput runs a graph of one input [rows, k] and one output [rows, n].
func layerOutput(t *testing.T, g *onnx.Graph, rows, k, n int) []float32 {
	t.Helper()
	session, err := ort.NewSession(g, ort.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	y := alloc(t, rows*n)
	out, _ := ort.View(y.Slice(), rows, n)
	defer out.Destroy()
	if err := session.Run([]ort.Tensor{view(t, randoms(7, rows*k), rows, k)}, []ort.Tensor{out}); err != nil {
		t.Fatal(err)
	}
	return y.Slice()
}

// TestBits holds that operators give the same bits on x86 and ARM64. What they are was written down on x86.
func TestBits(t *testing.T) {
	startLibrary(t)
	if !kernels.Available() {
		t.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
	}
	segments := func(small bool, dim int, lengths ...int32) func(t *testing.T) []float32 {
		return func(t *testing.T) []float32 {
			c := segmentCase{heads: 2, dim: dim, segments: lengths, packed: true, threads: 2, small: small}
			qkv, cos, sin := c.layer(2)
			return c.run(t, qkv, cos, sin)
		}
	}
	attention := func(c attentionCase) func(t *testing.T) []float32 {
		return func(t *testing.T) []float32 {
			out, err := newAttentionLayer(t, c).run(0, 100, []int32{99}, randoms(3, 100*(c.heads+2*c.kvHeads)*c.dim))
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	linear := func(k, activation int) func(t *testing.T) []float32 {
		return func(t *testing.T) []float32 { return layerOutput(t, linearGraph(k, activation), 13, k, 48) }
	}
	for _, c := range []struct {
		name  string
		small bool // of small integers, which not all forms have
		run   func(t *testing.T) []float32
		want  string
	}{
		{"RowLinear8", false, linear(61, 0), "eeb41cac5871e948"},
		{"RowLinear8 with GELU", false, linear(576, 2), "9f21525f955418b2"},
		{"RowLinear8 with quick GELU", false, linear(64, 3), "4027690718b77cb2"},
		{"RowLinear4", false, func(t *testing.T) []float32 {
			return layerOutput(t, linearGraph4(576, 41, 0), 13, 576, 41)
		}, "cbe46bf9d2c71c19"},
		{"RowLinear4 with a gate", false, func(t *testing.T) []float32 {
			return layerOutput(t, linearGraph4(96, 64, 1), 13, 96, 32)
		}, "d041eb2ff2cb50dc"},
		{"CachedAttention", false, attention(attentionCase{
			heads: 9, kvHeads: 3, dim: 80, maxLen: 128, slots: 1, packed: true,
		}), "a3b9ba3f2abc8b73"},
		{"CachedAttention with all that there is", false, attention(attentionCase{
			heads: 9, kvHeads: 3, dim: 80, maxLen: 128, slots: 1, packed: true, normed: true, window: 21, softcap: 2,
			scaled: true, rotary: 26, pairs: true, blocks: [][2]int{{11, 54}, {60, 100}},
		}), "0a7f5a6e0be4c243"},
		{"SegmentAttention, heads of 8", false, segments(false, 8, 200, 17, 64), "6f8eac4e9b2b39cd"},
		{"SegmentAttention, heads of 72", false, segments(false, 72, 200, 17, 64), "c5ebd9a91d4ab262"},
		{"scans", false, func(*testing.T) []float32 {
			x := randoms(11, 1031)
			peaks := make([]float32, 17)
			kernels.Peaks(peaks, x)
			weight, weighted := kernels.ExpSums(x, 4, 1.4, kernels.MinExp)
			for _, sum := range []float64{weight, weighted} {
				peaks = append(peaks, float32(sum), float32(sum-float64(float32(sum))))
			}
			return peaks
		}, "282957cb4507da28"},
		{"SegmentAttention8", true, segments(true, 40, 520, 16), "0b5b2fd57251a0be"},
		{"SelfAttention8", true, func(t *testing.T) []float32 {
			return selfAttention(t, randoms(5, 3*2*130*3*80), 2, 130, 3, 80, false)
		}, "f8850d6fa7c09266"},
	} {
		t.Run(c.name, func(t *testing.T) {
			forms(t, func(t *testing.T) {
				if c.small && !kernels.HasSelfAttention8() {
					t.Skip("this form has no such kernels")
				}
				if got := digest(c.run(t)); got != c.want {
					t.Errorf("the bits are those of %s, want %s", got, c.want)
				}
			})
		})
	}
}
