package graph

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/safetensors"
	"golang.org/x/sync/errgroup"
)

// Precision says how linear layers hold their weights and multiply.
type Precision string

const (
	// FP32 multiplies float32 by float32.
	FP32 Precision = "fp32"
	// INT8 multiplies int8 weights, one scale an output channel, by activations quantised to 8 bits with one scale
	// a row: a row's result does not depend on the rows it is batched with.
	INT8 Precision = "int8"
	// INT4 multiplies int4 weights, one scale for each 32 inputs of an output channel, by the same activations. Matrices
	// whose inputs are no multiple of 32, and a decoder's head, are INT8's.
	INT4 Precision = "int4"
)

// Vision is what the tower runs in when p is all that was asked for: an image's patch embeddings are read by every
// token after it, and a tower's weights are read once a tile.
func (p Precision) Vision() Precision {
	if p == INT4 {
		return INT8
	}
	return p
}

// Quantized tells whether weights are to be loaded in a form that the checkpoint does not have.
func (p Precision) Quantized() bool { return p == INT8 || p == INT4 }

// suffixes of the tensors that stand for one quantised weight in a quantised checkpoint.
const (
	int8Suffix       = ".int8"       // I8, in a layout's shape
	scaleSuffix      = ".scale"      // F32 [out], padded to the layout's width
	startSuffix      = ".start"      // I32 of the same length, -128 · Σ of a channel's weights; panels only
	int4Suffix       = ".int4"       // U8 [⌈n/16⌉, k/32, 256]
	blockScaleSuffix = ".int4.scale" // BF16 [⌈n/16⌉, k/32, 16]
)

// Names of weights that are quantised as one matrix are joined: output channels one after the other, or panels of the
// two taking turns.
const (
	joint = "+"
	gated = "&"
)

// panelWidth is the number of output channels in a panel: what one AVX-512 register holds of int32.
const panelWidth = 16

// layout is how a quantised matrix of n output channels and k inputs lies in its file: for ONNX Runtime's own
// operators transposed, [k, n]; for RowLinear8 in panels, [⌈n/16⌉, ⌈k/4⌉, 16·4], zero where there is no channel or k.
type layout struct{ panels bool }

func (l layout) String() string {
	if l.panels {
		return "panels"
	}
	return "columns"
}

// width is n with the padding.
func (l layout) width(n int) int {
	if l.panels {
		return (n + panelWidth - 1) / panelWidth * panelWidth
	}
	return n
}

func (l layout) shape(k, n int) []int {
	if l.panels {
		return []int{l.width(n) / panelWidth, (k + 3) / 4, panelWidth * 4}
	}
	return []int{k, n}
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
		tail = append(tail, safetensors.Tensor{Name: name + startSuffix, DType: safetensors.I32, Shape: width,
			Data: bytesOf(m.starts)})
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

// largest is the largest magnitude of x, NaN if it holds one.
func largest(x []float32) (most float32) {
	for _, v := range x {
		most = max(most, v, -v)
	}
	return most
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

// place is where a channel stands among all panels' channels.
func place(channel, every, turn int) int {
	return (channel/panelWidth*every+turn)*panelWidth + channel%panelWidth
}

// target is a quantised matrix on its way into the file.
type target interface {
	// put takes rows of floats [rows, k] whose output channels start at channel; see quantized.store for every and turn.
	// It returns the first row that holds a value that is not finite, or -1. Calls for different channels may overlap.
	put(rows []float32, channel, every, turn int) int
	// tensors are the parts: what is large, and the rest.
	tensors(name string) (head, tail []safetensors.Tensor)
}

// quantize makes quantised forms of weights: canonical names of [out, in] matrices, or of several with equal in,
// joined, with the suffix of the form.
func (w *Weights) quantize(names []string, l layout) ([]safetensors.Tensor, error) {
	var head []safetensors.Tensor // matrices first: their sizes keep each other aligned
	var tail []safetensors.Tensor
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for _, full := range names {
		name, four := strings.CutSuffix(full, int4Suffix)
		if !four {
			name = strings.TrimSuffix(full, int8Suffix)
		}
		sep, every := joint, 1
		if strings.Contains(name, gated) {
			sep, every = gated, 2
		}
		var sources []safetensors.Tensor
		k, n := 0, 0
		for part := range strings.SplitSeq(name, sep) {
			t, ok := w.ckpt.Tensor(w.names[part])
			if !ok || len(t.Shape) != 2 {
				return nil, fmt.Errorf("%q is not a matrix of the checkpoint", part)
			}
			sources = append(sources, t)
			n, k = n+t.Shape[0], t.Shape[1]
		}
		var m target = newQuantized(l, k, n)
		if four {
			m = newQuantized4(k, n)
		}
		large, small := m.tensors(name)
		head, tail = append(head, large...), append(tail, small...)
		from := 0
		for i, t := range sources {
			channel, turn := from, 0
			if every == 2 {
				channel, turn = 0, i
			}
			work.Go(func() error {
				defer t.Forget()
				return fill(m, t, channel, every, turn)
			})
			from += t.Shape[0]
		}
	}
	return append(head, tail...), work.Wait()
}

// block is the number of channels quantised at a time, so that source and target stay in cache.
const block = 64

// fill gives m the channels of t [n, k], from the given one on.
func fill(m target, t safetensors.Tensor, channel, every, turn int) error {
	n, k := t.Shape[0], t.Shape[1]
	floats := make([]float32, block*k)
	for from := 0; from < n; from += block {
		rows := min(block, n-from)
		if err := t.FloatsInto(floats[:rows*k], from*k); err != nil {
			return err
		}
		if r := m.put(floats[:rows*k], channel+from, every, turn); r >= 0 {
			return fmt.Errorf("tensor %q, row %d holds a value that is not finite", t.Name, from+r)
		}
	}
	return nil
}

func bytesOf[T float32 | int32](s []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), 4*len(s))
}

