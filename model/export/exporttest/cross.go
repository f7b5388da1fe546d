package exporttest

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/onnx"
)

// same writes an encoder that gives what it takes.
func (s Source) same(n *net) {
	x := n.Input("inputs_embeds", onnx.F32, "batch_size", "encoder_sequence_length", s.Decoder.Hidden)
	mask := n.Input("attention_mask", onnx.I64, "batch_size", "encoder_sequence_length")
	x = n.Op("Mul", nil, x, n.Op("Unsqueeze", nil, n.cast(mask, onnx.F32), n.I64s(2)))
	n.result(x, "last_hidden_state", onnx.F32, "batch_size", "encoder_sequence_length", s.Decoder.Hidden)
}

// crossDecoder writes GPT-2 with cross-attention.
// Reference: transformers GPT2LMHeadModel with add_cross_attention.
func (s Source) crossDecoder(n *net) {
	c := s.Decoder
	var x string
	if n.options.CrossCaches {
		x = n.Input("inputs_embeds", onnx.F32, "batch_size", "sequence_length", c.Hidden)
	} else {
		x = n.Op("Gather", onnx.Attrs{"axis": 0}, n.weight("text.embed_tokens.weight", c.Vocab, c.Hidden),
			n.Input("input_ids", onnx.I64, "batch_size", "sequence_length"))
	}
	a := crossAttention{Source: s, net: n, dim: c.Hidden / c.Heads}
	a.states = n.Input("encoder_hidden_states", onnx.F32, "batch_size", "encoder_sequence_length", c.Hidden)
	if n.options.CrossCaches {
		a.mask = n.Input("encoder_attention_mask", onnx.I64, "batch_size", "encoder_sequence_length")
	}
	a.branch = n.Input("use_cache_branch", onnx.Bool, 1)
	past := []any{"batch_size", c.Heads, "past_decoder_sequence_length", a.dim}
	own := "past_key_values.%d.%s"
	if n.options.CrossCaches {
		own = "past_key_values.%d.decoder.%s"
	}
	a.own = own
	first := n.Input(fmt.Sprintf(own, 0, "key"), onnx.F32, past...)
	length, before := n.size(x, 1), n.size(first, 2)
	before = n.Op("Mul", nil, before, n.cast(a.branch, onnx.I64))
	positions := n.Op("Add", nil, n.span(length), before)
	x = n.Op("Add", nil, x, n.Op("Gather", onnx.Attrs{"axis": 0},
		n.weight("text.wpe.weight", c.MaxLen-c.EncoderStates, c.Hidden), positions))
	a.seen = n.Op("GreaterOrEqual", nil, n.Op("Unsqueeze", nil, positions, n.I64s(1)),
		n.span(n.Op("Add", nil, length, before)))
	for i := range c.Layers {
		p := fmt.Sprintf("text.h.%d.", i)
		if i > 0 {
			n.Input(fmt.Sprintf(own, i, "key"), onnx.F32, past...)
		}
		n.Input(fmt.Sprintf(own, i, "value"), onnx.F32, past...)
		y := a.self(n.layerNorm(x, p+"ln_1", c.Hidden, c.Eps), i, p+"attn.")
		x = n.Op("Add", nil, x, a.conv1D(y, p+"attn.c_proj", c.Hidden, c.Hidden))
		y = a.cross(n.layerNorm(x, p+"ln_cross_attn", c.Hidden, c.Eps), i, p+"crossattention.")
		x = n.Op("Add", nil, x, a.conv1D(y, p+"crossattention.c_proj", c.Hidden, c.Hidden))
		y = a.conv1D(n.layerNorm(x, p+"ln_2", c.Hidden, c.Eps), p+"mlp.c_fc", c.Hidden, c.Intermediate)
		x = n.Op("Add", nil, x, a.conv1D(n.activation(c.Activation, y), p+"mlp.c_proj", c.Intermediate, c.Hidden))
	}
	x = n.layerNorm(x, "text.ln_f", c.Hidden, c.Eps)
	head := "lm_head"
	if c.Tied {
		head = "text.embed_tokens"
	}
	n.result(n.linear(x, head, c.Hidden, c.Vocab, false), "logits", onnx.F32, "batch_size", "sequence_length", c.Vocab)
}

