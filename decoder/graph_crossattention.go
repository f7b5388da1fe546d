package decoder

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// crossGraph builds GPT-2 with cross-attention, with the inputs and outputs of Graph. A sequence is EncoderStates
// positions of encoder states, then text; its first chunk holds all the states and at least one id. Self-attention does
// not see the states, and its caches start at the first id. The caches of cross-attention, the second pair of a layer,
// hold what the states project to, and nothing after.
// Reference: transformers GPT2LMHeadModel with add_cross_attention.
func (c Config) crossGraph(w *graph.Weights, p graph.Precision) (*graph.Builder, error) {
	b := graph.NewBuilder("decoder", w, p)
	x := b.Input("inputs_embeds", onnx.F32, "B", "S", c.Hidden)
	seqlens := b.Input("seqlens_k", onnx.I32, "B")
	total := b.Input("total_sequence_length", onnx.I32, 1)
	sample := b.Input("sample_rows", onnx.I64, "K")
	b.Output("logits", onnx.F32, "K", c.Vocab)

	i32 := func(n int) string { return b.Op("Cast", onnx.Attrs{"to": int(onnx.I32)}, b.I64s(int64(n))) }
	first := isFirst(b, x, seqlens)
	skip := b.Op("Where", nil, first, b.I64s(int64(c.EncoderStates)), b.I64s(0))
	cross := crossAttention{
		Config: c, first: first,
		states:  b.Op("Slice", nil, x, b.I64s(0), skip, b.I64s(1)),
		seqlens: b.Op("Add", nil, b.Op("Mul", nil, seqlens, i32(0)), i32(c.EncoderStates-1)),
		total:   i32(c.EncoderStates),
	}
	x = b.Op("Slice", nil, x, skip, b.I64s(math.MaxInt64), b.I64s(1))
	seqlens, total = b.Op("Sub", nil, seqlens, i32(c.EncoderStates)), b.Op("Sub", nil, total, i32(c.EncoderStates))
	x = b.Op("Add", nil, x, c.learnedPositions(b, x, seqlens))
	for i := range c.Layers {
		p := fmt.Sprintf("text.h.%d.", i)
		n := b.LayerNorm(x, p+"ln_1", c.Hidden, c.Eps)
		a := c.cached(b, 2*i, []string{conv1D(b, n, p+"attn.c_attn", c.Hidden, 3*c.Hidden), "", ""}, seqlens, total)
		x = b.Op("Add", nil, x, conv1D(b, a, p+"attn.c_proj", c.Hidden, c.Hidden))
		n = b.LayerNorm(x, p+"ln_cross_attn", c.Hidden, c.Eps)
		a = cross.layer(b, 2*i+1, n, p+"crossattention.")
		x = b.Op("Add", nil, x, conv1D(b, a, p+"crossattention.c_proj", c.Hidden, c.Hidden))
		n = b.LayerNorm(x, p+"ln_2", c.Hidden, c.Eps)
		m := b.Activation(c.Activation, conv1D(b, n, p+"mlp.c_fc", c.Hidden, c.Intermediate))
		x = b.Op("Add", nil, x, conv1D(b, m, p+"mlp.c_proj", c.Intermediate, c.Hidden))
	}
	x = b.LayerNorm(x, "text.ln_f", c.Hidden, c.Eps)
	// A row of the first chunk counts the states as well. They have no logits; asked for, they get the first id's.
	row := b.Op("Max", nil, b.Op("Sub", nil, sample, skip), b.I64s(0))
	c.logits(b, x, row)
	return b, b.Err()
}

// conv1D is y = x·W + b for the weights of transformers' Conv1D, [in, out]. It is float32 in every precision.
func conv1D(b *graph.Builder, x, prefix string, in, out int) string {
	return b.Op("Add", nil, b.Op("MatMul", nil, x, b.Weight(prefix+".weight", in, out)), b.Weight(prefix+".bias", out))
}

