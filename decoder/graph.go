package decoder

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// Config holds the values of a Llama-style decoder.
type Config struct {
	Layers, Hidden, Intermediate int
	Heads, KVHeads, HeadDim      int
	// Vocab is the number of rows of the embedding table and of the head.
	Vocab int
	// MaxLen is the number of positions of one sequence (max_position_embeddings).
	MaxLen     int
	RopeTheta  float64
	Eps        float32
	Activation string
	// QKVBias, OBias and MLPBias say which projections carry a bias; Tied that the head is the embedding table.
	QKVBias, OBias, MLPBias, Tied bool
}

// Validate refuses values that no graph can be built from, naming the field.
func (c Config) Validate() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"num_hidden_layers", c.Layers}, {"hidden_size", c.Hidden}, {"intermediate_size", c.Intermediate},
		{"num_attention_heads", c.Heads}, {"num_key_value_heads", c.KVHeads}, {"head_dim", c.HeadDim},
		{"vocab_size", c.Vocab}, {"max_position_embeddings", c.MaxLen},
	} {
		if f.value <= 0 || f.value > 1<<24 {
			return fmt.Errorf("text_config.%s is %d, want 1 to %d", f.name, f.value, 1<<24)
		}
	}
	if c.Heads%c.KVHeads != 0 {
		return fmt.Errorf("text_config.num_attention_heads %d is no multiple of num_key_value_heads %d", c.Heads, c.KVHeads)
	}
	if c.HeadDim%16 != 0 {
		// ONNX Runtime's CPU kernel rotates 16 values at a time.
		return fmt.Errorf("text_config.head_dim %d is no multiple of 16, which rotary attention needs here", c.HeadDim)
	}
	if c.RopeTheta <= 1 {
		return fmt.Errorf("text_config.rope_theta is %g, want more than 1", c.RopeTheta)
	}
	return graph.CheckActivation("text_config.hidden_act", c.Activation)
}

// KVBytesPerToken is the KV cache that one position takes over all layers, in bytes (float32).
func (c Config) KVBytesPerToken() int64 {
	return int64(c.Layers) * 2 * int64(c.KVHeads) * int64(c.HeadDim) * 4
}

// Graph builds the decoder's graph. Inputs, in order: inputs_embeds [B,S,hidden], seqlens_k [B] (length after the step − 1),
// total_sequence_length [1], sample_rows [K] (indices into the B·S positions that want logits), then per layer
// past key and value [B, kv heads, max len, head dim]. Outputs: logits [K, vocab], then per layer present key and
// value, which are bound to the same memory as the past so that the step writes in place.
// Reference: transformers LlamaForCausalLM.
func (c Config) Graph(w *graph.Weights, p graph.Precision) (*graph.Builder, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b := graph.NewBuilder("decoder", w, p)
	x := b.Input("inputs_embeds", onnx.F32, "B", "S", c.Hidden)
	seqlens := b.Input("seqlens_k", onnx.I32, "B")
	total := b.Input("total_sequence_length", onnx.I32, 1)
	sample := b.Input("sample_rows", onnx.I64, "K")
	cos, sin := c.rotary(b)

	residual, n := x, b.RMSNorm(x, "text.layers.0.input_layernorm", c.Hidden, c.Eps)
	b.Output("logits", onnx.F32, "K", c.Vocab)
	for i := range c.Layers {
		p := fmt.Sprintf("text.layers.%d.", i)
		qkv := b.JointLinear(n, c.Hidden, c.QKVBias,
			graph.Out{Prefix: p + "self_attn.q_proj", Dim: c.Heads * c.HeadDim},
			graph.Out{Prefix: p + "self_attn.k_proj", Dim: c.KVHeads * c.HeadDim},
			graph.Out{Prefix: p + "self_attn.v_proj", Dim: c.KVHeads * c.HeadDim})
		a := c.attention(b, i, qkv, seqlens, total, cos, sin)
		o := b.Linear(a, p+"self_attn.o_proj", c.Heads*c.HeadDim, c.Hidden, c.OBias)
		n, residual = b.AddRMSNorm(o, residual, p+"post_attention_layernorm", c.Hidden, c.Eps)
		act := b.Gated(n, c.Hidden, c.MLPBias, c.Activation,
			graph.Out{Prefix: p + "mlp.gate_proj", Dim: c.Intermediate}, graph.Out{Prefix: p + "mlp.up_proj", Dim: c.Intermediate})
		down := b.Linear(act, p+"mlp.down_proj", c.Intermediate, c.Hidden, c.MLPBias)
		next := "text.norm"
		if i+1 < c.Layers {
			next = fmt.Sprintf("text.layers.%d.input_layernorm", i+1)
		}
		n, residual = b.AddRMSNorm(down, residual, next, c.Hidden, c.Eps)
	}
	rows := b.Op("Reshape", nil, n, b.I64s(-1, int64(c.Hidden)))
	rows = b.Op("Gather", onnx.Attrs{"axis": 0}, rows, sample)
	head := "lm_head"
	if c.Tied {
		head = "text.embed_tokens"
	}
	b.Name(b.Linear(rows, head, c.Hidden, c.Vocab, false), "logits")
	return b, b.Err()
}

// attention adds grouped-query attention of layer i, which rotates q and k, writes k and v into the cache in
// place and attends to everything up to each row's own length. qkv is three values, or one that holds all three.
func (c Config) attention(b *graph.Builder, i int, qkv []string, seqlens, total, cos, sin string) string {
	if len(qkv) == 1 {
		qkv = []string{qkv[0], "", ""}
	}
	name := func(stem string) string { return fmt.Sprintf("%s.%d", stem, i) }
	dims := []any{"B", c.KVHeads, "P", c.HeadDim}
	b.Input(name("past_key"), onnx.F32, dims...)
	b.Input(name("past_value"), onnx.F32, dims...)
	in := append(qkv, name("past_key"), name("past_value"), seqlens)
	out := []string{name("attention"), name("present_key"), name("present_value")}
	scale := float32(1 / math.Sqrt(float64(c.HeadDim)))
	if graph.HasKernels {
		b.Node(onnx.Own, "CachedAttention", onnx.Attrs{"heads": c.Heads, "kv_heads": c.KVHeads, "scale": scale}, append(in, cos, sin), out)
	} else {
		b.Node(onnx.Contrib, "GroupQueryAttention", onnx.Attrs{
			"num_heads": c.Heads, "kv_num_heads": c.KVHeads, "do_rotary": 1, "rotary_interleaved": 0, "scale": scale,
		}, append(in, total, cos, sin), out)
	}
	b.Output(name("present_key"), onnx.F32, dims...)
	b.Output(name("present_value"), onnx.F32, dims...)
	return name("attention")
}

// rotary adds the cosine and sine tables [MaxLen, HeadDim/2] of rotate-half position embeddings.
func (c Config) rotary(b *graph.Builder) (cos, sin string) {
	half := c.HeadDim / 2
	cs, sn := make([]float32, c.MaxLen*half), make([]float32, c.MaxLen*half)
	for i := range half {
		freq := math.Pow(c.RopeTheta, -float64(2*i)/float64(c.HeadDim))
		for pos := range c.MaxLen {
			s, co := math.Sincos(float64(pos) * freq)
			cs[pos*half+i], sn[pos*half+i] = float32(co), float32(s)
		}
	}
	return b.F32s("cos", []int{c.MaxLen, half}, cs), b.F32s("sin", []int{c.MaxLen, half}, sn)
}
