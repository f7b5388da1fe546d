package graph

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
)

// rounded4 is a matrix whose weights are what int4 makes of m's.
func rounded4(m matrix) matrix {
	r := matrix{name: m.name, out: m.out, in: m.in}
	var q [blockInputs]int8
	for at := 0; at < len(m.values); at += blockInputs {
		worth := math.Float32frombits(uint32(quantize4(&q, m.values[at:at+blockInputs])) << 16)
		for _, n := range q {
			r.values = append(r.values, worth*float32(n))
		}
	}
	return r
}

// product4 is x·Wᵀ + bias with x in 8 bits, as the definition has it.
func product4(x []float32, m matrix, bias bool) []float64 {
	rounded := rounded4(m)
	var y []float64
	for r := 0; r < len(x); r += m.in {
		var most float64
		for _, v := range x[r : r+m.in] {
			most = max(most, math.Abs(float64(v)))
		}
		for n := range m.out {
			var sum float64
			for i, v := range x[r : r+m.in] {
				sum += math.RoundToEven(float64(v)*127/max(most, 1e-10)) * float64(rounded.values[n*m.in+i])
			}
			sum *= most / 127
			if bias {
				sum += float64(m.values[n])
			}
			y = append(y, sum)
		}
	}
	return y
}

func needKernels(t *testing.T) {
	t.Helper()
	if !HasKernels {
		t.Skip("int4 needs mmserve's own operators")
	}
}

func TestLinearInt4(t *testing.T) {
	needKernels(t)
	for _, size := range [][2]int{{64, 64}, {32, 96}, {17, 32}, {1, 32}, {250, 128}} {
		m := randomMatrix("m", size[0], size[1])
		clear(m.values[:blockInputs]) // a block of zeros
		w := checkpoint(t, m)
		for _, bias := range []bool{false, true} {
			layer := func(b *Builder, x string) string { return b.Linear(x, "m", m.in, m.out, bias) }
			x := randomRows(200, m.in)
			clear(x[3*m.in : 4*m.in]) // a row of zeros
			all := runIn(t, INT4, w, x, m.in, m.out, layer)
			near(t, fmt.Sprint(size, bias), all, product4(x, m, bias))
			for _, rows := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 193} {
				if got := runIn(t, INT4, w, x[:rows*m.in], m.in, m.out, layer); !slices.Equal(got, all[:rows*m.out]) {
					t.Errorf("%v: %d rows differ from the same among 200", size, rows)
				}
			}
		}
	}
}

// TestInt4Extremes holds that no sum overflows: every weight and every activation has its largest magnitude.
func TestInt4Extremes(t *testing.T) {
	needKernels(t)
	m := matrix{name: "m", out: 32, in: 1024, values: make([]float32, 32*1024)}
	x := make([]float32, 2*m.in)
	for i := range m.values {
		m.values[i] = []float32{-1, 1}[i/m.in%2]
	}
	for i := range x {
		x[i] = []float32{3, -3}[i/m.in]
	}
	w := checkpoint(t, m)
	got := runIn(t, INT4, w, x, m.in, m.out, func(b *Builder, x string) string {
		return b.Linear(x, "m", m.in, m.out,
			false)
	})
	for i, y := range got {
		want := float64(m.in) * 3
		if (i/m.out+i%2)%2 == 0 {
			want = -want
		}
		if math.Abs(float64(y)-want) > 1e-2*math.Abs(want) {
			t.Fatalf("value %d is %g, want %g", i, y, want)
		}
	}
}

func TestGatedInt4(t *testing.T) {
	needKernels(t)
	silu := func(x float64) float64 { return x / (1 + math.Exp(-x)) }
	gate, up := randomMatrix("gate", 48, 64), randomMatrix("up", 48, 64)
	slices.Reverse(up.values)
	w := checkpoint(t, gate, up)
	x := randomRows(14, 64)
	got := runIn(t, INT4, w, x, 64, 48, func(b *Builder, x string) string {
		return b.Gated(x, 64, false, "silu", Out{"gate", 48}, Out{"up", 48})
	})
	want := product4(x, gate, false)
	for i, u := range product4(x, up, false) {
		want[i] = silu(want[i]) * u
	}
	near(t, "gate and up", got, want)
}

// TestInt4Mixed holds that heads, and layers whose inputs make no whole blocks, are int8's bit for bit.
func TestInt4Mixed(t *testing.T) {
	needKernels(t)
	for _, c := range []struct {
		in   int
		head bool
	}{{48, false}, {64, true}} {
		m := randomMatrix("m", 40, c.in)
		w := checkpoint(t, m)
		layer := func(b *Builder, x string) string {
			if c.head {
				return b.Head(x, "m", c.in, 40)
			}
			return b.Linear(x, "m", c.in, 40, false)
		}
		x := randomRows(5, c.in)
		if got, want := runIn(t, INT4, w, x, c.in, 40, layer), run(t, w, x, c.in, 40, layer); !slices.Equal(got, want) {
			t.Errorf("%d inputs, head %t: int4 differs from int8", c.in, c.head)
		}
	}
}

func TestInt4NeedsKernels(t *testing.T) {
	defer func(had bool) { HasKernels = had }(HasKernels)
	HasKernels = false
	if err := NewBuilder("test", checkpoint(t, randomMatrix("m", 4, 4)), INT4).Err(); !errors.Is(err, ErrNoInt4) {
		t.Errorf("got %v", err)
	}
}

// TestQuantize4 holds that the error is at most half a step, or what clipping at 7 steps leaves, and less than that of
// the scale that puts the largest magnitude at -8.
func TestQuantize4(t *testing.T) {
	m := randomMatrix("m", 200, blockInputs)
	var q [blockInputs]int8
	for r := range m.out {
		x := m.values[r*m.in:][:m.in]
		worth := float64(math.Float32frombits(uint32(quantize4(&q, x)) << 16))
		var sum, plain float64
		step := -float64(slices.MaxFunc(x, func(a, b float32) int {
			return int(math.Copysign(1, math.Abs(float64(a))-math.Abs(float64(b))))
		})) / 8
		for i, v := range x {
			sum += math.Pow(float64(v)-worth*float64(q[i]), 2)
			plain += math.Pow(float64(v)-step*max(-8, min(7, math.RoundToEven(float64(v)/step))), 2)
			if q[i] < -8 || q[i] > 7 {
				t.Fatalf("row %d: %d", r, q[i])
			}
		}
		if sum > plain*1.05 { // the scale is a bfloat16
			t.Errorf("row %d: squared error %g, of the plain scale %g", r, sum, plain)
		}
	}
	for _, tiny := range []float32{1e-42, 3e-39, 1e-38} {
		x := make([]float32, blockInputs)
		x[5] = tiny
		worth := math.Float32frombits(uint32(quantize4(&q, x)) << 16)
		if y := worth * float32(q[5]); math.IsNaN(float64(y)) || math.Abs(float64(y-tiny)) > float64(tiny) {
			t.Errorf("%g comes out as %g", tiny, y)
		}
	}
}