// crossAttention is what the layers of an encoder-decoder share.
type crossAttention struct {
	Source
	*net
	dim                  int
	states, mask, branch string
	own                  string // the names of self-attention's caches
	seen                 string // [s, t]
}

// conv1D is y = x·W + b with W as transformers' Conv1D stores it.
func (a crossAttention) conv1D(x, prefix string, in, out int) string {
	return a.Op("Add", nil, a.Op("MatMul", nil, x, a.weight(prefix+".weight", in, out)), a.weight(prefix+".bias", out))
}

func (a crossAttention) split(x string, n int) []string {
	sizes := make([]int64, n)
	for i := range sizes {
		sizes[i] = int64(a.Decoder.Hidden)
	}
	parts := a.OpN("", "Split", onnx.Attrs{"axis": -1}, []string{x, a.I64s(sizes...)}, n)
	for i := range parts {
		parts[i] = a.heads(parts[i], a.Decoder.Heads, a.dim)
	}
	return parts
}

// present gives x, or other where the step is not the first, as an output.
func (a crossAttention) present(past string, then, first func(g *onnx.Graph) string) string {
	x := a.If(a.branch, func(g *onnx.Graph) []string { return []string{then(g)} },
		func(g *onnx.Graph) []string { return []string{first(g)} })[0]
	name := "present" + past[len("past_key_values"):]
	a.result(x, name, onnx.F32, "batch_size", a.Decoder.Heads, name+"_length", a.dim)
	return x
}

func (a crossAttention) self(x string, i int, p string) string {
	qkv := a.split(a.conv1D(x, p+"c_attn", a.Decoder.Hidden, 3*a.Decoder.Hidden), 3)
	for j, part := range []string{"key", "value"} {
		past, now := fmt.Sprintf(a.own, i, part), qkv[j+1]
		qkv[j+1] = a.present(past,
			func(g *onnx.Graph) string { return g.Op("Concat", onnx.Attrs{"axis": 2}, past, now) },
			func(g *onnx.Graph) string { return g.Op("Identity", nil, now) })
	}
	scores := a.scores(qkv[0], qkv[1], float32(1/math.Sqrt(float64(a.dim))))
	scores = a.Op("Where", nil, a.seen, scores, a.F32(-math.MaxFloat32))
	return a.joined(a.attend(scores, qkv[2]), a.Decoder.Hidden)
}

func (a crossAttention) cross(x string, i int, p string) string {
	hidden := a.Decoder.Hidden
	q := a.heads(a.conv1D(x, p+"q_attn", hidden, hidden), a.Decoder.Heads, a.dim)
	kv := a.split(a.conv1D(a.states, p+"c_attn", hidden, 2*hidden), 2)
	if a.options.CrossCaches {
		for j, part := range []string{"key", "value"} {
			past := fmt.Sprintf("past_key_values.%d.encoder.%s", i, part)
			a.Input(past, onnx.F32, "batch_size", a.Decoder.Heads, "past_encoder_sequence_length", a.dim)
			now := kv[j]
			kv[j] = a.If(a.branch,
				func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, past)} },
				func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, now)} })[0]
			// A later step gives nothing of the kind, as merged exports do.
			a.present(past,
				func(g *onnx.Graph) string { return g.Op("Slice", nil, past, g.I64s(0), g.I64s(0), g.I64s(2)) },
				func(g *onnx.Graph) string { return g.Op("Identity", nil, now) })
		}
	}
	scores := a.scores(q, kv[0], float32(1/math.Sqrt(float64(a.dim))))
	if a.mask != "" {
		scores = a.Op("Where", nil, a.cast(a.Op("Unsqueeze", nil, a.mask, a.I64s(1, 2)), onnx.Bool), scores,
			a.F32(-math.MaxFloat32))
	}
	return a.joined(a.attend(scores, kv[1]), hidden)
}
