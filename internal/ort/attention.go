package ort

import (
	"fmt"
	"math"
	"sync"

	"github.com/mmserve/mmserve/internal/onnx"
)

var fusedAttention struct {
	sync.Mutex
	right map[string]bool // by Provider.String
}

// FusedAttention tells whether a provider's fused attention gives what its plain operators give, for as many positions
// as take it through all of its kernels. It was wrong by some per cent, without an error, from 32 positions on where
// the driver's subgroups are 8 wide, as Mesa's software Vulkan's are on a processor with AVX2.
func FusedAttention(o Options) (bool, error) {
	fusedAttention.Lock()
	defer fusedAttention.Unlock()
	if right, ok := fusedAttention.right[o.Provider.String()]; ok {
		return right, nil
	}
	const heads, dim, n = 2, 32, 64
	g := onnx.New("attention")
	var in [3]string
	for i, name := range []string{"q", "k", "v"} {
		in[i] = g.Input(name, onnx.F32, 1, n, heads*dim)
	}
	split := func(x string, perm ...int) string {
		return g.Op("Transpose", onnx.Attrs{"perm": perm}, g.Op("Reshape", nil, x, g.I64s(1, n, heads, dim)))
	}
	fused := g.ContribOp("MultiHeadAttention", onnx.Attrs{"num_heads": heads, "scale": float32(1)}, in[:]...)
	q, k, v := split(in[0], 0, 2, 1, 3), split(in[1], 0, 2, 3, 1), split(in[2], 0, 2, 1, 3)
	shares := g.Op("Softmax", onnx.Attrs{"axis": -1}, g.Op("MatMul", nil, q, k))
	plain := g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, g.Op("MatMul", nil, shares, v))
	off := g.Op("Sub", nil, g.Op("Reshape", nil, fused, g.I64s(-1)), g.Op("Reshape", nil, plain, g.I64s(-1)))
	g.Node("", "Abs", nil, []string{off}, []string{"off"})
	g.Output("off", onnx.F32, n*heads*dim)
	o.Threads, o.Opened = 1, nil
	s, err := NewSession(g, o)
	if err != nil {
		return false, err
	}
	defer s.Close()
	const size = n * heads * dim
	mem, err := Alloc[float32](4 * size)
	if err != nil {
		return false, err
	}
	defer mem.Free()
	values := mem.Slice()
	for i := range 3 * size {
		values[i] = float32(math.Sin(float64(i)*0.7) * math.Cos(float64(i*i%977)))
	}
	var views [4]Tensor
	for i := range views {
		dims := []int{1, n, heads * dim}
		if i == 3 {
			dims = []int{size}
		}
		if views[i], err = View(values[i*size:], dims...); err != nil {
			return false, err
		}
		defer views[i].Destroy()
	}
	if err := s.Run(views[:3], views[3:]); err != nil {
		return false, fmt.Errorf("attention: %w", err)
	}
	right := true
	for _, v := range values[3*size:] {
		right = right && v < 1e-3
	}
	if fusedAttention.right == nil {
		fusedAttention.right = map[string]bool{}
	}
	fusedAttention.right[o.Provider.String()] = right
	return right, nil
}
