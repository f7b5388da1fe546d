package kernels_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// attentionCase is a layer: its shape, its cache, and what it does besides.
type attentionCase struct {
	heads, kvHeads, dim, maxLen, slots int
	packed                             bool

	rotary  int     // values of a head that rotate; 0 is all
	pairs   bool    // those beside each other
	turned  bool    // angles come with each position, and are not those of its number
	normed  bool    // heads are normalised
	window  int     // 0 is none
	softcap float32 // 0 is none
	scaled  bool    // queries grow with their position
	blocks  [][2]int

	anywhere bool // rows have any number of positions and any part of the cache
}

func (c attentionCase) rotaryDim() int {
	if c.rotary > 0 {
		return c.rotary
	}
	return c.dim
}

// until is the last position that each sees.
func (c attentionCase) until(pos int) (first, last int) {
	first, last = 0, pos
	if c.window > 0 {
		first = max(0, pos-c.window+1)
	}
	for _, b := range c.blocks {
		if b[0] <= pos && pos < b[1] {
			first, last = min(first, b[0]), b[1]-1
		}
	}
	return first, last
}

// angle is what pair i turns by at a position.
func (c attentionCase) angle(pos, i int) float64 {
	n := float64(pos)
	if c.turned {
		n = float64(pos*7%5) + float64(i%3)
	}
	return n * math.Pow(10000, -float64(2*i)/float64(c.rotaryDim()))
}

// weight is that of the norms of queries (part 0) and keys (1).
func (c attentionCase) weight(part, i int) float32 { return 0.5 + float32((i*7+part*3)%11)/8 }

func (c attentionCase) growth(pos int) float32 {
	if !c.scaled {
		return 1
	}
	return 1 + 0.3*float32(pos/5)
}

const attentionEpsilon = 0.25

func (c attentionCase) graph() *onnx.Graph {
	g := onnx.New("attention")
	width, half := (c.heads+2*c.kvHeads)*c.dim, c.rotaryDim()/2
	in := []string{"q", "k", "v"}
	if c.packed {
		in = []string{g.Input("q", onnx.F32, "B", "S", width), "", ""}
	} else {
		g.Input("q", onnx.F32, "B", "S", c.heads*c.dim)
		g.Input("k", onnx.F32, "B", "S", c.kvHeads*c.dim)
		g.Input("v", onnx.F32, "B", "S", c.kvHeads*c.dim)
	}
	key := g.Input("past_key", onnx.F32, "P", c.kvHeads, c.maxLen, c.dim)
	value := g.Input("past_value", onnx.F32, "P", c.kvHeads, c.maxLen, c.dim)
	in = append(in, key, value, g.Input("last", onnx.I32, "R"))
	optional := []string{"", "", "", "", ""}
	if c.turned {
		in = append(in, g.Input("cos", onnx.F32, "B", "S", half), g.Input("sin", onnx.F32, "B", "S", half))
	} else {
		cos, sin := c.angles(0, c.maxLen)
		in = append(in, g.F32s("cos", []int{c.maxLen, half}, cos), g.F32s("sin", []int{c.maxLen, half}, sin))
	}
	if c.blocks != nil {
		optional[0] = g.Input("until", onnx.I32, "B", "S")
	}
	attrs := attentionAttributes(c.heads, c.kvHeads, c.dim)
	if c.normed {
		for part, name := range []string{"q_norm", "k_norm"} {
			w := make([]float32, c.dim)
			for i := range w {
				w[i] = c.weight(part, i)
			}
			optional[1+part] = g.F32s(name, []int{c.dim}, w)
		}
		attrs["epsilon"] = float32(attentionEpsilon)
	}
	if c.scaled {
		w := make([]float32, c.maxLen)
		for pos := range w {
			w[pos] = c.growth(pos)
		}
		optional[3] = g.F32s("q_scale", []int{c.maxLen}, w)
	}
	if c.anywhere {
		optional[4] = g.Input("places", onnx.I32, "R", 2)
	}
	attrs["scale"] = float32(1 / math.Sqrt(float64(c.dim)))
	attrs["rotary"], attrs["window"], attrs["softcap"] = c.rotaryDim(), c.window, c.softcap
	if c.pairs {
		attrs["pairs"] = 1
	}
	g.Node(onnx.Own, "CachedAttention", attrs, append(in, optional...), []string{"out", "present_key", "present_value"})
	g.Output("out", onnx.F32, "B", "S", c.heads*c.dim)
	g.Output("present_key", onnx.F32, "P", c.kvHeads, c.maxLen, c.dim)
	g.Output("present_value", onnx.F32, "P", c.kvHeads, c.maxLen, c.dim)
	return g
}

// angles are the cosines and sines of positions [from, to).
func (c attentionCase) angles(from, to int) (cos, sin []float32) {
	for pos := from; pos < to; pos++ {
		for i := range c.rotaryDim() / 2 {
			s, co := math.Sincos(c.angle(pos, i))
			cos, sin = append(cos, float32(co)), append(sin, float32(s))
		}
	}
	return cos, sin
}

