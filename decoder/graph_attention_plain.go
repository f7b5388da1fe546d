package decoder

import (
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// plainly adds ONNX Runtime's attention, for providers without mmserve's own. It returns q, k and v as they went in.
func (a attention) plainly(b *graph.Builder, i int, qkv []string) []string {
	attrs := onnx.Attrs{
		"num_heads": a.Heads, "kv_num_heads": a.KVHeads, "do_rotary": 1, "rotary_interleaved": 0, "scale": a.scale(),
		"softcap": a.Softcap,
	}
	r := a.rotation(i)
	if a.explicit() {
		qkv = a.turned(b, i, qkv)
		attrs["do_rotary"], r = 0, rotation{}
	}
	if n := a.window(i); n > 0 {
		attrs["local_window_size"] = n
	}
	node := qkv
	if len(qkv) == 1 {
		node = []string{qkv[0], "", ""}
	}
	in, out := a.names(i)
	in = append(append(node[:3:3], in...), a.total)
	if r.cos != "" {
		in = append(in, r.cos, r.sin)
	}
	b.Node(onnx.Contrib, "GroupQueryAttention", attrs, in, out)
	return qkv
}

// turned gives q, k and v with what GroupQueryAttention does not do to q and k: the norm of each head, the rotation and
// the scaling by position.
func (a attention) turned(b *graph.Builder, i int, qkv []string) []string {
	norms := a.headNorms(b, i)
	q, k := a.heads(b, qkv[0], norms[0], a.rotation(i)), a.heads(b, qkv[1], norms[1], a.rotation(i))
	if a.factors != "" {
		q = b.Op("Mul", nil, q, a.factors)
	}
	flat := b.I64s(0, 0, -1)
	return []string{b.Op("Reshape", nil, q, flat), b.Op("Reshape", nil, k, flat), qkv[2]}
}

// heads is x [B, S, heads·dim] as [B, S, heads, dim], normalised by norm, "" for none, and rotated.
func (a attention) heads(b *graph.Builder, x, norm string, r rotation) string {
	x = b.Op("Reshape", nil, x, b.I64s(0, 0, -1, int64(a.HeadDim)))
	if norm != "" {
		x = b.Narrow(b.Op("SimplifiedLayerNormalization", onnx.Attrs{"axis": -1, "epsilon": a.Eps, "stash_type": 1},
			b.Wide(x), norm))
	}
	dim, half := int64(a.rotaryDim()), int64(a.rotaryDim()/2)
	split := func(x string, first, second int64) []string {
		return b.OpN("", "Split", onnx.Attrs{"axis": -1}, []string{x, b.I64s(first, second)}, 2)
	}
	var still []string
	if rest := int64(a.HeadDim) - dim; rest > 0 {
		parts := split(x, dim, rest)
		x, still = parts[0], parts[1:]
	}
	var parts []string
	if a.RopePairs {
		parts = split(b.Op("Reshape", nil, x, b.I64s(0, 0, 0, half, 2)), 1, 1)
		for i, p := range parts {
			parts[i] = b.Op("Squeeze", nil, p, b.I64s(-1))
		}
	} else {
		parts = split(x, half, half)
	}
	mul := func(x, y string) string { return b.Op("Mul", nil, x, y) }
	parts = []string{
		b.Op("Sub", nil, mul(parts[0], r.cos), mul(parts[1], r.sin)),
		b.Op("Add", nil, mul(parts[1], r.cos), mul(parts[0], r.sin)),
	}
	join := onnx.Attrs{"axis": -1}
	if a.RopePairs {
		for i, p := range parts {
			parts[i] = b.Op("Unsqueeze", nil, p, b.I64s(-1))
		}
		parts = []string{b.Op("Reshape", nil, b.Op("Concat", join, parts...), b.I64s(0, 0, 0, dim))}
	}
	return b.Op("Concat", join, append(parts, still...)...)
}

// atPositions turns what the layers rotate and scale by into that of a step's positions, [B, S, 1, …]: for turned.
// count is the number of positions of each row.
func (a *attention) atPositions(b *graph.Builder, count string) {
	a.at = a.positions(b, count)
	of := func(table string) string {
		if a.MRope == nil {
			table = b.Op("Gather", onnx.Attrs{"axis": 0}, table, a.at)
		}
		return b.Narrow(b.Op("Unsqueeze", nil, table, b.I64s(2)))
	}
	full, local := a.full, a.local
	a.full = rotation{of(full.cos), of(full.sin)}
	if a.local = a.full; local != full {
		a.local = rotation{of(local.cos), of(local.sin)}
	}
	if a.factors != "" {
		a.factors = b.Op("Unsqueeze", nil, of(a.factors), b.I64s(3))
	}
}

// positions are the numbers of a step's positions in their sequences, [B, S].
func (a attention) positions(b *graph.Builder, count string) string {
	one := b.Op("Squeeze", nil, b.I64s(1))
	last := b.Op("Cast", onnx.Attrs{"to": int(onnx.I64)}, a.seqlens)
	past := b.Op("Sub", nil, b.Op("Add", nil, last, one), count)
	return b.Op("Add", nil, b.Op("Unsqueeze", nil, past, b.I64s(1)),
		b.Op("Range", nil, b.Op("Squeeze", nil, b.I64s(0)), count, one))
}

// blocks is the attention of a step in which positions see others after their own, where ONNX Runtime's attention has
// left keys and values in layer i's cache; in other steps it is what that gave. q is turned.
// Reference: transformers Gemma3Model (token_type_ids of images).
func (a attention) blocks(b *graph.Builder, i int, q string) string {
	_, out := a.names(i)
	end := b.Op("Cast", onnx.Attrs{"to": int(onnx.I64)}, a.blockEnd)
	ahead := b.Op("Greater", nil, b.Op("ReduceMax", onnx.Attrs{"keepdims": 0}, b.Op("Sub", nil, end, a.at)),
		b.Op("Squeeze", nil, b.I64s(0)))
	return b.If(ahead,
		func(g *onnx.Graph) []string {
			total := g.Op("Cast", onnx.Attrs{"to": int(onnx.I64)}, a.total)
			seen := a.seen(g, i, end, total)
			stored := func(cache string) string {
				return g.Op("Slice", nil, cache, g.I64s(0), total, g.I64s(2))
			}
			return []string{a.masked(g, q, stored(out[1]), stored(out[2]), seen)}
		},
		func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, out[0])} })[0]
}

