package kernels_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
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

// attentionCase is a layer: its shape, its cache, and the rotary tables.
type attentionCase struct {
	heads, kvHeads, dim, maxLen, slots int
	packed                             bool
}

func (c attentionCase) graph() *onnx.Graph {
	g := onnx.New("attention")
	width := (c.heads + 2*c.kvHeads) * c.dim
	in := []string{"q", "k", "v"}
	if c.packed {
		in = []string{g.Input("q", onnx.F32, "B", "S", width), "", ""}
	} else {
		g.Input("q", onnx.F32, "B", "S", c.heads*c.dim)
		g.Input("k", onnx.F32, "B", "S", c.kvHeads*c.dim)
		g.Input("v", onnx.F32, "B", "S", c.kvHeads*c.dim)
	}
	key := g.Input("past_key", onnx.F32, "B", c.kvHeads, c.maxLen, c.dim)
	value := g.Input("past_value", onnx.F32, "B", c.kvHeads, c.maxLen, c.dim)
	in = append(in, key, value, g.Input("last", onnx.I32, "B"))
	cos, sin := c.tables()
	in = append(in, g.F32s("cos", []int{c.maxLen, c.dim / 2}, cos), g.F32s("sin", []int{c.maxLen, c.dim / 2}, sin))
	in = append(in, "", "", "", "")
	attrs := attentionAttributes(c.heads, c.kvHeads, c.dim)
	attrs["scale"] = float32(1 / math.Sqrt(float64(c.dim)))
	g.Node(onnx.Own, "CachedAttention", attrs, in, []string{"out", "present_key", "present_value"})
	g.Output("out", onnx.F32, "B", "S", c.heads*c.dim)
	g.Output("present_key", onnx.F32, "B", c.kvHeads, c.maxLen, c.dim)
	g.Output("present_value", onnx.F32, "B", c.kvHeads, c.maxLen, c.dim)
	return g
}

// attentionAttributes are those of a layer that does nothing to its heads but rotate them.
func attentionAttributes(heads, kvHeads, dim int) onnx.Attrs {
	return onnx.Attrs{
		"heads": heads, "kv_heads": kvHeads, "rotary": dim, "pairs": 0, "window": 0,
		"scale": float32(1), "softcap": float32(0), "epsilon": float32(0),
	}
}

func (c attentionCase) tables() (cos, sin []float32) {
	half := c.dim / 2
	for pos := range c.maxLen {
		for i := range half {
			s, co := math.Sincos(float64(pos) * math.Pow(10000, -float64(2*i)/float64(c.dim)))
			cos, sin = append(cos, float32(co)), append(sin, float32(s))
		}
	}
	return cos, sin
}

// attentionLayer runs a case over a cache that starts full of NaN: what was not written must not be read.
type attentionLayer struct {
	attentionCase
	t          *testing.T
	session    *ort.Session
	key, value *ort.Memory[float32]
}