// learnedPositions are the embeddings of the positions of x [B, T, hidden] in their rows, the last of which seqlens
// gives.
func (c Config) learnedPositions(b *graph.Builder, x, seqlens string) string {
	count := b.Op("Squeeze", nil, b.Op("Shape", onnx.Attrs{"start": 1, "end": 2}, x))
	zero, one := b.Op("Squeeze", nil, b.I64s(0)), b.Op("Squeeze", nil, b.I64s(1))
	past := b.Op("Sub", nil, b.Op("Add", nil, b.Op("Cast", onnx.Attrs{"to": int(onnx.I64)}, seqlens), one), count)
	at := b.Op("Add", nil, b.Op("Unsqueeze", nil, past, b.I64s(1)), b.Op("Range", nil, zero, count, one))
	return b.Op("Gather", onnx.Attrs{"axis": 0}, b.Weight("text.wpe.weight", c.MaxLen-c.EncoderStates, c.Hidden), at)
}

// cached is attention without rotation over pair i of the caches, which it adds keys and values to.
func (c Config) cached(b *graph.Builder, i int, qkv []string, seqlens, total string) string {
	name := func(stem string) string { return fmt.Sprintf("%s.%d", stem, i) }
	dims := []any{"B", c.KVHeads, "P", c.HeadDim}
	b.Input(name("past_key"), onnx.F32, dims...)
	b.Input(name("past_value"), onnx.F32, dims...)
	b.Node(onnx.Contrib, "GroupQueryAttention", onnx.Attrs{
		"num_heads": c.Heads, "kv_num_heads": c.KVHeads, "scale": float32(1 / math.Sqrt(float64(c.HeadDim))),
	}, append(qkv, name("past_key"), name("past_value"), seqlens, total),
		[]string{name("attention"), name("present_key"), name("present_value")})
	b.Output(name("present_key"), onnx.F32, dims...)
	b.Output(name("present_value"), onnx.F32, dims...)
	return name("attention")
}

// crossAttention builds the attention of every layer to the encoder's states.
type crossAttention struct {
	Config
	first          string // true in the step that holds the states
	states         string // [1, EncoderStates, hidden] in that step, else [B, 0, hidden]
	seqlens, total string // of the caches after the step: always the states
}

// layer attends from x [B, T, hidden] to what pair i of the caches holds. Only the first step has keys and values to
// write. The operator that reads the caches cannot do without: later steps write the last state's again.
func (a crossAttention) layer(b *graph.Builder, i int, x, prefix string) string {
	q := conv1D(b, x, prefix+"q_attn", a.Hidden, a.Hidden)
	w, bias := b.Weight(prefix+"c_attn.weight", a.Hidden, 2*a.Hidden), b.Weight(prefix+"c_attn.bias", 2*a.Hidden)
	half, last, end := int64(a.Hidden), int64(a.EncoderStates-1), int64(a.EncoderStates)
	qkv := b.If(a.first,
		func(g *onnx.Graph) []string {
			kv := g.Op("Add", nil, g.Op("MatMul", nil, a.states, w), bias)
			parts := g.OpN("", "Split", onnx.Attrs{"axis": -1}, []string{kv, g.I64s(half, half)}, 2)
			// As many queries as keys; the answer is not read.
			return []string{g.Op("Identity", nil, parts[0]), parts[0], parts[1]}
		},
		func(g *onnx.Graph) []string {
			stored := func(cache string) string {
				row := g.Op("Slice", nil, fmt.Sprintf("%s.%d", cache, i), g.I64s(last), g.I64s(end), g.I64s(2))
				return g.Op("Reshape", nil, row, g.I64s(0, 1, half)) // [B, heads, 1, dim], whose order is the same
			}
			return []string{g.Op("Identity", nil, q), stored("past_key"), stored("past_value")}
		})
	cached := a.cached(b, i, qkv, a.seqlens, a.total)
	return b.If(a.first,
		func(g *onnx.Graph) []string {
			// Every id sees every state: the cache's operator would hide the later ones from the earlier.
			return []string{g.ContribOp("MultiHeadAttention", onnx.Attrs{"num_heads": a.Heads}, q, qkv[1], qkv[2])}
		},
		func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, cached)} })[0]
}
