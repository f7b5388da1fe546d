package graph

import (
	"bytes"
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
		{INT8, own, 64, own}, {INT8, own, 72, false}, {FP32, own, 64, false}, {INT8, false, 64, false},
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
