package exporttest

import (
	"cmp"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/onnx"
)

// decoder writes the text model with keys and values that come in and go out longer.
// Reference: transformers LlamaForCausalLM, Qwen2ForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, causal throughout.
func (s Source) decoder(n *net) {
	c := s.Decoder
	x := n.Input("inputs_embeds", onnx.F32, "batch_size", "sequence_length", c.Hidden)
	a := attention{Source: s, net: n}
	a.mask = n.Input("attention_mask", onnx.I64, "batch_size", "total_sequence_length")
	length := n.size(x, 1)
	past := n.Op("Sub", nil, n.size(a.mask, 1), length)
	positions := n.Op("Unsqueeze", nil, n.Op("Add", nil, n.span(length), past), n.I64s(0))
	switch {
	case n.options.Sections != nil:
		positions = n.Input("position_ids", onnx.I64, 3, "batch_size", "sequence_length")
	case !n.options.ShapePositions && !n.options.GroupQuery:
		positions = n.Op("Sub", nil, n.Input("position_ids", onnx.I64, "batch_size", "sequence_length"),
			n.I64s(int64(n.options.FirstPosition)))
	}
	if n.options.CacheBranch {
		a.branch = n.Input("use_cache_branch", onnx.Bool, 1)
	}
	keep := ""
	if n.options.KeepLogits {
		keep = n.Input("num_logits_to_keep", onnx.I64)
	}
	a.positions(length, past, positions)
	unit := float32(0)
	if c.UnitNorms {
		unit = 1
	}
	norm := func(x, name string) string { return n.rmsNorm(x, name, c.Hidden, c.Eps, unit) }
	for i := range c.Layers {
		p := fmt.Sprintf("text.layers.%d.", i)
		o := n.linear(a.layer(norm(x, p+"input_layernorm"), i, p), p+"self_attn.o_proj", c.Heads*c.HeadDim, c.Hidden, c.OBias)
		before := p + "post_attention_layernorm"
		if c.SandwichNorms {
			o, before = norm(o, before), p+"pre_feedforward_layernorm"
		}
		x = n.Op("Add", nil, x, o)
		y := norm(x, before)
		gate := n.activation(c.Activation, n.linear(y, p+"mlp.gate_proj", c.Hidden, c.Intermediate, c.MLPBias))
		y = n.Op("Mul", nil, gate, n.linear(y, p+"mlp.up_proj", c.Hidden, c.Intermediate, c.MLPBias))
		y = n.linear(y, p+"mlp.down_proj", c.Intermediate, c.Hidden, c.MLPBias)
		if c.SandwichNorms {
			y = norm(y, p+"post_feedforward_layernorm")
		}
		x = n.Op("Add", nil, x, y)
	}
	x = norm(x, "text.norm")
	kept := any("sequence_length")
	if keep != "" {
		kept = "num_logits"
		from := n.Op("Unsqueeze", nil, n.Op("Neg", nil, keep), n.I64s(0)) // 0 is all
		x = n.Op("Slice", nil, x, from, n.I64s(math.MaxInt64), n.I64s(1))
	}
	head := "lm_head"
	if c.Tied {
		head = "text.embed_tokens"
	}
	logits, t := n.linear(x, head, c.Hidden, c.Vocab, false), onnx.F32
	if n.options.Half {
		logits, t = n.cast(logits, onnx.F16), onnx.F16
	}
	n.result(logits, "logits", t, "batch_size", kept, c.Vocab)
}

// attention is what the layers of one graph share.
type attention struct {
	Source
	*net
	mask, branch string
	seen         string // [b, 1, s, t]: which keys a query may see
	near         string // [s, t]: how far a key lies before a query
	cos, sin     string // [b, 1, s, dim/2]
	seqlens      string // GroupQuery's
	total        string
}

// positions prepares what depends on them; length is s and past t - s.
func (a *attention) positions(length, past, positions string) {
	n, c := a.net, a.Decoder
	half := c.HeadDim / 2
	cos, sin := make([]float32, c.MaxLen*half), make([]float32, c.MaxLen*half)
	for pos := range c.MaxLen {
		for i := range half {
			s, co := math.Sincos(float64(pos) * math.Pow(c.Rope.Theta, -float64(2*i)/float64(c.HeadDim)))
			cos[pos*half+i], sin[pos*half+i] = float32(co), float32(s)
		}
	}
	table := func(name string, v []float32) string { return n.constant(name, []int{c.MaxLen, half}, v) }
	if n.options.GroupQuery {
		count := n.cast(n.Op("ReduceSum", onnx.Attrs{"keepdims": 0}, a.mask, n.I64s(1)), onnx.I32)
		a.seqlens = n.Op("Sub", nil, count, n.cast(n.I64s(1), onnx.I32))
		a.total = n.cast(n.size(a.mask, 1), onnx.I32)
		a.cos, a.sin = table("cos", cos), table("sin", sin)
		return
	}
	at := func(table string) string {
		x := n.Op("Gather", onnx.Attrs{"axis": 0}, table, positions)
		if n.options.Sections != nil { // [3, b, s, dim/2]
			x = a.sections(x)
		}
		return n.Op("Unsqueeze", nil, x, n.I64s(1))
	}
	a.cos, a.sin = at(table("cos", cos)), at(table("sin", sin))
	queries := n.Op("Unsqueeze", nil, n.Op("Add", nil, n.span(length), past), n.I64s(1))
	a.near = n.Op("Sub", nil, queries, n.span(n.Op("Add", nil, length, past)))
	causal := n.Op("GreaterOrEqual", nil, a.near, n.I64s(0))
	a.seen = n.Op("And", nil, causal, n.cast(n.Op("Unsqueeze", nil, a.mask, n.I64s(1, 2)), onnx.Bool))
}

