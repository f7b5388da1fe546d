package graph

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/safetensors"
	"golang.org/x/sync/errgroup"
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

// largest is the largest magnitude of x, NaN if it holds one.
func largest(x []float32) (most float32) {
	for _, v := range x {
		most = max(most, v, -v)
	}
	return most
}

// place is where a channel stands among all panels' channels.
func place(channel, every, turn int) int {
	return (channel/panelWidth*every+turn)*panelWidth + channel%panelWidth
}

// target is a quantised matrix on its way into the file.
type target interface {
	// put takes rows of floats [rows, k] whose output channels start at channel; see quantized.store for every and turn. It
	// returns the first row that holds a value that is not finite, or -1. Calls for different channels may overlap.
	put(rows []float32, channel, every, turn int) int
	// tensors are the parts: what is large, and the rest.
	tensors(name string) (head, tail []safetensors.Tensor)
}

// quantize makes quantised forms of weights: canonical names of [out, in] matrices, or of several with equal in, joined, with the
// suffix of the form.
func (w *Weights) quantize(names []string, l layout) ([]safetensors.Tensor, error) {
	var head []safetensors.Tensor // matrices first: their sizes keep each other aligned
	var tail []safetensors.Tensor
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for _, full := range names {
		name, f := formOf(full)
		if f == nil {
			return nil, fmt.Errorf("%q is in no form of the precisions", full)
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
		m := f.fill(l, k, n)
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

// HasKernels says whether graphs use mmserve's own operators instead of ONNX Runtime's: where the processor has what
// they need. Tests turn it off.
var HasKernels = kernels.Available()

// native is the layout of this machine's operators.
func native() layout { return layout{panels: HasKernels} }

// activations that the operators apply themselves, as their attribute numbers them.
var fused = map[string]int{"": 0, "gelu_pytorch_tanh": 2, "gelu_new": 2, "gelu_fast": 2, "quick_gelu": 3}

// siluGate is the number of the one that multiplies silu of a panel by the next.
const siluGate = 1

// rowLinear is a layer in an operator of ours: y = activation(x·Wᵀ + b). A row of x is quantised to 8 bits with a scale of its own.
func (b *Builder) rowLinear(x, name string, l linear, f *form, biases []string) string {
	inputs := append([]string{x}, f.operands(b, name, l.in, l.out)...)
	if len(biases) > 0 {
		inputs = append(inputs, b.concat(biases))
	}
	return b.OpN(onnx.Own, f.operator, onnx.Attrs{"k": l.in, "n": l.out, "activation": l.activation}, inputs, 1)[0]
}

// linear is a layer's shape, and the number of the activation that its operator applies.
type linear struct{ in, out, activation int }

// form is how the weights of a layer with that many inputs are quantised, nil where they are not.
func (b *Builder) form(in int) *form {
	if b.row.form == nil {
		return nil
	}
	return b.row.form(in)
}

// concat is one value of several that lie one after the other on the first axis.
func (b *Builder) concat(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return b.Op("Concat", onnx.Attrs{"axis": 0}, values...)
}

// quantizedLinear is y = x·Wᵀ + b over quantised weights.
func (b *Builder) quantizedLinear(x, name string, l linear, f *form, biases []string) string {
	if native().panels {
		return b.rowLinear(x, name, l, f, biases)
	}
	y := b.columns8(x, name, l.in, l.out)
	if len(biases) > 0 {
		y = b.Op("Add", nil, y, b.concat(biases))
	}
	return y
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
			if whole, f := formOf(name); f != nil {
				for part := range strings.SplitSeq(strings.ReplaceAll(whole, gated, joint), joint) {
					w.used[w.names[part]]++
				}
			}
			return t, nil
		}
	}
	return safetensors.Tensor{}, fmt.Errorf("no quantised form of %q", name)
}

// Out is one of several linear layers that read the same value.
type Out struct {
	Prefix string
	Dim    int
}

// JointLinear runs linear layers over the same x. Where weights are quantised they are one product, and their outputs come as one value,
// one after the other on the last axis; elsewhere, where joining would copy the weights, as one value each.
func (b *Builder) JointLinear(x string, in int, bias bool, outs ...Out) []string {
	if b.form(in) == nil {
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
	return []string{b.quantizedLinear(x, strings.Join(names, joint), linear{in, width, fused[""]}, b.form(in), biases)}
}

// Gated is activation(gate(x)) · up(x), both linear.
func (b *Builder) Gated(x string, in int, bias bool, activation string, gate, up Out) string {
	if b.form(in) != nil && native().panels && activation == "silu" && gate.Dim == up.Dim && gate.Dim%panelWidth == 0 && !bias {
		return b.rowLinear(x, gate.Prefix+".weight"+gated+up.Prefix+".weight", linear{in, 2 * gate.Dim, siluGate}, b.form(in), nil)
	}
	y := b.Split(b.JointLinear(x, in, bias, gate, up), gate, up)
	return b.Op("Mul", nil, b.Activation(activation, y[0]), y[1])
}

// Activated is activation(x·Wᵀ + b).
func (b *Builder) Activated(x, prefix string, in, out int, bias bool, activation string) string {
	n, ok := fused[activation]
	if b.form(in) == nil || !native().panels || !ok {
		return b.Activation(activation, b.Linear(x, prefix, in, out, bias))
	}
	var biases []string
	if bias {
		biases = []string{b.Weight(prefix+".bias", out)}
	}
	return b.rowLinear(x, prefix+".weight", linear{in, out, n}, b.form(in), biases)
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
