package graph

import (
	"math"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// INT8 multiplies int8 weights, one scale an output channel, by activations quantised to 8 bits with one scale
// a row: a row's result does not depend on the rows it is batched with.
const INT8 Precision = "int8"

func init() {
	registerPrecision(precision{
		name: INT8, rank: 2, help: "int8 with one scale a row (cpu only)", weight: 0.26, values: onnx.F32, drift: 0.1,
		form: func(int) *form { return form8 },
		runs: integers, refusal: " runs on the cpu provider only",
		auto: func(at ort.Provider) string {
			if !at.Kernels() {
				return ""
			}
			return "mmserve's own int8 operators run on this processor"
		},
	})
}

func integers(at ort.Provider) bool { return at.Can().Integers }

// suffixes of the tensors that stand for one weight in int8.
const (
	int8Suffix  = ".int8"  // I8, in a layout's shape
	scaleSuffix = ".scale" // F32 [out], padded to the layout's width
	startSuffix = ".start" // I32 of the same length, -128 · Σ of a channel's weights; panels only
)

var form8 = &form{
	suffix: int8Suffix, operator: "RowLinear8",
	fill: func(l layout, k, n int) target { return newQuantized(l, k, n) },
	operands: func(b *Builder, name string, in, out int) []string {
		width := native().width(out)
		return []string{
			b.quantizedWeight(name+int8Suffix, onnx.I8, native().shape(in, out)...),
			b.quantizedWeight(name+scaleSuffix, onnx.F32, width), b.quantizedWeight(name+startSuffix, onnx.I32, width),
		}
	},
}

// quantized is a matrix in int8.
type quantized struct {
	layout
	k, n   int
	q      []byte    // layout.shape
	scales []float32 // [width]
	starts []int32   // [width] or nil
}

func newQuantized(l layout, k, n int) *quantized {
	size := 1
	for _, d := range l.shape(k, n) {
		size *= d
	}
	m := &quantized{layout: l, k: k, n: n, q: make([]byte, size), scales: make([]float32, l.width(n))}
	if l.panels {
		m.starts = make([]int32, l.width(n))
	}
	return m
}

func (m *quantized) tensors(name string) (head, tail []safetensors.Tensor) {
	width := []int{m.width(m.n)}
	head = []safetensors.Tensor{{Name: name + int8Suffix, DType: safetensors.I8, Shape: m.shape(m.k, m.n), Data: m.q}}
	tail = []safetensors.Tensor{{Name: name + scaleSuffix, DType: safetensors.F32, Shape: width, Data: bytesOf(m.scales)}}
	if m.starts != nil {
		tail = append(tail, safetensors.Tensor{Name: name + startSuffix, DType: safetensors.I32, Shape: width, Data: bytesOf(m.starts)})
	}
	return head, tail
}

// put makes weight w of output channel n round(w / s) with s = max|w[n,:]| / 127.
func (m *quantized) put(rows []float32, channel, every, turn int) int {
	values := make([]int8, len(rows))
	for r := range len(rows) / m.k {
		row := rows[r*m.k : (r+1)*m.k]
		most := largest(row)
		if math.IsNaN(float64(most)) || math.IsInf(float64(most), 0) {
			return r
		}
		m.scales[m.scaleAt(channel+r, every, turn)] = most / 127
		inverse := float32(0)
		if most > 0 {
			inverse = 127 / most
		}
		for i, v := range row {
			values[r*m.k+i] = int8(math.RoundToEven(float64(v * inverse)))
		}
	}
	m.store(values, channel, every, turn)
	return -1
}

// store writes channels [channel, channel+len(values)/k). every is 1, or 2 when panels take turns; then channel counts
// within the matrix's own half and turn says which.
func (m *quantized) store(values []int8, channel, every, turn int) {
	rows := len(values) / m.k
	if !m.panels {
		for x := range m.k {
			out := m.q[x*m.n+channel:]
			for r := range rows {
				out[r] = byte(values[r*m.k+x])
			}
		}
		return
	}
	steps := (m.k + 3) / 4
	for r := range rows {
		at := place(channel+r, every, turn)
		out := m.q[(at/panelWidth*steps)*panelWidth*4+at%panelWidth*4:]
		sum := int32(0)
		for x, v := range values[r*m.k : (r+1)*m.k] {
			out[x/4*panelWidth*4+x%4] = byte(v)
			sum += int32(v)
		}
		m.starts[at] = -128 * sum
	}
}

func (m *quantized) scaleAt(channel, every, turn int) int {
	if m.panels {
		return place(channel, every, turn)
	}
	return channel
}

// columns8 is x·Wᵀ in int8 out of ONNX Runtime's own operators: each row of x is divided by its largest magnitude m,
// quantised to 8 bits around 128, multiplied in integers, and scaled by the channel's scale and by m. Layers that read
// the same x share its quantised form.
func (b *Builder) columns8(x, name string, in, out int) string {
	q, ok := b.rows[x]
	if !ok {
		m := b.Op("ReduceMax", onnx.Attrs{"keepdims": 1}, b.Op("Abs", nil, x), b.I64s(-1))
		m = b.Op("Max", nil, m, b.F32(1e-10)) // a row of zeros stays a row of zeros
		q = [2]string{b.Op("QuantizeLinear", nil, b.Op("Div", nil, x, m), b.F32(1.0/127), b.zeroPoint()), m}
		b.rows[x] = q
	}
	y := b.ContribOp("MatMulIntegerToFloat", nil, q[0], b.quantizedWeight(name+int8Suffix, onnx.I8, in, out),
		b.F32(1.0/127), b.quantizedWeight(name+scaleSuffix, onnx.F32, out), b.zeroPoint())
	return b.Op("Mul", nil, y, q[1])
}

func (b *Builder) zeroPoint() string {
	const name = "zero_point_128"
	if !b.Has(name) {
		b.Inline(name, onnx.U8, nil, []byte{128})
	}
	return name
}