// seen tells which of a sequence's first total positions each of a step sees in layer i, [B, 1, 1, S, total].
func (a attention) seen(g *onnx.Graph, i int, end, total string) string {
	column := func(x string) string { return g.Op("Unsqueeze", nil, x, g.I64s(2)) }
	key := g.Op("Range", nil, g.Op("Squeeze", nil, g.I64s(0)), g.Op("Squeeze", nil, total),
		g.Op("Squeeze", nil, g.I64s(1)))
	seen := g.Op("LessOrEqual", nil, key, column(end))
	if n := a.window(i); n > 0 {
		near := g.Op("Greater", nil, key, column(g.Op("Sub", nil, a.at, g.I64s(int64(n)))))
		// A block starts at the first position of those that end with it.
		same := g.Op("Equal", nil, column(end), g.Op("Unsqueeze", nil, end, g.I64s(1)))
		start := g.Op("ReduceMin", onnx.Attrs{"keepdims": 0},
			g.Op("Where", nil, same, g.Op("Unsqueeze", nil, a.at, g.I64s(1)), total), g.I64s(2))
		block := g.Op("GreaterOrEqual", nil, key, column(start))
		seen = g.Op("And", nil, seen, g.Op("Or", nil, near, block))
	}
	return g.Op("Unsqueeze", nil, seen, g.I64s(1, 2))
}