// attentionAttributes are those of a layer that does nothing to its heads but rotate them.
func attentionAttributes(heads, kvHeads, dim int) onnx.Attrs {
	return onnx.Attrs{
		"heads": heads, "kv_heads": kvHeads, "rotary": dim, "pairs": 0, "window": 0,
		"scale": float32(1), "softcap": float32(0), "epsilon": float32(0),
	}
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
		t.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
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
	in = append(in, key, value, view(l.t, last, rows))
	var cos, sin []float32
	var until []int32
	for _, n := range last {
		co, si := l.angles(int(n)+1-width, int(n)+1)
		cos, sin = append(cos, co...), append(sin, si...)
		for pos := int(n) + 1 - width; pos <= int(n); pos++ {
			_, to := l.until(pos)
			until = append(until, int32(to))
		}
	}
	if half := l.rotaryDim() / 2; l.turned {
		in = append(in, view(l.t, cos, rows, width, half), view(l.t, sin, rows, width, half))
	}
	if l.blocks != nil {
		in = append(in, view(l.t, until, rows, width))
	}
	err := l.session.Run(in, []ort.Tensor{o, key, value})
	return out.Slice(), err
}

// head gives a head's values of a position in float64. part says whose they are: 0 a query's, 1 a key's, 2 a value's.
func (c attentionCase) head(qkv []float32, pos, head, part int) []float64 {
	row := (c.heads + 2*c.kvHeads) * c.dim
	x := make([]float64, c.dim)
	sum := 0.0
	for i := range x {
		x[i] = float64(qkv[pos*row+head*c.dim+i])
		sum += x[i] * x[i]
	}
	if part == 2 {
		return x
	}
	if c.normed {
		for i := range x {
			x[i] *= float64(c.weight(part, i)) / math.Sqrt(sum/float64(c.dim)+attentionEpsilon)
		}
	}
	half := c.rotaryDim() / 2
	y := slices.Clone(x)
	for i := range half {
		s, co := math.Sincos(c.angle(pos, i))
		m, n := i, i+half
		if c.pairs {
			m, n = 2*i, 2*i+1
		}
		y[m], y[n] = x[m]*co-x[n]*s, x[n]*co+x[m]*s
	}
	return y
}

