package exporttest

import (
	"encoding/binary"
	"math"
	"strings"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// net is a graph that is being written.
type net struct {
	*onnx.Graph
	weights  *graph.Weights
	options  Options
	data     string // the file of external data
	external []byte
	err      error
}

// floats are a parameter's values.
func (n *net) floats(name string, shape ...int) []float32 {
	t, err := n.weights.Get(name, shape...)
	if err == nil {
		var v []float32
		if v, err = t.Floats(); err == nil {
			return v
		}
	}
	if n.err == nil {
		n.err = err
	}
	size := 1
	for _, d := range shape {
		size *= d
	}
	return make([]float32, size)
}

// constant adds values under a name, inline or as external data.
func (n *net) constant(name string, shape []int, v []float32) string {
	if n.Has(name) {
		return name
	}
	if !n.options.External {
		return n.F32s(name, shape, v)
	}
	at := int64(len(n.external))
	for _, x := range v {
		n.external = binary.LittleEndian.AppendUint32(n.external, math.Float32bits(x))
	}
	return n.External(name, onnx.F32, shape, n.data, at, int64(4*len(v)))
}

func (n *net) weight(name string, shape ...int) string {
	return n.constant(name, shape, n.floats(name, shape...))
}

// linear is x·Wᵀ + b, with W stored the other way round as exporters do.
func (n *net) linear(x, prefix string, in, out int, bias bool) string {
	v := n.floats(prefix+".weight", out, in)
	turned := make([]float32, len(v))
	for o := range out {
		for i := range in {
			turned[i*out+o] = v[o*in+i]
		}
	}
	var y string
	if n.options.Dynamic && strings.HasPrefix(n.data, "decoder") {
		y = n.dynamic(x, prefix, in, out, turned)
	} else {
		y = n.Op("MatMul", nil, x, n.constant(prefix+".weight_t", []int{in, out}, turned))
	}
	if bias {
		y = n.Op("Add", nil, y, n.weight(prefix+".bias", out))
	}
	return y
}

// dynamic is x·w in 8 bits.
func (n *net) dynamic(x, prefix string, in, out int, w []float32) string {
	var most float32
	for _, v := range w {
		most = max(most, v, -v)
	}
	data := make([]byte, len(w))
	for i, v := range w {
		data[i] = byte(int8(math.RoundToEven(float64(v / most * 127))))
	}
	if !n.Has(prefix + ".weight_q") {
		n.Inline(prefix+".weight_q", onnx.I8, []int{in, out}, data)
	}
	q := n.OpN("", "DynamicQuantizeLinear", nil, []string{x}, 3)
	y := n.cast(n.Op("MatMulInteger", nil, q[0], prefix+".weight_q", q[2]), onnx.F32)
	return n.Op("Mul", nil, y, n.Op("Mul", nil, q[1], n.F32(most/127)))
}

func (n *net) layerNorm(x, prefix string, dim int, eps float32) string {
	return n.Op("LayerNormalization", onnx.Attrs{"axis": -1, "epsilon": eps}, x, n.weight(prefix+".weight", dim),
		n.weight(prefix+".bias", dim))
}

// rmsNorm is x / √(mean x² + eps) · (w + unit).
func (n *net) rmsNorm(x, prefix string, dim int, eps, unit float32) string {
	w := n.floats(prefix+".weight", dim)
	for i := range w {
		w[i] += unit
	}
	mean := n.Op("ReduceMean", onnx.Attrs{"keepdims": 1}, n.Op("Mul", nil, x, x), n.I64s(-1))
	root := n.Op("Sqrt", nil, n.Op("Add", nil, mean, n.F32(eps)))
	return n.Op("Mul", nil, n.Op("Div", nil, x, root), n.constant(prefix+".factor", []int{dim}, w))
}

func (n *net) activation(name, x string) string {
	switch name {
	case "silu":
		return n.Op("Mul", nil, x, n.Op("Sigmoid", nil, x))
	case "quick_gelu":
		return n.Op("Mul", nil, x, n.Op("Sigmoid", nil, n.Op("Mul", nil, x, n.F32(1.702))))
	case "gelu":
		return n.Op("Gelu", onnx.Attrs{"approximate": "none"}, x)
	}
	return n.Op("Gelu", onnx.Attrs{"approximate": "tanh"}, x)
}

// heads makes [b, s, heads·dim] into [b, heads, s, dim], and joined the other way round.
func (n *net) heads(x string, heads, dim int) string {
	x = n.Op("Reshape", nil, x, n.I64s(0, 0, int64(heads), int64(dim)))
	return n.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, x)
}

func (n *net) joined(x string, width int) string {
	x = n.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, x)
	return n.Op("Reshape", nil, x, n.I64s(0, 0, int64(width)))
}

// scores are q·kᵀ·scale.
func (n *net) scores(q, k string, scale float32) string {
	return n.Op("Mul", nil, n.Op("MatMul", nil, q, n.Op("Transpose", onnx.Attrs{"perm": []int{0, 1, 3, 2}}, k)),
		n.F32(scale))
}

// attend weighs v by the softmax of scores.
func (n *net) attend(scores, v string) string {
	return n.Op("MatMul", nil, n.Op("Softmax", onnx.Attrs{"axis": -1}, scores), v)
}

func (n *net) cast(x string, to onnx.DType) string {
	return n.Op("Cast", onnx.Attrs{"to": int(to)}, x)
}

// size is dimension dim of x as a tensor of one value.
func (n *net) size(x string, dim int) string {
	return n.Op("Shape", onnx.Attrs{"start": dim, "end": dim + 1}, x)
}

// span are the integers from 0 to n-1.
func (n *net) span(size string) string {
	zero, one := n.Op("Squeeze", nil, n.I64s(0)), n.Op("Squeeze", nil, n.I64s(1))
	return n.Op("Range", nil, zero, n.Op("Squeeze", nil, size), one)
}

// result makes x an output.
func (n *net) result(x, name string, t onnx.DType, dims ...any) {
	n.Node("", "Identity", nil, []string{x}, []string{name})
	n.Output(name, t, dims...)
}