func (m *quantized) scaleAt(channel, every, turn int) int {
	if m.panels {
		return place(channel, every, turn)
	}
	return channel
}

// HasKernels says whether graphs use mmserve's own operators instead of ONNX Runtime's: where the processor has what
// they need. Tests turn it off.
var HasKernels = kernels.Available()

// native is the layout of this machine's operators.
func native() layout { return layout{panels: HasKernels} }

// activations that RowLinear8 applies itself, as its attribute numbers them.
var fused = map[string]int{"": 0, "gelu_pytorch_tanh": 2, "gelu_new": 2, "gelu_fast": 2, "quick_gelu": 3}

// siluGate is the number of the one that multiplies silu of a panel by the next.
const siluGate = 1

// rowLinear is RowLinear8 or RowLinear4: y = activation(x·Wᵀ + b). A row of x is quantised to 8 bits with a scale of
// its own.
func (b *Builder) rowLinear(x, name string, in, out, activation, bits int, biases []string) string {
	width, op := native().width(out), "RowLinear8"
	var inputs []string
	switch bits {
	case 4:
		op = "RowLinear4"
		panels, blocks := width/panelWidth, in/blockInputs
		inputs = []string{
			x, b.quantizedWeight(name+int4Suffix, onnx.U8, panels, blocks, panelWidth*blockInputs/2),
			b.quantizedWeight(name+blockScaleSuffix, onnx.BF16, panels, blocks, panelWidth),
		}
	default:
		inputs = []string{
			x, b.quantizedWeight(name+int8Suffix, onnx.I8, native().shape(in, out)...),
			b.quantizedWeight(name+scaleSuffix, onnx.F32, width), b.quantizedWeight(name+startSuffix, onnx.I32, width),
		}
	}
	if len(biases) > 0 {
		inputs = append(inputs, b.concat(biases))
	}
	return b.OpN(onnx.Own, op, onnx.Attrs{"k": in, "n": out, "activation": activation}, inputs, 1)[0]
}

// bits are those of the weights of a layer with that many inputs, 0 where they are not quantised.
func (b *Builder) bits(in int) int {
	switch {
	case b.precision == INT4 && in%blockInputs == 0:
		return 4
	case b.precision.Quantized():
		return 8
	}
	return 0
}

// concat is one value of several that lie one after the other on the first axis.
func (b *Builder) concat(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return b.Op("Concat", onnx.Attrs{"axis": 0}, values...)
}