func newAttentionLayer(t *testing.T, c attentionCase) *attentionLayer {
	t.Helper()
	startLibrary(t)
	if !kernels.Available() {
		t.Skip("this processor lacks AVX2: mmserve's own operators are not used on it")
	}
	l := &attentionLayer{attentionCase: c, t: t}
	var err error
	if l.session, err = ort.NewSession(c.graph(), ort.Options{Threads: 2}); err != nil {
		t.Fatal(err)
	}
	l.key, l.value = alloc(t, c.slots*c.kvHeads*c.maxLen*c.dim), alloc(t, c.slots*c.kvHeads*c.maxLen*c.dim)
	for _, m := range []*ort.Memory[float32]{l.key, l.value} {
		for i := range m.Slice() {
			m.Slice()[i] = float32(math.NaN())
		}
	}
	t.Cleanup(func() { l.session.Close() })
	return l
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

// run gives qkv [rows × width, heads+2·kvHeads, dim] to slots [first, first+rows) whose newest positions are last.
func (l *attentionLayer) run(first, width int, last []int32, qkv []float32) ([]float32, error) {
	l.t.Helper()
	rows := len(last)
	in := []ort.Tensor{}
	if l.packed {
		in = append(in, view(l.t, qkv, rows, width, (l.heads+2*l.kvHeads)*l.dim))
	} else {
		at := 0
		var parts [3][]float32
		for at < len(qkv) {
			for i, n := range []int{l.heads, l.kvHeads, l.kvHeads} {
				parts[i] = append(parts[i], qkv[at:at+n*l.dim]...)
				at += n * l.dim
			}
		}
		for i, heads := range []int{l.heads, l.kvHeads, l.kvHeads} {
			in = append(in, view(l.t, parts[i], rows, width, heads*l.dim))
		}
	}
	slot := l.kvHeads * l.maxLen * l.dim
	key, _ := ort.View(l.key.Slice()[first*slot:], rows, l.kvHeads, l.maxLen, l.dim)
	value, _ := ort.View(l.value.Slice()[first*slot:], rows, l.kvHeads, l.maxLen, l.dim)
	out := alloc(l.t, rows*width*l.heads*l.dim)
	o, _ := ort.View(out.Slice(), rows, width, l.heads*l.dim)
	defer key.Destroy()
	defer value.Destroy()
	defer o.Destroy()
	err := l.session.Run(append(in, key, value, view(l.t, last, rows)), []ort.Tensor{o, key, value})
	return out.Slice(), err
}

// want is attention of all positions of one sequence by the textbook, [n, heads, dim].
func (c attentionCase) want(qkv []float32, n int) []float64 {
	row := (c.heads + 2*c.kvHeads) * c.dim
	vector := func(pos, head int, rotate bool) []float64 {
		x := make([]float64, c.dim)
		for i := range x {
			x[i] = float64(qkv[pos*row+head*c.dim+i])
		}
		if !rotate {
			return x
		}
		y := make([]float64, c.dim)
		for i := range c.dim / 2 {
			s, co := math.Sincos(float64(pos) * math.Pow(10000, -float64(2*i)/float64(c.dim)))
			y[i], y[i+c.dim/2] = x[i]*co-x[i+c.dim/2]*s, x[i+c.dim/2]*co+x[i]*s
		}
		return y
	}
	out := make([]float64, n*c.heads*c.dim)
	for h := range c.heads {
		kv := h / (c.heads / c.kvHeads)
		for pos := range n {
			q := vector(pos, h, true)
			p, sum := make([]float64, pos+1), 0.0
			for t := range p {
				for i, k := range vector(t, c.heads+kv, true) {
					p[t] += q[i] * k
				}
				p[t] = math.Exp(p[t] / math.Sqrt(float64(c.dim)))
				sum += p[t]
			}
			for t := range p {
				for i, v := range vector(t, c.heads+c.kvHeads+kv, false) {
					out[(pos*c.heads+h)*c.dim+i] += p[t] / sum * v
				}
			}
		}
	}
	return out
}

func randoms(seed uint64, n int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 0))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// TestCachedAttention compares a whole prompt with the textbook, and every way to cut it up with the whole prompt, bit
// for bit.
func TestCachedAttention(t *testing.T) {
	for _, c := range []attentionCase{
		{heads: 9, kvHeads: 3, dim: 64, maxLen: 128, slots: 3, packed: true},
		{heads: 4, kvHeads: 4, dim: 16, maxLen: 64, slots: 2},
		{heads: 8, kvHeads: 1, dim: 80, maxLen: 96, slots: 2, packed: true},
		{heads: 2, kvHeads: 1, dim: 128, maxLen: 96, slots: 2},
		{heads: 14, kvHeads: 2, dim: 48, maxLen: 64, slots: 2, packed: true},
	} {
		t.Run(fmt.Sprintf("%d heads of %d", c.heads, c.dim), func(t *testing.T) {
			l := newAttentionLayer(t, c)
			n, row := c.maxLen-3, (c.heads+2*c.kvHeads)*c.dim
			qkv := randoms(uint64(c.dim), n*row)
			whole, err := l.run(0, n, []int32{int32(n - 1)}, qkv)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range c.want(qkv, n) {
				if d := math.Abs(float64(whole[i]) - w); !(d < 3e-5) {
					t.Fatalf("value %d: %g, want %g", i, whole[i], w)
				}
			}
			for _, chunk := range []int{1, 7, 16, 33} {
				var cut []float32
				for at := 0; at < n; at += chunk {
					end := min(at+chunk, n)
					out, err := l.run(1, end-at, []int32{int32(end - 1)}, qkv[at*row:end*row])
					if err != nil {
						t.Fatal(err)
					}
					cut = append(cut, out...)
				}
				if !slices.Equal(cut, whole) {
					t.Errorf("chunks of %d differ from the whole prompt", chunk)
				}
			}
		})
	}
}

// TestCachedAttentionRows runs sequences of different lengths together.
func TestCachedAttentionRows(t *testing.T) {
	c := attentionCase{heads: 6, kvHeads: 2, dim: 32, maxLen: 64, slots: 4, packed: true}
	l := newAttentionLayer(t, c)
	row := (c.heads + 2*c.kvHeads) * c.dim
	lengths := []int{1, 17, 33, 60}
	var next, want []float32
	var last []int32
	for slot, n := range lengths {
		qkv := randoms(uint64(n), (n+1)*row)
		if _, err := l.run(slot, n, []int32{int32(n - 1)}, qkv[:n*row]); err != nil {
			t.Fatal(err)
		}
		alone, err := l.run(slot, 1, []int32{int32(n)}, qkv[n*row:])
		if err != nil {
			t.Fatal(err)
		}
		next, want, last = append(next, qkv[n*row:]...), append(want, alone...), append(last, int32(n))
	}
	got, err := l.run(0, 1, last, next)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Error("rows of different lengths differ from each alone")
	}
}

func TestCachedAttentionRefuses(t *testing.T) {
	c := attentionCase{heads: 2, kvHeads: 1, dim: 16, maxLen: 16, slots: 1, packed: true}
	l := newAttentionLayer(t, c)
	for _, last := range []int32{16, 0, -1} {
		_, err := l.run(0, 2, []int32{last}, randoms(1, 2*4*16))
		if err == nil || !strings.Contains(err.Error(), "last position") {
			t.Errorf("two positions up to %d: %v", last, err)
		}
	}
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
		t.Skip("this processor has no AVX-512 VNNI to compare AVX2 with")
	}
	both := func(t *testing.T, run func() []float32) {
		t.Helper()
		kernels.Limit(false)
		want := run()
		kernels.Limit(true)
		if got := run(); !slices.Equal(got, want) {
			t.Error("AVX2 and AVX-512 differ")
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
	c := attentionCase{heads: 9, kvHeads: 3, dim: 80, maxLen: 128, slots: 1, packed: true}
	l := newAttentionLayer(t, c)
	both(t, func() []float32 {
		out, err := l.run(0, 100, []int32{99}, randoms(3, 100*(c.heads+2*c.kvHeads)*c.dim))
		if err != nil {
			t.Fatal(err)
		}
		return out
	})
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
		t.Skip("this processor has no AVX-512 VNNI")
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
