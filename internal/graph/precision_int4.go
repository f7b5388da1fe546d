package graph

import (
	"errors"
	"math"
	"unsafe"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// INT4 multiplies int4 weights, one scale for each 32 inputs of an output channel, by the activations of INT8. Matrices
// whose inputs are no multiple of 32, and a decoder's head, are INT8's: the logits are what sampling sees.
// "auto" never takes it: its answers differ from the checkpoint's more often than INT8's.
const INT4 Precision = "int4"

func init() {
	registerPrecision(precision{
		name: INT4, rank: 3, help: "int4 with one scale for each 32 weights (cpu only)", weight: 0.16, values: onnx.F32, drift: 0.2,
		tower: INT8, head: form8, emptyRuns: true,
		form: func(in int) *form {
			if in%blockInputs == 0 {
				return form4
			}
			return form8
		},
		runs: integers, refusal: " runs on the cpu provider only",
		ready: func() error {
			if !HasKernels {
				return ErrNoInt4
			}
			return nil
		},
	})
}

// suffixes of the tensors that stand for one weight in int4.
const (
	int4Suffix       = ".int4"       // U8 [⌈n/16⌉, k/32, 256]
	blockScaleSuffix = ".int4.scale" // BF16 [⌈n/16⌉, k/32, 16]
)

var form4 = &form{
	suffix: int4Suffix, operator: "RowLinear4",
	fill: func(_ layout, k, n int) target { return newQuantized4(k, n) },
	operands: func(b *Builder, name string, in, out int) []string {
		panels, blocks := native().width(out)/panelWidth, in/blockInputs
		return []string{
			b.quantizedWeight(name+int4Suffix, onnx.U8, panels, blocks, panelWidth*blockInputs/2),
			b.quantizedWeight(name+blockScaleSuffix, onnx.BF16, panels, blocks, panelWidth),
		}
	},
}

// blockInputs is the number of a channel's inputs that share a scale in INT4.
const blockInputs = 32

// ErrNoInt4 says why there is no int4 without mmserve's own operators.
var ErrNoInt4 = errors.New("int4: only mmserve's own operators multiply in it, and they need x86-64 with AVX2 and FMA, " +
	"or ARM64 on Linux: use int8 or fp32")

// quantized4 is a matrix in int4 in panels: a byte of [panel, block, i, channel, j] holds 8 + the weight of the block's
// input 4i+j in its low half and of input 16+4i+j in its high one.
type quantized4 struct {
	k, n   int
	q      []byte   // [⌈n/16⌉, k/32, 4, 16, 4]
	scales []uint16 // bfloat16, [⌈n/16⌉, k/32, 16]
}

func newQuantized4(k, n int) *quantized4 {
	width, blocks := layout{panels: true}.width(n), k/blockInputs
	m := &quantized4{k: k, n: n, q: make([]byte, width*k/2), scales: make([]uint16, width*blocks)}
	for i := range m.q {
		m.q[i] = 8<<4 | 8 // channels that are padding
	}
	return m
}

func (m *quantized4) tensors(name string) (head, tail []safetensors.Tensor) {
	panels, blocks := len(m.scales)/panelWidth/(m.k/blockInputs), m.k/blockInputs
	scales := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(m.scales))), 2*len(m.scales))
	return []safetensors.Tensor{{Name: name + int4Suffix, DType: safetensors.U8,
			Shape: []int{panels, blocks, panelWidth * blockInputs / 2}, Data: m.q}},
		[]safetensors.Tensor{{Name: name + blockScaleSuffix, DType: safetensors.BF16,
			Shape: []int{panels, blocks, panelWidth}, Data: scales}}
}

func (m *quantized4) put(rows []float32, channel, every, turn int) int {
	blocks := m.k / blockInputs
	var q [blockInputs]int8
	for r := range len(rows) / m.k {
		at := place(channel+r, every, turn)
		for b := range blocks {
			x := rows[r*m.k+b*blockInputs:][:blockInputs]
			if most := largest(x); math.IsNaN(float64(most)) || math.IsInf(float64(most), 0) {
				return r
			}
			panel := at/panelWidth*blocks + b
			m.scales[panel*panelWidth+at%panelWidth] = quantize4(&q, x)
			out := m.q[panel*panelWidth*blockInputs/2+at%panelWidth*4:]
			for i := range blockInputs / 2 {
				out[i/4*panelWidth*4+i%4] = byte(q[i]+8) | byte(q[i+16]+8)<<4
			}
		}
	}
	return -1
}

// quantize4 makes x integers of [-8, 7] and gives what one step of them is worth, in bfloat16. Of the scales that put
// the value of the largest magnitude near -8 it takes the one with the least squared error.
func quantize4(q *[blockInputs]int8, x []float32) uint16 {
	var top float32
	for _, v := range x {
		if math.Abs(float64(v)) > math.Abs(float64(top)) {
			top = v
		}
	}
	if top == 0 {
		*q = [blockInputs]int8{}
		return 0
	}
	best, scale := float32(math.Inf(1)), uint16(0)
	var try [blockInputs]int8
	for _, steps := range [...]float32{-8, -7, -7.5, -8.5, -9, 7} {
		s := uint16((math.Float32bits(top/steps) + 1<<15) >> 16)
		worth := math.Float32frombits(uint32(s) << 16)
		inverse, sum := 1/worth, float32(0)
		if math.IsInf(float64(inverse), 0) {
			continue // zero or next to it
		}
		for i, v := range x {
			n := float32(math.RoundToEven(float64(max(-8, min(7, v*inverse)))))
			try[i] = int8(n)
			sum += (v - n*worth) * (v - n*worth)
		}
		if sum < best {
			best, scale, *q = sum, s, try
		}
	}
	if scale == 0 {
		*q = [blockInputs]int8{}
	}
	return scale
}
