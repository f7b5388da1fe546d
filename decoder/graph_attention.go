package decoder

import (
	"cmp"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// attention builds the attention of every layer of one graph.
type attention struct {
	Config
	seqlens, total, cos, sin string
	// first is true in a step that starts a sequence; "" where no layer needs to know.
	first string
	// shape is [B, S, -1] where values between layers are [B·S, width], as on a device; else "".
	shape string
}

// window is the number of positions that layer i sees, 0 for all.
func (c Config) window(i int) int {
	if c.Windows == nil {
		return 0
	}
	return c.Windows[i]
}

// ownAttention tells whether layer i runs mmserve's own operator instead of ONNX Runtime's.
func (c Config) ownAttention(i int) bool {
	return graph.HasKernels && !c.plain && c.window(i) == 0 && c.Softcap == 0 && c.EncoderStates == 0
}

// layer adds grouped-query attention of layer i, which rotates q and k, writes k and v into the cache in place and
// attends to everything up to each row's own length. qkv is three values, or one that holds all three.
func (a attention) layer(b *graph.Builder, i int, qkv []string) string {
	scale := cmp.Or(a.AttentionScale, float32(1/math.Sqrt(float64(a.HeadDim))))
	name := func(stem string) string { return fmt.Sprintf("%s.%d", stem, i) }
	dims := []any{"B", a.KVHeads, "P", a.HeadDim}
	b.Input(name("past_key"), b.Type(), dims...)
	b.Input(name("past_value"), b.Type(), dims...)
	in := qkv
	if a.shape != "" {
		in = make([]string, len(qkv))
		for i, v := range qkv {
			in[i] = b.Op("Reshape", nil, v, a.shape)
		}
	}
	if len(qkv) == 1 {
		in = []string{qkv[0], "", ""}
	}
	in = append(in[:3:3], name("past_key"), name("past_value"), a.seqlens)
	out := []string{name("attention"), name("present_key"), name("present_value")}
	if !b.Device && a.ownAttention(i) {
		b.Node(onnx.Own, "CachedAttention", onnx.Attrs{"heads": a.Heads, "kv_heads": a.KVHeads, "scale": scale},
			append(in, a.cos, a.sin), out)
	} else {
		attrs := onnx.Attrs{
			"num_heads": a.Heads, "kv_num_heads": a.KVHeads, "do_rotary": 1, "rotary_interleaved": 0, "scale": scale,
			"softcap": a.Softcap,
		}
		if n := a.window(i); n > 0 {
			attrs["local_window_size"] = n
		}
		b.Node(onnx.Contrib, "GroupQueryAttention", attrs, append(in, a.total, a.cos, a.sin), out)
	}
	b.Output(name("present_key"), b.Type(), dims...)
	b.Output(name("present_value"), b.Type(), dims...)
	if !a.WholePrompt {
		return b.Rows(name("attention"), a.Heads*a.HeadDim)
	}
	return b.If(a.first,
		func(g *onnx.Graph) []string { return []string{a.bothWays(g, qkv, scale)} },
		func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, name("attention"))} })[0]
}

// isFirst is true when the step's positions, equally many for all rows, are all that row 0 has.
func isFirst(b *graph.Builder, x, seqlens string) string {
	positions := b.Op("Shape", onnx.Attrs{"start": 1, "end": 2}, x)
	length := b.Op("Cast", onnx.Attrs{"to": int(onnx.I64)}, b.Op("Slice", nil, seqlens, b.I64s(0), b.I64s(1)))
	return b.Op("Equal", nil, positions, b.Op("Add", nil, length, b.I64s(1)))
}

// bothWays is attention without a mask among the positions of one row's first chunk.
// Reference: transformers PaliGemmaForConditionalGeneration (token_type_ids of a prompt are 0).
func (a attention) bothWays(g *onnx.Graph, qkv []string, scale float32) string {
	group := int64(a.Heads / a.KVHeads)
	kv, dim := int64(a.KVHeads), int64(a.HeadDim)
	rotated := func(x string, heads int) string {
		return g.ContribOp("RotaryEmbedding", onnx.Attrs{"num_heads": heads, "rotary_embedding_dim": a.HeadDim}, x, g.I64s(0),
			a.cos, a.sin)
	}
	// Heads that share keys lie beside each other: [1, S, kv heads, group, dim] → [1, kv heads, group·S, dim].
	q := g.Op("Reshape", nil, rotated(qkv[0], a.Heads), g.I64s(1, -1, kv, group, dim))
	q = g.Op("Reshape", nil, g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 3, 1, 4}}, q), g.I64s(1, kv, -1, dim))
	k := g.Op("Reshape", nil, rotated(qkv[1], a.KVHeads), g.I64s(1, -1, kv, dim))
	v := g.Op("Reshape", nil, qkv[2], g.I64s(1, -1, kv, dim))
	scores := g.Op("MatMul", nil, q, g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 3, 1}}, k))
	scores = g.Op("Mul", nil, scores, g.F32(scale))
	if a.Softcap > 0 {
		scores = g.Op("Mul", nil, g.Op("Tanh", nil, g.Op("Div", nil, scores, g.F32(a.Softcap))), g.F32(a.Softcap))
	}
	out := g.Op("MatMul", nil, g.Op("Softmax", onnx.Attrs{"axis": -1}, scores),
		g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, v))
	out = g.Op("Reshape", nil, out, g.I64s(1, kv, group, -1, dim))
	out = g.Op("Transpose", onnx.Attrs{"perm": []int{0, 3, 1, 2, 4}}, out)
	return g.Op("Reshape", nil, out, g.I64s(1, -1, int64(a.Heads*a.HeadDim)))
}
