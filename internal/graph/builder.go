package graph

import (
	"fmt"
	"path/filepath"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// Builder adds layers with weights to a graph. The first missing or misshapen weight is kept and given by Err,
// so that a family reads as arithmetic and not as error checks.
type Builder struct {
	*onnx.Graph
	// UnitNorms adds one to the weights of RMS norms, as Gemma does.
	UnitNorms bool
	// Target is where the graph will run; the zero value is the cpu provider.
	Target
	w    *Weights
	row  *precision
	rows map[string][2]string // value → its quantised rows and their magnitudes
	err  error
}

// NewBuilder starts a graph over the given weights. Quantised precisions need Weights.LoadQuantized before it is
// built for a session.
func NewBuilder(name string, w *Weights, p Precision) *Builder {
	row, err := p.row()
	if err == nil && row.ready != nil {
		err = row.ready()
	}
	return &Builder{Graph: onnx.New(name), w: w, row: row, rows: map[string][2]string{}, err: err}
}

// Err is the first problem met while building, nil when the graph is whole.
func (b *Builder) Err() error { return b.err }

func (b *Builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// Weight gives a parameter as float32, whatever the checkpoint stores.
func (b *Builder) Weight(name string, shape ...int) string {
	if b.Has(name) {
		return name
	}
	t, err := b.w.Get(name, shape...)
	if err != nil {
		b.fail(err)
		return name
	}
	dt, _ := onnxType(t)
	stored := name
	if dt != onnx.F32 {
		stored = name + ".stored"
		if b.Has(stored) {
			return name
		}
	}
	b.initializer(stored, dt, t)
	if stored != name {
		b.Node("", "Cast", onnx.Attrs{"to": int(onnx.F32)}, []string{stored}, []string{name})
	}
	return name
}

// initializer adds a tensor as it is stored: by reference when it lies in a file.
func (b *Builder) initializer(name string, dt onnx.DType, t safetensors.Tensor) {
	if t.File == "" {
		b.Inline(name, dt, t.Shape, t.Data)
		return
	}
	rel, err := filepath.Rel(Root, t.File)
	if err != nil {
		b.fail(fmt.Errorf("tensor %q: %w", t.Name, err))
	}
	b.External(name, dt, t.Shape, filepath.ToSlash(rel), t.Offset, int64(len(t.Data)))
}

// Linear is y = x·Wᵀ for a Hugging Face weight [out, in]; with bias, y = x·Wᵀ + b.
func (b *Builder) Linear(x, prefix string, in, out int, bias bool) string {
	var biases []string
	if bias {
		biases = []string{b.Weight(prefix+".bias", out)}
	}
	if f := b.form(in); f != nil {
		return b.quantizedLinear(x, prefix+".weight", linear{in, out, fused[""]}, f, biases)
	}
	if b.Device {
		return b.gemm(x, prefix, in, out, bias)
	}
	y := b.ContribOp("FusedMatMul", onnx.Attrs{"transB": 1}, x, b.Weight(prefix+".weight", out, in))
	if bias {
		y = b.Op("Add", nil, y, biases[0])
	}
	return y
}

// Head is Linear without a bias, for logits. A precision may hold its weights in a form of its own.
func (b *Builder) Head(x, prefix string, in, out int) string {
	if b.row.head != nil {
		return b.quantizedLinear(x, prefix+".weight", linear{in, out, fused[""]}, b.row.head, nil)
	}
	return b.Linear(x, prefix, in, out, false)
}

// LayerNorm normalises the last axis, with weight and bias.
func (b *Builder) LayerNorm(x, prefix string, dim int, eps float32) string {
	return b.Narrow(b.Op("LayerNormalization", onnx.Attrs{"axis": -1, "epsilon": eps},
		b.Wide(x), b.Weight(prefix+".weight", dim), b.Weight(prefix+".bias", dim)))
}

// RMSNorm is x·rsqrt(mean(x²)+eps)·w over the last axis.
func (b *Builder) RMSNorm(x, prefix string, dim int, eps float32) string {
	return b.Narrow(b.Op("SimplifiedLayerNormalization", onnx.Attrs{"axis": -1, "epsilon": eps, "stash_type": 1},
		b.Wide(x), b.NormWeight(prefix+".weight", dim)))
}

// NormWeight is the factor of an RMS norm; the session folds the sum into a constant.
func (b *Builder) NormWeight(name string, dim int) string {
	w := b.Weight(name, dim)
	if b.UnitNorms {
		w = b.Op("Add", nil, w, b.F32(1))
	}
	return w
}

// AddRMSNorm adds a residual, which is float32, and normalises the sum; it returns the normalised value and the sum.
func (b *Builder) AddRMSNorm(x, residual, prefix string, dim int, eps float32) (normed, sum string) {
	out := b.OpN(onnx.Contrib, "SkipSimplifiedLayerNormalization", onnx.Attrs{"epsilon": eps},
		[]string{b.Wide(x), residual, b.NormWeight(prefix+".weight", dim)}, 4)
	return b.Narrow(out[0]), out[3]
}

// activations maps the names of transformers' ACT2FN that are supported.
var activations = map[string]func(*Builder, string) string{
	"silu":              func(b *Builder, x string) string { return b.Op("Mul", nil, x, b.Op("Sigmoid", nil, x)) },
	"gelu":              func(b *Builder, x string) string { return b.Op("Gelu", onnx.Attrs{"approximate": "none"}, x) },
	"gelu_pytorch_tanh": geluTanh,
	"gelu_new":          geluTanh,
	"gelu_fast":         geluTanh,
	"quick_gelu": func(b *Builder, x string) string {
		return b.ContribOp("QuickGelu", onnx.Attrs{"alpha": float32(1.702)}, x)
	},
}

func geluTanh(b *Builder, x string) string {
	return b.Op("Gelu", onnx.Attrs{"approximate": "tanh"}, x)
}

// CheckActivation refuses an activation that Activation cannot build, naming the field it came from.
func CheckActivation(field, name string) error {
	if _, ok := activations[name]; ok {
		return nil
	}
	return fmt.Errorf("%s %q is not supported; supported are gelu, gelu_fast, gelu_new, gelu_pytorch_tanh, quick_gelu, silu", field, name)
}

// Activation applies a function by the name transformers gives it.
func (b *Builder) Activation(name, x string) string {
	f, ok := activations[name]
	if !ok {
		b.fail(CheckActivation("activation", name))
		return x
	}
	return b.Narrow(f(b, b.Wide(x)))
}

// Name gives value x the name that a graph output must have.
func (b *Builder) Name(x, name string) {
	b.Node("", "Identity", nil, []string{x}, []string{name})
}
