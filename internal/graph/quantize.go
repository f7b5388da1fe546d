package graph

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
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
)

// suffixes of the tensors that stand for one quantised weight in a quantised checkpoint.
const (
	int8Suffix  = ".int8"  // I8, in a layout's shape
	scaleSuffix = ".scale" // F32 [out], padded to the layout's width
	startSuffix = ".start" // I32 of the same length, -128 · Σ of a channel's weights; panels only
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

// quantized is one matrix on its way into the file.
type quantized struct {
	layout
	k, n   int
	q      []byte    // layout.shape
	scales []float32 // [width]
	starts []int32   // [width] or nil
}

// put writes rows channels [channel, channel+rows/k) of int8 values. every is 1, or 2 when panels take turns; then
// channel counts within the matrix's own half and turn says which.
func (m *quantized) put(values []int8, channel, every, turn int) {
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
		at := m.place(channel+r, every, turn)
		out := m.q[(at/panelWidth*steps)*panelWidth*4+at%panelWidth*4:]
		sum := int32(0)
		for x, v := range values[r*m.k : (r+1)*m.k] {
			out[x/4*panelWidth*4+x%4] = byte(v)
			sum += int32(v)
		}
		m.starts[at] = -128 * sum
	}
}

// place is where a channel stands among all.
func (m *quantized) place(channel, every, turn int) int {
	return (channel/panelWidth*every+turn)*panelWidth + channel%panelWidth
}

// Quantize writes the int8 forms of the named weights, canonical names of [out, in] matrices or several of them with
// equal in, joined, as a safetensors file. The file appears whole or not at all. Weight w of output channel n becomes
// round(w / s) with s = max|w[n,:]| / 127.
func (w *Weights) Quantize(path string, names []string) (err error) {
	return w.quantize(path, names, native())
}

func (w *Weights) quantize(path string, names []string, l layout) (err error) {
	var head []safetensors.Tensor // matrices first: their sizes keep each other aligned
	var tail []safetensors.Tensor
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range names {
		sep, every := joint, 1
		if strings.Contains(name, gated) {
			sep, every = gated, 2
		}
		var sources []safetensors.Tensor
		m := &quantized{layout: l}
		for part := range strings.SplitSeq(name, sep) {
			t, ok := w.ckpt.Tensor(w.names[part])
			if !ok || len(t.Shape) != 2 {
				return fmt.Errorf("quantise: %q is not a matrix of the checkpoint", part)
			}
			sources = append(sources, t)
			m.n, m.k = m.n+t.Shape[0], t.Shape[1]
		}
		shape, width := l.shape(m.k, m.n), l.width(m.n)
		size := 1
		for _, d := range shape {
			size *= d
		}
		m.q, m.scales = make([]byte, size), make([]float32, width)
		head = append(head, safetensors.Tensor{Name: name + int8Suffix, DType: safetensors.I8, Shape: shape, Data: m.q})
		tail = append(tail, safetensors.Tensor{Name: name + scaleSuffix, DType: safetensors.F32, Shape: []int{width}, Data: bytesOf(m.scales)})
		if l.panels {
			m.starts = make([]int32, width)
			tail = append(tail, safetensors.Tensor{Name: name + startSuffix, DType: safetensors.I32, Shape: []int{width}, Data: bytesOf(m.starts)})
		}
		from := 0
		for i, t := range sources {
			channel, turn := from, 0
			if every == 2 {
				channel, turn = 0, i
			}
			work.Go(func() error {
				defer t.Forget()
				return m.quantize(t, channel, every, turn)
			})
			from += t.Shape[0]
		}
	}
	if err := work.Wait(); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(safetensors.Write(f, append(head, tail...)), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func bytesOf[T float32 | int32](s []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), 4*len(s))
}

// block is the number of channels quantised at a time, so that source and target stay in cache.
const block = 64

// quantize fills in the channels of t [n, k], from the given one on.
func (m *quantized) quantize(t safetensors.Tensor, channel, every, turn int) error {
	n, k := t.Shape[0], t.Shape[1]
	floats, values := make([]float32, block*k), make([]int8, block*k)
	for from := 0; from < n; from += block {
		rows := min(block, n-from)
		if err := t.FloatsInto(floats[:rows*k], from*k); err != nil {
			return err
		}
		for r := range rows {
			row := floats[r*k : (r+1)*k]
			var most float32
			for _, v := range row {
				most = max(most, v, -v)
			}
			if math.IsNaN(float64(most)) || math.IsInf(float64(most), 0) {
				return fmt.Errorf("tensor %q, row %d holds a value that is not finite", t.Name, from+r)
			}
			m.scales[m.scaleAt(channel+from+r, every, turn)] = most / 127
			inverse := float32(0)
			if most > 0 {
				inverse = 127 / most
			}
			for i, v := range row {
				values[r*k+i] = int8(math.RoundToEven(float64(v * inverse)))
			}
		}
		m.put(values[:rows*k], channel+from, every, turn)
	}
	return nil
}

func (m *quantized) scaleAt(channel, every, turn int) int {
	if m.panels {
		return m.place(channel, every, turn)
	}
	return channel
}

// HasKernels says whether graphs use mmserve's own operators instead of ONNX Runtime's: where the processor has what
// they need. Tests turn it off.
var HasKernels = ort.HasKernels()

// native is the layout of this machine's operators.
func native() layout { return layout{panels: HasKernels} }

// activations that RowLinear8 applies itself, as its attribute numbers them.
var fused = map[string]int{"": 0, "gelu_pytorch_tanh": 2, "gelu_new": 2, "gelu_fast": 2, "quick_gelu": 3}

// siluGate is the number of the one that multiplies silu of a panel by the next.
const siluGate = 1

