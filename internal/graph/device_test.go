package graph

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/mmserve/mmserve/internal/kernels"
)

// Quantised towers attend in small integers where the processor is fast at it and their heads have a size it takes.
func TestSelfAttentionOperator(t *testing.T) {
	defer func(had bool) { HasKernels = had }(HasKernels)
	own := HasKernels && kernels.HasSelfAttention8()
	for _, c := range []struct {
		precision Precision
		kernels   bool
		dim       int
		small     bool
	}{
		{INT8, own, 64, own}, {INT8, own, 72, own}, {INT8, own, 8, false}, {INT8, own, 2048, false}, {FP32, own, 64, false},
		{INT8, false, 64, false},
	} {
		HasKernels = c.kernels
		b := NewBuilder("test", nil, c.precision)
		b.SelfAttention([]string{"q", "k", "v"}, 2, c.dim, 5, 1)
		if small := bytes.Contains(b.Bytes(), []byte("SelfAttention8")); b.Err() != nil || small != c.small {
			t.Errorf("%+v: in small integers is %v, %v", c, small, b.Err())
		}
		if !c.small && !bytes.Contains(b.Bytes(), []byte("MultiHeadAttention")) {
			t.Errorf("%+v: no MultiHeadAttention", c)
		}
	}
}

// Heads whose size the operator does not take are padded: SigLIP has heads of 72. They attend as they are in float32,
// but for what eight bits tell less.
func TestSelfAttentionOfPaddedHeads(t *testing.T) {
	if !HasKernels || !kernels.HasSelfAttention8() {
		t.Skip("the processor has no such operator")
	}
	const heads, n = 3, 37
	for _, dim := range []int{64, 72, 88} {
		rng := rand.New(rand.NewPCG(1, uint64(dim)))
		x := make([]float32, n*3*heads*dim)
		for i := range x {
			x[i] = float32(rng.NormFloat64())
		}
		attend := func(p Precision) []float32 {
			w := checkpoint(t, randomMatrix("m", 16, 16)) // for no layer
			return runIn(t, p, w, x, 3*heads*dim, heads*dim, func(b *Builder, x string) string {
				x = b.Op("Reshape", nil, x, b.I64s(1, n, int64(3*heads*dim)))
				x = b.SelfAttention([]string{x}, heads, dim, n, float32(1/math.Sqrt(float64(dim))))
				return b.Op("Reshape", nil, x, b.I64s(n, int64(heads*dim)))
			})
		}
		want, off := attend(FP32), 0.0
		for i, v := range attend(INT8) {
			off = max(off, math.Abs(float64(v-want[i])))
		}
		if off == 0 || off > 0.05 {
			t.Errorf("heads of %d: off by %g from float32", dim, off)
		}
	}
}