// masked is attention of turned queries [B, S, heads·dim] over keys and values [B, kv heads, T, dim], of those that are
// seen.
func (a attention) masked(g *onnx.Graph, q, k, v, seen string) string {
	group, kv, dim := int64(a.Heads/a.KVHeads), int64(a.KVHeads), int64(a.HeadDim)
	q = g.Op("Reshape", nil, q, g.I64s(0, 0, kv, group, dim))
	q = g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 3, 1, 4}}, q)
	k = g.Op("Transpose", onnx.Attrs{"perm": []int{0, 1, 2, 4, 3}}, g.Op("Unsqueeze", nil, k, g.I64s(2)))
	scores := a.capped(g, g.Op("MatMul", nil, q, k))
	scores = g.Op("Where", nil, seen, scores, g.F32(float32(math.Inf(-1))))
	out := g.Op("MatMul", nil, g.Op("Softmax", onnx.Attrs{"axis": -1}, scores),
		g.Op("Unsqueeze", nil, v, g.I64s(2)))
	out = g.Op("Transpose", onnx.Attrs{"perm": []int{0, 3, 1, 2, 4}}, out)
	return g.Op("Reshape", nil, out, g.I64s(0, 0, int64(a.Heads)*dim))
}

// capped scales products of queries and keys, and bounds them.
func (a attention) capped(g *onnx.Graph, scores string) string {
	scores = g.Op("Mul", nil, scores, g.F32(a.scale()))
	if a.Softcap > 0 {
		scores = g.Op("Mul", nil, g.Op("Tanh", nil, g.Op("Div", nil, scores, g.F32(a.Softcap))), g.F32(a.Softcap))
	}
	return scores
}

// isFirst is true when the step's positions, equally many for all rows, are all that row 0 has.
func isFirst(b *graph.Builder, x, seqlens string) string {
	positions := b.Op("Shape", onnx.Attrs{"start": 1, "end": 2}, x)
	length := b.Op("Cast", onnx.Attrs{"to": int(onnx.I64)}, b.Op("Slice", nil, seqlens, b.I64s(0), b.I64s(1)))
	return b.Op("Equal", nil, positions, b.Op("Add", nil, length, b.I64s(1)))
}

// bothWays is attention of layer i without a mask among the positions of one row's first chunk.
// Reference: transformers PaliGemmaForConditionalGeneration (token_type_ids of a prompt are 0).
func (a attention) bothWays(g *onnx.Graph, i int, qkv []string) string {
	group := int64(a.Heads / a.KVHeads)
	kv, dim := int64(a.KVHeads), int64(a.HeadDim)
	rotated := func(x string, heads int) string {
		if a.explicit() {
			return x
		}
		r := a.rotation(i)
		return g.ContribOp("RotaryEmbedding", onnx.Attrs{"num_heads": heads, "rotary_embedding_dim": a.HeadDim}, x, g.I64s(0),
			r.cos, r.sin)
	}
	// Heads that share keys lie beside each other: [1, S, kv heads, group, dim] → [1, kv heads, group·S, dim].
	q := g.Op("Reshape", nil, rotated(qkv[0], a.Heads), g.I64s(1, -1, kv, group, dim))
	q = g.Op("Reshape", nil, g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 3, 1, 4}}, q), g.I64s(1, kv, -1, dim))
	k := g.Op("Reshape", nil, rotated(qkv[1], a.KVHeads), g.I64s(1, -1, kv, dim))
	v := g.Op("Reshape", nil, qkv[2], g.I64s(1, -1, kv, dim))
	scores := a.capped(g, g.Op("MatMul", nil, q, g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 3, 1}}, k)))
	out := g.Op("MatMul", nil, g.Op("Softmax", onnx.Attrs{"axis": -1}, scores),
		g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, v))
	out = g.Op("Reshape", nil, out, g.I64s(1, kv, group, -1, dim))
	out = g.Op("Transpose", onnx.Attrs{"perm": []int{0, 3, 1, 2, 4}}, out)
	return g.Op("Reshape", nil, out, g.I64s(1, -1, int64(a.Heads*a.HeadDim)))
}
