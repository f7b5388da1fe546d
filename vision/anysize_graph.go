package vision

import (
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// AnySizeGraph builds the graph of a tower with its merger. Inputs, in order: patches [n, 3·Frames·PatchSize²], with a
// rope cos and sin [n, head/2], images (the lengths of the sequences that the n patches are) and, where there are,
// windows (the same of windows) and positions [n, hidden]. Its output is image_features [tokens, width].
func AnySizeGraph(w *graph.Weights, t AnySize, p graph.Precision) (*graph.Builder, error) {
	return anySizeGraph(w, t, p, graph.Target{})
}

func anySizeGraph(w *graph.Weights, t AnySize, p graph.Precision, on graph.Target) (*graph.Builder, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	b := graph.NewBuilder("vision", w, p)
	b.Target = on
	patches := b.Input("patches", onnx.F32, "n", t.values())
	s := graph.Sequences{Heads: t.Heads, Dim: t.head(), Single: true}
	if !t.NoRope {
		s.Cos, s.Sin = b.Input("cos", onnx.F32, "n", t.head()/2), b.Input("sin", onnx.F32, "n", t.head()/2)
	}
	s.Lengths = b.Input("images", onnx.I32, "images")
	inWindow := s
	if t.Window > 0 {
		inWindow.Lengths, inWindow.Single = b.Input("windows", onnx.I32, "windows"), false
	}
	x := t.embed(b, patches)
	var parts []string
	for i := range t.Layers {
		if t.Window > 0 && !slices.Contains(t.Whole, i) {
			x = t.layer(b, i, x, inWindow)
		} else {
			x = t.layer(b, i, x, s)
		}
		if at := slices.Index(t.Deepstack, i); at >= 0 {
			m := blockMerger{after: true, norm: Norm{Eps: t.Norm.Eps}}
			parts = append(parts, b.Wide(m.build(b, x, fmt.Sprintf("connector.deepstack.%d.", at), t)))
		}
	}
	if t.PostNorm {
		x = t.Norm.build(b, x, "vision.post_layernorm", t.Hidden)
	}
	x = b.Wide(t.Merger.build(b, x, "connector.", t))
	if len(parts) > 0 {
		x = b.Op("Concat", onnx.Attrs{"axis": -1}, slices.Insert(parts, 0, x)...)
	}
	b.Name(x, "image_features")
	b.Output("image_features", onnx.F32, "tokens", t.Width)
	if err := b.Err(); err != nil {
		return b, err
	}
	_, err := t.positionTable(w) // a checkpoint without it is refused with the graph's
	return b, err
}

// embed makes hidden states of patches.
func (c AnySize) embed(b *graph.Builder, patches string) string {
	dims := []int{c.Hidden, 3, c.PatchSize, c.PatchSize}
	if c.Frames > 0 {
		dims = slices.Insert(dims, 2, c.Frames)
	}
	if c.PixelsLast {
		dims = []int{c.Hidden, c.values()}
	}
	x := flatLinear(b, patches, "vision.embeddings.patch_embedding", c.PatchBias, dims...)
	if c.PatchNorm {
		x = b.Wide(c.Norm.build(b, x, "vision.pre_layernorm", c.Hidden))
	}
	if c.Positions.Side > 0 {
		x = b.Op("Add", nil, x, b.Input("positions", onnx.F32, "n", c.Hidden))
	}
	return x
}

// flatLinear multiplies x [rows, in] by the weight of a convolution, [out, …], whose patches do not overlap, in
// float32.
func flatLinear(b *graph.Builder, x, prefix string, bias bool, dims ...int) string {
	weight := b.Op("Reshape", nil, b.Weight(prefix+".weight", dims...), b.I64s(int64(dims[0]), -1))
	operands := []string{x, weight}
	if bias {
		operands = append(operands, b.Weight(prefix+".bias", dims[0]))
	}
	return b.Op("Gemm", onnx.Attrs{"transB": 1}, operands...)
}

// layer is layer i over hidden states x [n, hidden], which are float32.
func (c AnySize) layer(b *graph.Builder, i int, x string, s graph.Sequences) string {
	p := fmt.Sprintf("vision.encoder.layers.%d.", i)
	a := b.SequenceAttention(c.qkv(b, p+"self_attn.", c.Norm.build(b, x, p+"layer_norm1", c.Hidden)), s)
	x = b.Op("Add", nil, x, b.Wide(b.Linear(a, p+"self_attn.out_proj", c.Hidden, c.Hidden, c.OutBias)))
	n := c.Norm.build(b, x, p+"layer_norm2", c.Hidden)
	if !c.GatedMLP {
		m := b.Activated(n, p+"mlp.fc1", c.Hidden, c.Intermediate, c.MLPBias, c.Activation)
		return b.Op("Add", nil, x, b.Wide(b.Linear(m, p+"mlp.fc2", c.Intermediate, c.Hidden, c.MLPBias)))
	}
	m := b.Gated(n, c.Hidden, c.MLPBias, c.Activation, graph.Out{Prefix: p + "mlp.gate_proj", Dim: c.Intermediate},
		graph.Out{Prefix: p + "mlp.up_proj", Dim: c.Intermediate})
	return b.Op("Add", nil, x, b.Wide(b.Linear(m, p+"mlp.down_proj", c.Intermediate, c.Hidden, c.MLPBias)))
}

// qkv projects queries, keys and values: three values, or one that holds all.
func (c AnySize) qkv(b *graph.Builder, p, x string) []string {
	var outs []graph.Out
	for _, name := range []string{"q_proj", "k_proj", "v_proj"} {
		outs = append(outs, graph.Out{Prefix: p + name, Dim: c.Hidden})
	}
	var list []string
	if c.JointQKV {
		list = b.JointLinear(x, c.Hidden, c.QKVBias, graph.Out{Prefix: p + "qkv", Dim: 3 * c.Hidden})
	} else {
		list = b.JointLinear(x, c.Hidden, c.QKVBias, outs...)
	}
	if !c.QKNorm {
		return list
	}
	list = b.Split(list, outs...)
	for i, name := range []string{"q_norm", "k_norm"} {
		heads := b.Op("Reshape", nil, list[i], b.I64s(-1, int64(c.Heads), int64(c.head())))
		list[i] = b.Op("Reshape", nil, c.Norm.build(b, heads, p+name, c.head()), b.I64s(-1, int64(c.Hidden)))
	}
	return list
}