// want is attention of all positions of one sequence by the textbook, [n, heads, dim].
func (c attentionCase) want(qkv []float32, n int) []float64 {
	out := make([]float64, n*c.heads*c.dim)
	for h := range c.heads {
		kv := h / (c.heads / c.kvHeads)
		keys, values := make([][]float64, n), make([][]float64, n)
		for pos := range n {
			keys[pos], values[pos] = c.head(qkv, pos, c.heads+kv, 1), c.head(qkv, pos, c.heads+c.kvHeads+kv, 2)
		}
		for pos := range n {
			q := c.head(qkv, pos, h, 0)
			first, last := c.until(pos)
			p, sum := make([]float64, last+1), 0.0
			for t := first; t <= last; t++ {
				for i, k := range keys[t] {
					p[t] += q[i] * k
				}
				p[t] *= float64(c.growth(pos)) / math.Sqrt(float64(c.dim))
				if limit := float64(c.softcap); limit > 0 {
					p[t] = math.Tanh(p[t]/limit) * limit
				}
				p[t] = math.Exp(p[t])
				sum += p[t]
			}
			for t := first; t <= last; t++ {
				for i, v := range values[t] {
					out[(pos*c.heads+h)*c.dim+i] += p[t] / sum * v
				}
			}
		}
	}
	return out
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
		{heads: 4, kvHeads: 2, dim: 32, maxLen: 64, slots: 2, normed: true, packed: true},
		{heads: 4, kvHeads: 2, dim: 48, maxLen: 64, slots: 2, rotary: 10},
		{heads: 4, kvHeads: 2, dim: 32, maxLen: 64, slots: 2, pairs: true},
		{heads: 4, kvHeads: 2, dim: 32, maxLen: 64, slots: 2, pairs: true, rotary: 6, normed: true, turned: true},
		{heads: 4, kvHeads: 2, dim: 16, maxLen: 64, slots: 2, turned: true, packed: true},
		{heads: 4, kvHeads: 2, dim: 16, maxLen: 64, slots: 2, scaled: true},
		{heads: 4, kvHeads: 1, dim: 16, maxLen: 96, slots: 2, softcap: 1.5},
		{heads: 4, kvHeads: 1, dim: 16, maxLen: 96, slots: 2, softcap: 0.01},
		{heads: 4, kvHeads: 4, dim: 16, maxLen: 96, slots: 2, window: 1},
		{heads: 4, kvHeads: 4, dim: 16, maxLen: 128, slots: 2, window: 16},
		{heads: 10, kvHeads: 2, dim: 80, maxLen: 128, slots: 2, window: 37, packed: true},
		{heads: 4, kvHeads: 4, dim: 16, maxLen: 64, slots: 2, window: math.MaxInt32},
		{heads: 4, kvHeads: 2, dim: 16, maxLen: 96, slots: 2, blocks: [][2]int{{0, 7}, {7, 30}, {33, 34}, {60, 93}}},
		{heads: 4, kvHeads: 2, dim: 32, maxLen: 128, slots: 2, window: 9, softcap: 3, normed: true, turned: true,
			scaled: true, pairs: true, rotary: 20, packed: true, blocks: [][2]int{{3, 5}, {20, 61}, {62, 99}}},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
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
				for at, end := 0, 0; at < n; at = end {
					end = c.wholeBlocks(min(at+chunk, n))
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

// wholeBlocks is the next end of a chunk from n on that cuts no block.
func (c attentionCase) wholeBlocks(n int) int {
	for _, b := range c.blocks {
		if b[0] < n && n < b[1] {
			return b[1]
		}
	}
	return n
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

// placed is a row of a step in which rows have any number of positions: those of a sequence from past on.
type placed struct{ slot, past, n int }

// runPlaced gives positions of sequences, of which qkv has each, to their slots.
func (l *attentionLayer) runPlaced(qkv [][]float32, rows []placed) ([]float32, error) {
	l.t.Helper()
	size := (l.heads + 2*l.kvHeads) * l.dim
	var x, cos, sin []float32
	var last, until, places []int32
	count := 0
	for _, r := range rows {
		x = append(x, qkv[r.slot][r.past*size:(r.past+r.n)*size]...)
		places, last = append(places, int32(count), int32(r.slot)), append(last, int32(r.past+r.n-1))
		co, si := l.angles(r.past, r.past+r.n)
		cos, sin = append(cos, co...), append(sin, si...)
		for pos := r.past; pos < r.past+r.n; pos++ {
			_, to := l.until(pos)
			until = append(until, int32(to))
		}
		count += r.n
	}
	key, _ := ort.View(l.key.Slice(), l.slots, l.kvHeads, l.maxLen, l.dim)
	value, _ := ort.View(l.value.Slice(), l.slots, l.kvHeads, l.maxLen, l.dim)
	out := alloc(l.t, count*l.heads*l.dim)
	o, _ := ort.View(out.Slice(), 1, count, l.heads*l.dim)
	defer key.Destroy()
	defer value.Destroy()
	defer o.Destroy()
	in := []ort.Tensor{view(l.t, x, 1, count, size), key, value, view(l.t, last, len(rows))}
	if half := l.rotaryDim() / 2; l.turned {
		in = append(in, view(l.t, cos, 1, count, half), view(l.t, sin, 1, count, half))
	}
	if l.blocks != nil {
		in = append(in, view(l.t, until, 1, count))
	}
	in = append(in, view(l.t, places, len(rows), 2))
	err := l.session.Run(in, []ort.Tensor{o, key, value})
	return out.Slice(), err
}

// Rows of any lengths run together, in any parts of the cache: each gives the same bits as its sequence run whole and
// alone.
func TestCachedAttentionPlaces(t *testing.T) {
	for _, c := range []attentionCase{
		{heads: 6, kvHeads: 2, dim: 32, maxLen: 128, slots: 5, packed: true},
		{heads: 4, kvHeads: 4, dim: 16, maxLen: 128, slots: 5, packed: true, window: 9, softcap: 3, normed: true,
			turned: true, scaled: true, blocks: [][2]int{{3, 5}, {40, 61}}},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			plain := newAttentionLayer(t, c)
			c.anywhere = true
			l := newAttentionLayer(t, c)
			size, n := (c.heads+2*c.kvHeads)*c.dim, 100
			qkv, whole := make([][]float32, c.slots), make([][]float32, c.slots)
			for slot := range qkv {
				qkv[slot] = randoms(uint64(slot+3), n*size)
				var err error
				if whole[slot], err = plain.run(slot, n, []int32{int32(n - 1)}, qkv[slot]); err != nil {
					t.Fatal(err)
				}
			}
			for step, rows := range [][]placed{
				{{0, 0, 1}, {2, 0, 40}, {4, 0, 3}},
				{{0, 1, 70}, {1, 0, 62}, {2, 40, 29}, {4, 3, 2}},
				{{1, 62, 1}, {2, 69, 1}, {3, 0, 100}, {4, 5, 1}},
				{{0, 71, 1}, {1, 63, 1}, {4, 6, 1}},
			} {
				out, err := l.runPlaced(qkv, rows)
				if err != nil {
					t.Fatal(err)
				}
				head := c.heads * c.dim
				for _, r := range rows {
					if !slices.Equal(out[:r.n*head], whole[r.slot][r.past*head:(r.past+r.n)*head]) {
						t.Errorf("step %d, %+v differs from its sequence alone", step, r)
					}
					out = out[r.n*head:]
				}
			}
		})
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