// quantizedLinear is y = x·Wᵀ + b over weights of 8 or 4 bits.
func (b *Builder) quantizedLinear(x, name string, in, out, bits int, biases []string) string {
	if native().panels {
		return b.rowLinear(x, name, in, out, fused[""], bits, biases)
	}
	y := b.columns8(x, name, in, out)
	if len(biases) > 0 {
		y = b.Op("Add", nil, y, b.concat(biases))
	}
	return y
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

// quantizedWeight gives one tensor of a weight's quantised form.
func (b *Builder) quantizedWeight(name string, dt onnx.DType, shape ...int) string {
	if b.Has(name) {
		return name
	}
	t, err := b.w.getQuantized(name, shape)
	if err != nil {
		b.fail(err)
		return name
	}
	b.initializer(name, dt, t)
	return name
}

func (w *Weights) getQuantized(name string, shape []int) (safetensors.Tensor, error) {
	if w.asked != nil {
		*w.asked = append(*w.asked, Shape{name, shape})
		return safetensors.Tensor{Name: name, Shape: shape}, nil
	}
	if w.quantized != nil {
		if t, ok := w.quantized.Tensor(name); ok && slices.Equal(t.Shape, shape) {
			if whole, ok := matrixName(name); ok {
				for part := range strings.SplitSeq(strings.ReplaceAll(whole, gated, joint), joint) {
					w.used[w.names[part]]++
				}
			}
			return t, nil
		}
	}
	return safetensors.Tensor{}, fmt.Errorf("no quantised form of %q", name)
}

// matrixName tells whether a tensor of a quantised checkpoint is a matrix, and which.
func matrixName(tensor string) (name string, ok bool) {
	if name, ok = strings.CutSuffix(tensor, int8Suffix); ok {
		return name, true
	}
	return strings.CutSuffix(tensor, int4Suffix)
}

// Out is one of several linear layers that read the same value.
type Out struct {
	Prefix string
	Dim    int
}

// JointLinear runs linear layers over the same x. Where weights are quantised they are one product, and their outputs
// come as one value, one after the other on the last axis; elsewhere, where joining would copy the weights, as one
// value each.
func (b *Builder) JointLinear(x string, in int, bias bool, outs ...Out) []string {
	if b.bits(in) == 0 {
		var list []string
		for _, o := range outs {
			list = append(list, b.Linear(x, o.Prefix, in, o.Dim, bias))
		}
		return list
	}
	var names, biases []string
	width := 0
	for _, o := range outs {
		names = append(names, o.Prefix+".weight")
		width += o.Dim
		if bias {
			biases = append(biases, b.Weight(o.Prefix+".bias", o.Dim))
		}
	}
	return []string{b.quantizedLinear(x, strings.Join(names, joint), in, width, b.bits(in), biases)}
}

// Gated is activation(gate(x)) · up(x), both linear.
func (b *Builder) Gated(x string, in int, bias bool, activation string, gate, up Out) string {
	if b.bits(in) > 0 && native().panels && activation == "silu" && gate.Dim == up.Dim && gate.Dim%panelWidth == 0 &&
		!bias {
		return b.rowLinear(x, gate.Prefix+".weight"+gated+up.Prefix+".weight", in, 2*gate.Dim, siluGate, b.bits(in), nil)
	}
	y := b.Split(b.JointLinear(x, in, bias, gate, up), gate, up)
	return b.Op("Mul", nil, b.Activation(activation, y[0]), y[1])
}

// Activated is activation(x·Wᵀ + b).
func (b *Builder) Activated(x, prefix string, in, out int, bias bool, activation string) string {
	n, ok := fused[activation]
	if b.bits(in) == 0 || !native().panels || !ok {
		return b.Activation(activation, b.Linear(x, prefix, in, out, bias))
	}
	var biases []string
	if bias {
		biases = []string{b.Weight(prefix+".bias", out)}
	}
	return b.rowLinear(x, prefix+".weight", in, out, n, b.bits(in), biases)
}

// Split cuts a value that JointLinear joined; one that it did not join is given as it is.
func (b *Builder) Split(values []string, outs ...Out) []string {
	if len(values) == len(outs) {
		return values
	}
	var dims []int64
	for _, o := range outs {
		dims = append(dims, int64(o.Dim))
	}
	return b.OpN("", "Split", onnx.Attrs{"axis": -1}, []string{values[0], b.I64s(dims...)}, len(outs))
}

func (b *Builder) zeroPoint() string {
	const name = "zero_point_128"
	if !b.Has(name) {
		b.Inline(name, onnx.U8, nil, []byte{128})
	}
	return name
}