// rowLinear is RowLinear8: y = activation(x·Wᵀ + b). A row of x is quantised to 8 bits with a scale of its own.
func (b *Builder) rowLinear(x, name string, in, out, activation int, biases []string) string {
	width := native().width(out)
	inputs := []string{
		x, b.int8Weight(name+int8Suffix, onnx.I8, native().shape(in, out)...),
		b.int8Weight(name+scaleSuffix, onnx.F32, width), b.int8Weight(name+startSuffix, onnx.I32, width),
	}
	if len(biases) > 0 {
		inputs = append(inputs, b.concat(biases))
	}
	return b.OpN(onnx.Own, "RowLinear8", onnx.Attrs{"k": in, "n": out, "activation": activation}, inputs, 1)[0]
}

// concat is one value of several that lie one after the other on the first axis.
func (b *Builder) concat(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return b.Op("Concat", onnx.Attrs{"axis": 0}, values...)
}

// linear8 is y = x·Wᵀ + b in int8.
func (b *Builder) linear8(x, name string, in, out int, biases []string) string {
	if native().panels {
		return b.rowLinear(x, name, in, out, fused[""], biases)
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
	y := b.ContribOp("MatMulIntegerToFloat", nil, q[0], b.int8Weight(name+int8Suffix, onnx.I8, in, out),
		b.F32(1.0/127), b.int8Weight(name+scaleSuffix, onnx.F32, out), b.zeroPoint())
	return b.Op("Mul", nil, y, q[1])
}

// int8Weight gives one tensor of a weight's quantised form.
func (b *Builder) int8Weight(name string, dt onnx.DType, shape ...int) string {
	if b.Has(name) {
		return name
	}
	t, err := b.w.getInt8(name, shape)
	if err != nil {
		b.fail(err)
		return name
	}
	b.initializer(name, dt, t)
	return name
}

func (w *Weights) getInt8(name string, shape []int) (safetensors.Tensor, error) {
	if w.asked != nil {
		*w.asked = append(*w.asked, Shape{name, shape})
		return safetensors.Tensor{Name: name, Shape: shape}, nil
	}
	if w.int8 != nil {
		if t, ok := w.int8.Tensor(name); ok && slices.Equal(t.Shape, shape) {
			if whole, ok := strings.CutSuffix(name, int8Suffix); ok {
				for part := range strings.SplitSeq(strings.ReplaceAll(whole, gated, joint), joint) {
					w.used[w.names[part]]++
				}
			}
			return t, nil
		}
	}
	return safetensors.Tensor{}, fmt.Errorf("no quantised form of %q", name)
}

// LoadInt8 makes the quantised weights that build asks for available: from dir when an earlier start left them there,
// or by quantising now and leaving them there. build must not open a session.
func (w *Weights) LoadInt8(dir string, build func(w *Weights) error) (fresh bool, err error) {
	if !HasKernels && saturates() {
		return false, ErrSaturates
	}
	needs, err := Needs(build)
	if err != nil {
		return false, err
	}
	var names []string
	for _, n := range needs {
		if name, ok := strings.CutSuffix(n.Name, int8Suffix); ok {
			names = append(names, name)
		}
	}
	path := filepath.Join(dir, w.int8Name(names))
	if w.int8, err = safetensors.OpenFile(path); err == nil {
		return false, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("cache folder: %w", err)
	}
	if err := w.Quantize(path, names); err != nil {
		return false, fmt.Errorf("quantise to int8: %w", err)
	}
	w.int8, err = safetensors.OpenFile(path)
	return true, err
}

// int8Version changes when the layout or the arithmetic of a quantised file does.
const int8Version = "2"

// int8Name is the name of the quantised file: it depends on the checkpoint's content and on which weights are in it.
func (w *Weights) int8Name(names []string) string {
	h := sha256.New()
	h.Write(w.ckpt.Digest())
	for _, n := range names {
		fmt.Fprintln(h, n)
	}
	return "int8-v" + int8Version + "-" + native().String() + "-" + hex.EncodeToString(h.Sum(nil)[:16]) + ".safetensors"
}

// Out is one of several linear layers that read the same value.
type Out struct {
	Prefix string
	Dim    int
}

// JointLinear runs linear layers over the same x. In INT8 they are one product, and their outputs come as one value,
// one after the other on the last axis; in FP32, where joining would copy the weights, as one value each.
func (b *Builder) JointLinear(x string, in int, bias bool, outs ...Out) []string {
	if b.precision != INT8 {
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
	return []string{b.linear8(x, strings.Join(names, joint), in, width, biases)}
}

// Gated is activation(gate(x)) · up(x), both linear.
func (b *Builder) Gated(x string, in int, bias bool, activation string, gate, up Out) string {
	if b.precision == INT8 && native().panels && activation == "silu" && gate.Dim == up.Dim && gate.Dim%panelWidth == 0 && !bias {
		return b.rowLinear(x, gate.Prefix+".weight"+gated+up.Prefix+".weight", in, 2*gate.Dim, siluGate, nil)
	}
	y := b.Split(b.JointLinear(x, in, bias, gate, up), gate, up)
	return b.Op("Mul", nil, b.Activation(activation, y[0]), y[1])
}

// Activated is activation(x·Wᵀ + b).
func (b *Builder) Activated(x, prefix string, in, out int, bias bool, activation string) string {
	n, ok := fused[activation]
	if b.precision != INT8 || !native().panels || !ok {
		return b.Activation(activation, b.Linear(x, prefix, in, out, bias))
	}
	var biases []string
	if bias {
		biases = []string{b.Weight(prefix+".bias", out)}
	}
	return b.rowLinear(x, prefix+".weight", in, out, n, biases)
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
