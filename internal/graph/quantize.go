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
	"sync"
	"unsafe"

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
)

// suffixes of the tensors that stand for one quantised weight in a quantised checkpoint.
const (
	int8Suffix  = ".int8"  // I8 [in, out]
	scaleSuffix = ".scale" // F32 [out]
)

// joint separates the names of weights that are quantised as one matrix, their output channels one after the other.
const joint = "+"

// Quantize writes the int8 forms of the named weights, canonical names of [out, in] matrices or several of them with
// equal in, joined, as a safetensors file. The file appears whole or not at all. Weight w of output channel n becomes
// round(w / s) with s = max|w[n,:]| / 127, stored transposed, as the int8 kernel reads it.
func (w *Weights) Quantize(path string, names []string) (err error) {
	sources := make([][]safetensors.Tensor, len(names))
	rows := make([]int, len(names))
	var size int64
	for i, name := range names {
		for part := range strings.SplitSeq(name, joint) {
			t, ok := w.ckpt.Tensor(w.names[part])
			if !ok || len(t.Shape) != 2 {
				return fmt.Errorf("quantise: %q is not a matrix of the checkpoint", part)
			}
			sources[i] = append(sources[i], t)
			rows[i] += t.Shape[0]
			size += int64(t.Elems()) + 4*int64(t.Shape[0])
		}
	}
	data := make([]byte, size)
	at := int64(0)
	take := func(n int) []byte { at += int64(n); return data[at-int64(n) : at : at] }
	var head []safetensors.Tensor
	// Scales first: they are float32 and stay aligned.
	scales := make([][]byte, len(names))
	for i, name := range names {
		scales[i] = take(4 * rows[i])
		head = append(head, safetensors.Tensor{Name: name + scaleSuffix, DType: safetensors.F32, Shape: rows[i : i+1], Data: scales[i]})
	}
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for i, name := range names {
		k := sources[i][0].Shape[1]
		q := take(k * rows[i])
		head = append(head, safetensors.Tensor{Name: name + int8Suffix, DType: safetensors.I8, Shape: []int{k, rows[i]}, Data: q})
		column := 0
		for _, t := range sources[i] {
			from := column
			work.Go(func() error {
				defer t.Forget()
				return quantizeMatrix(q, scales[i], rows[i], from, t)
			})
			column += t.Shape[0]
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
	if err := errors.Join(safetensors.Write(f, head), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// block is the side of the tiles in which a matrix is transposed, so that both sides stay in cache.
const block = 64

var rowBuffers = sync.Pool{New: func() any { return new([]float32) }}

// quantizeMatrix fills columns [column, column+n) of q [k, width] and of scales [width] from t [n, k].
func quantizeMatrix(q, scales []byte, width, column int, t safetensors.Tensor) error {
	n, k := t.Shape[0], t.Shape[1]
	scale := unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(scales))), width)[column:]
	buf := rowBuffers.Get().(*[]float32)
	defer rowBuffers.Put(buf)
	*buf = slices.Grow((*buf)[:0], block*k)[:block*k]
	for from := 0; from < n; from += block {
		rows := min(block, n-from)
		if err := t.FloatsInto((*buf)[:rows*k], from*k); err != nil {
			return err
		}
		for r := range rows {
			row := (*buf)[r*k : (r+1)*k]
			var most float32
			for _, v := range row {
				most = max(most, v, -v)
			}
			if math.IsNaN(float64(most)) || math.IsInf(float64(most), 0) {
				return fmt.Errorf("tensor %q, row %d holds a value that is not finite", t.Name, from+r)
			}
			scale[from+r] = most / 127
			inverse := float32(0)
			if most > 0 {
				inverse = 127 / most
			}
			for i, v := range row {
				row[i] = v * inverse
			}
		}
		for c := 0; c < k; c += block {
			for x := c; x < min(c+block, k); x++ {
				at := x*width + column + from
				out := q[at : at+rows]
				for r := range out {
					out[r] = byte(int8(math.RoundToEven(float64((*buf)[r*k+x]))))
				}
			}
		}
	}
	return nil
}

// linear8 is y = x·Wᵀ in int8: each row of x is divided by its largest magnitude m, quantised to 8 bits around 128,
// multiplied in integers, and scaled by the channel's scale and by m. Layers that read the same x share its
// quantised form.
func (b *Builder) linear8(x, name string, in, out int) string {
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
				for part := range strings.SplitSeq(whole, joint) {
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
const int8Version = "1"

// int8Name is the name of the quantised file: it depends on the checkpoint's content and on which weights are in it.
func (w *Weights) int8Name(names []string) string {
	h := sha256.New()
	h.Write(w.ckpt.Digest())
	for _, n := range names {
		fmt.Fprintln(h, n)
	}
	return "int8-v" + int8Version + "-" + hex.EncodeToString(h.Sum(nil)[:16]) + ".safetensors"
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
	y := b.linear8(x, strings.Join(names, joint), in, width)
	if bias {
		y = b.Op("Add", nil, y, b.Op("Concat", onnx.Attrs{"axis": 0}, biases...))
	}
	return []string{y}
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