// sections takes the first frequencies from the places in time, the next from those in height, the last from those in
// width. Reference: transformers apply_multimodal_rotary_pos_emb.
func (a *attention) sections(x string) string {
	n := a.net
	sizes := make([]int64, len(n.options.Sections))
	for i, s := range n.options.Sections {
		sizes[i] = int64(s)
	}
	parts := n.OpN("", "Split", onnx.Attrs{"axis": -1}, []string{x, n.I64s(sizes...)}, len(sizes))
	for i := range parts {
		parts[i] = n.Op("Gather", onnx.Attrs{"axis": 0}, parts[i], n.Op("Squeeze", nil, n.I64s(int64(i))))
	}
	return n.Op("Concat", onnx.Attrs{"axis": -1}, parts...)
}

// layer is the attention of layer i over x.
func (a *attention) layer(x string, i int, p string) string {
	n, c := a.net, a.Decoder
	kind := onnx.F32
	if n.options.Half {
		kind = onnx.F16
	}
	name := func(stem, part string) string { return fmt.Sprintf("%s.%d.%s", stem, i, part) }
	for _, part := range []string{"key", "value"} {
		n.Input(name("past_key_values", part), kind, "batch_size", c.KVHeads, "past_sequence_length", c.HeadDim)
		n.Output(name("present", part), kind, "batch_size", c.KVHeads, "total_sequence_length", c.HeadDim)
	}
	q := n.linear(x, p+"self_attn.q_proj", c.Hidden, c.Heads*c.HeadDim, c.QKVBias)
	k := n.linear(x, p+"self_attn.k_proj", c.Hidden, c.KVHeads*c.HeadDim, c.QKVBias)
	v := n.linear(x, p+"self_attn.v_proj", c.Hidden, c.KVHeads*c.HeadDim, c.QKVBias)
	scale := cmp.Or(c.AttentionScale, float32(1/math.Sqrt(float64(c.HeadDim))))
	if n.options.GroupQuery {
		out := fmt.Sprintf("attention.%d", i)
		n.Node(onnx.Contrib, "GroupQueryAttention",
			onnx.Attrs{"num_heads": c.Heads, "kv_num_heads": c.KVHeads, "do_rotary": 1, "scale": scale},
			[]string{q, k, v, name("past_key_values", "key"), name("past_key_values", "value"), a.seqlens, a.total, a.cos,
				a.sin},
			[]string{out, name("present", "key"), name("present", "value")})
		return out
	}
	k = a.extended(a.rotated(n.heads(k, c.KVHeads, c.HeadDim)), name("past_key_values", "key"), name("present", "key"),
		kind)
	v = a.extended(n.heads(v, c.KVHeads, c.HeadDim), name("past_key_values", "value"), name("present", "value"), kind)
	scores := n.scores(a.rotated(n.heads(q, c.Heads, c.HeadDim)), a.repeated(k), scale)
	if c.Softcap > 0 {
		scores = n.Op("Mul", nil, n.Op("Tanh", nil, n.Op("Div", nil, scores, n.F32(c.Softcap))), n.F32(c.Softcap))
	}
	seen := a.seen
	if c.Windows != nil && c.Windows[i] > 0 {
		seen = n.Op("And", nil, seen, n.Op("Less", nil, a.near, n.I64s(int64(c.Windows[i]))))
	}
	scores = n.Op("Where", nil, seen, scores, n.F32(-math.MaxFloat32))
	return n.joined(n.attend(scores, a.repeated(v)), c.Heads*c.HeadDim)
}

// rotated turns the halves of each head by its position.
func (a *attention) rotated(x string) string {
	n := a.net
	half := int64(a.Decoder.HeadDim / 2)
	parts := n.OpN("", "Split", onnx.Attrs{"axis": -1}, []string{x, n.I64s(half, half)}, 2)
	mul := func(x, y string) string { return n.Op("Mul", nil, x, y) }
	return n.Op("Concat", onnx.Attrs{"axis": -1},
		n.Op("Sub", nil, mul(parts[0], a.cos), mul(parts[1], a.sin)),
		n.Op("Add", nil, mul(parts[1], a.cos), mul(parts[0], a.sin)))
}

// extended puts x behind its past, gives that as present and returns it as float32.
func (a *attention) extended(x, past, present string, kind onnx.DType) string {
	n := a.net
	if kind != onnx.F32 {
		x = n.cast(x, kind)
	}
	join := func(g *onnx.Graph) []string {
		return []string{g.Op("Concat", onnx.Attrs{"axis": 2}, past, x)}
	}
	whole := ""
	if a.branch != "" {
		whole = n.If(a.branch, join, func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, x)} })[0]
	} else {
		whole = join(n.Graph)[0]
	}
	n.Node("", "Identity", nil, []string{whole}, []string{present})
	if kind != onnx.F32 {
		return n.cast(whole, onnx.F32)
	}
	return whole
}

// repeated gives each query head its keys or values.
func (a *attention) repeated(x string) string {
	n, c := a.net, a.Decoder
	group := int64(c.Heads / c.KVHeads)
	if group == 1 {
		return x
	}
	x = n.Op("Expand", nil, n.Op("Unsqueeze", nil, x, n.I64s(2)), n.I64s(1, 1, group, 1, 1))
	return n.Op("Reshape", nil, x, n.I64s(0, int64(c.Heads), -1, int64(c.HeadDim)))
}
