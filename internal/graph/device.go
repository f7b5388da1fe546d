package graph

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// Target is where a graph runs, which says what operators it is made of.
type Target struct {
	// Device is set for providers that have memory of their own. Their linear layers are Gemm nodes, whose input has two
	// axes: values between layers are [rows, width].
	Device bool
	// Fused says that the provider's fused attention is right for a run of any length. See ort.FusedAttention.
	Fused bool
}

// TargetOf asks the provider that sessions of these options run on. A precision that it does not have is an error.
func TargetOf(o ort.Options, p Precision) (Target, error) {
	if err := p.Check(o.Provider); err != nil {
		return Target{}, fmt.Errorf("precision %w", err)
	}
	if !o.Provider.Can().DeviceTensors {
		return Target{}, nil
	}
	fused, err := ort.FusedAttention(o)
	return Target{Device: true, Fused: fused}, err
}

// Operand gives a parameter in the type that linear layers multiply in.
func (b *Builder) Operand(name string, shape ...int) string {
	if b.row.values == onnx.F32 {
		return b.Weight(name, shape...)
	}
	half := name + ".half"
	if b.Has(half) {
		return half
	}
	t, err := b.w.Get(name, shape...)
	if err != nil {
		b.fail(err)
		return half
	}
	dt, _ := onnxType(t)
	if dt == b.row.values {
		b.initializer(half, dt, t)
		return half
	}
	if stored := half + ".stored"; !b.Has(stored) {
		b.initializer(stored, dt, t)
		// once, when the session is made
		b.Node("", "Cast", onnx.Attrs{"to": int(b.row.values)}, []string{stored}, []string{half})
	}
	return half
}

// Narrow makes the values of x those that linear layers take.
func (b *Builder) Narrow(x string) string { return b.cast(x, b.row.values) }

// Wide makes them float32.
func (b *Builder) Wide(x string) string { return b.cast(x, onnx.F32) }

func (b *Builder) cast(x string, t onnx.DType) string {
	if b.row.values == onnx.F32 {
		return x
	}
	return b.Op("Cast", onnx.Attrs{"to": int(t)}, x)
}

// Type is that of the values that linear layers take.
func (b *Builder) Type() onnx.DType { return b.row.values }

// gemm is y = x·Wᵀ + b for x [rows, in].
func (b *Builder) gemm(x, prefix string, in, out int, bias bool) string {
	operands := []string{x, b.Operand(prefix+".weight", out, in)}
	if bias {
		operands = append(operands, b.Operand(prefix+".bias", out))
	}
	return b.Op("Gemm", onnx.Attrs{"transB": 1}, operands...)
}

// Rows makes x [rows, width] on a device; elsewhere it stays as it is.
func (b *Builder) Rows(x string, width int) string {
	if !b.Device {
		return x
	}
	return b.Op("Reshape", nil, x, b.I64s(-1, int64(width)))
}

// Blocks makes x of Rows [blocks, n, width].
func (b *Builder) Blocks(x string, n, width int) string {
	if !b.Device {
		return x
	}
	return b.Op("Reshape", nil, x, b.I64s(-1, int64(n), int64(width)))
}

// SelfAttention is attention among the n positions of each block without a mask. qkv is three values [blocks, n,
// heads·dim], on
// a device [blocks·n, heads·dim], or one that holds all three on its last axis. Where weights are quantised and
// the processor is
// fast at it, it is computed in small integers.
func (b *Builder) SelfAttention(qkv []string, heads, dim, n int, scale float32) string {
	if wide := padded8(dim); b.row.form != nil && HasKernels && kernels.HasSelfAttention8() &&
		wide-dim <= dim/4 && wide <= 1024 {
		return b.attention8(qkv, heads, dim, n, scale)
	}
	third := Out{Dim: heads * dim}
	qkv = b.Split(qkv, third, third, third)
	for i, v := range qkv {
		qkv[i] = b.Blocks(v, n, heads*dim)
	}
	return b.Rows(b.attend(qkv, attended{heads, dim, scale, ""}), heads*dim)
}

// padded8 is the head size that attention in small integers takes for one of dim.
func padded8(dim int) int { return (dim + 15) / 16 * 16 }

// attention8 is SelfAttention in small integers. Heads are padded with zeros to the multiple of 16 that the operator
// takes.
func (b *Builder) attention8(qkv []string, heads, dim, n int, scale float32) string {
	attrs := onnx.Attrs{"heads": heads, "scale": scale}
	wide := padded8(dim)
	if wide == dim {
		return b.OpN(onnx.Own, "SelfAttention8", attrs, qkv, 1)[0]
	}
	third := Out{Dim: heads * dim}
	parts := b.Split(qkv, third, third, third)
	padded := make([]string, len(parts))
	for i, v := range parts {
		v = b.Op("Reshape", nil, v, b.I64s(-1, int64(n), int64(heads), int64(dim)))
		v = b.Op("Pad", nil, v, b.I64s(0, 0, 0, 0, 0, 0, 0, int64(wide-dim)))
		padded[i] = b.Op("Reshape", nil, v, b.I64s(-1, int64(n), int64(heads*wide)))
	}
	x := b.OpN(onnx.Own, "SelfAttention8", attrs, padded, 1)[0]
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(n), int64(heads), int64(wide)))
	x = b.Op("Slice", nil, x, b.I64s(0), b.I64s(int64(dim)), b.I64s(-1))
	return b.Op("Reshape", nil, x, b.I64s(-1, int64(n), int64(heads*dim)))
}
