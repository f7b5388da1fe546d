package decoder

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// Config holds the values of a decoder; its flags say where Llama, Qwen2, Mistral, Gemma and Gemma 2 differ.
type Config struct {
	Layers, Hidden, Intermediate int
	Heads, KVHeads, HeadDim      int
	// Vocab is the number of rows of the embedding table and of the head.
	Vocab int
	// MaxLen is the number of positions of one sequence (max_position_embeddings).
	MaxLen     int
	Rope       Rope
	Eps        float32
	Activation string
	// QKVBias, OBias and MLPBias say which projections carry a bias; Tied that the head is the embedding table.
	QKVBias, OBias, MLPBias, Tied bool
	// UnitNorms have 1 + weight as the factor of an RMS norm; SandwichNorms normalise what attention and MLP give, too.
	UnitNorms, SandwichNorms bool
	// EmbedScale multiplies the embeddings of tokens, not those of patches; 0 is 1.
	EmbedScale float32
	// AttentionScale multiplies the products of queries and keys; 0 is 1/√HeadDim. Softcap bounds them to ±Softcap by
	// tanh; 0 leaves them.
	AttentionScale, Softcap float32
	// Windows are the positions, its own and those before, that each layer sees; 0 is all of them, nil all in every layer.
	Windows []int
	// WholePrompt makes the positions of a prompt see each other in both directions. Its first chunk, which starts at
	// position 0, must hold the whole prompt, and no other prompt may reuse a part of its keys and values.
	WholePrompt bool
	// EncoderStates makes it GPT-2 with cross-attention: the first EncoderStates positions of a sequence, where the
	// patch embeddings are, hold the states of the encoder, which text attends to. 0 for the other decoders.
	EncoderStates int
	// MRope, unless nil, has heads turn by places in three axes, those of an image's rows and columns.
	MRope *MRope
	// Deepstack is the number of first layers behind each of which features of an image are added at its positions. They
	// lie behind its patch embeddings: see PatchWidth.
	Deepstack int
	// ImageBlocks makes the positions of an image see each other in both directions. A chunk must hold all or none.
	ImageBlocks bool

	plain bool // built for a provider without mmserve's own operators
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
	if c.EncoderStates < 0 || c.EncoderStates >= c.MaxLen {
		return fmt.Errorf("the encoder gives %d states, want fewer than the %d positions", c.EncoderStates, c.MaxLen)
	}
	if err := c.validateImages(); err != nil {
		return err
	}
	if c.EncoderStates > 0 {
		if c.Heads*c.HeadDim != c.Hidden || c.HeadDim%8 != 0 {
			return fmt.Errorf("decoder.n_embd %d is no multiple of 8 × n_head %d", c.Hidden, c.Heads)
		}
		return graph.CheckActivation("decoder.activation_function", c.Activation)
	}
	if c.HeadDim%16 != 0 {
		// ONNX Runtime's CPU kernel rotates 16 values at a time.
		return fmt.Errorf("text_config.head_dim %d is no multiple of 16, which rotary attention needs here", c.HeadDim)
	}
	if err := c.Rope.validate(); err != nil {
		return err
	}
	if c.AttentionScale < 0 || c.Softcap < 0 || c.EmbedScale < 0 {
		return fmt.Errorf("text_config: attention scale %g, attn_logit_softcapping %g, embedding scale %g, want none below 0", c.AttentionScale, c.Softcap, c.EmbedScale)
	}
	if len(c.Windows) != 0 && len(c.Windows) != c.Layers {
		return fmt.Errorf("text_config.layer_types has %d layers, num_hidden_layers is %d", len(c.Windows), c.Layers)
	}
	return graph.CheckActivation("text_config.hidden_act", c.Activation)
}

// validateImages checks what concerns the positions of images.
func (c Config) validateImages() error {
	switch {
	case c.Deepstack < 0 || c.Deepstack > c.Layers:
		return fmt.Errorf("the tower gives features for %d layers (vision_config.deepstack_visual_indexes), the decoder has %d", c.Deepstack, c.Layers)
	case c.EncoderStates > 0 && (c.MRope != nil || c.Deepstack > 0 || c.ImageBlocks):
		return errors.New("a decoder with cross-attention has no images among its positions")
	case c.WholePrompt && c.ImageBlocks:
		return errors.New("attention both ways is that of the whole prompt or that of each image, not of both")
	case c.MRope != nil:
		return c.MRope.validate(c.rotaryDim() / 2)
	}
	return nil
}

// PatchWidth is the number of values that stand for a patch: its embedding and the features that Deepstack layers add,
// each of Hidden values, in this order.
func (c Config) PatchWidth() int { return c.Hidden * (1 + c.Deepstack) }

// caches is the number of pairs of a key and a value cache.
func (c Config) caches() int {
	if c.EncoderStates > 0 {
		return 2 * c.Layers
	}
	return c.Layers
}

// ShortestPrompt is the fewest positions that a sequence's first chunk may have.
func (c Config) ShortestPrompt() int { return c.EncoderStates + 1 }

// KVBytesPerToken is the KV cache that one position takes over all layers, in bytes (float32).
func (c Config) KVBytesPerToken() int64 {
	return int64(c.caches()) * 2 * int64(c.KVHeads) * int64(c.HeadDim) * 4
}

// Graph builds the decoder's graph. Inputs, in order: inputs_embeds [B,S,hidden], seqlens_k [B] (length after the step
// − 1), total_sequence_length [1], sample_rows [K] (indices into the B·S positions that want logits), then per layer
// past key and value [B, kv heads, max len, head dim]. Outputs: logits [K, vocab], then per layer present key and
// value, which are bound to the same memory as the past so that the step writes in place.
// Reference: transformers LlamaForCausalLM, Qwen2ForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM.
func (c Config) Graph(w *graph.Weights, p graph.Precision) (*graph.Builder, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.EncoderStates > 0 {
		return c.crossGraph(w, p)
	}
	b := graph.NewBuilder("decoder", w, p)
	b.UnitNorms = c.UnitNorms
	x := b.Input("inputs_embeds", onnx.F32, "B", "S", c.Hidden)
	seqlens := b.Input("seqlens_k", onnx.I32, "B")
	total := b.Input("total_sequence_length", onnx.I32, 1)
	sample := b.Input("sample_rows", onnx.I64, "K")
	cos, sin := c.rotary(b)
	attend := attention{Config: c, seqlens: seqlens, total: total, cos: cos, sin: sin}
	if c.WholePrompt {
		attend.first = isFirst(b, x, seqlens)
	}
	b.Output("logits", onnx.F32, "K", c.Vocab)
	c.logits(b, c.layers(b, attend, x), sample)
	return b, b.Err()
}

// layers adds all layers over x, which is float32, and returns the hidden states after the last norm.
func (c Config) layers(b *graph.Builder, attend attention, x string) string {
	residual, n := x, b.RMSNorm(x, "text.layers.0.input_layernorm", c.Hidden, c.Eps)
	for i := range c.Layers {
		p := fmt.Sprintf("text.layers.%d.", i)
		outs := []graph.Out{
			{Prefix: p + "self_attn.q_proj", Dim: c.Heads * c.HeadDim},
			{Prefix: p + "self_attn.k_proj", Dim: c.KVHeads * c.HeadDim},
			{Prefix: p + "self_attn.v_proj", Dim: c.KVHeads * c.HeadDim},
		}
		qkv := b.JointLinear(n, c.Hidden, c.QKVBias, outs...)
		if c.WholePrompt {
			qkv = b.Split(qkv, outs...)
		}
		a := attend.layer(b, i, qkv)
		o := b.Linear(a, p+"self_attn.o_proj", c.Heads*c.HeadDim, c.Hidden, c.OBias)
		before := p + "post_attention_layernorm"
		if c.SandwichNorms {
			o = b.RMSNorm(o, before, c.Hidden, c.Eps)
			before = p + "pre_feedforward_layernorm"
		}
		n, residual = b.AddRMSNorm(o, residual, before, c.Hidden, c.Eps)
		act := b.Gated(n, c.Hidden, c.MLPBias, c.Activation,
			graph.Out{Prefix: p + "mlp.gate_proj", Dim: c.Intermediate}, graph.Out{Prefix: p + "mlp.up_proj",
				Dim: c.Intermediate})
		down := b.Linear(act, p+"mlp.down_proj", c.Intermediate, c.Hidden, c.MLPBias)
		if c.SandwichNorms {
			down = b.RMSNorm(down, p+"post_feedforward_layernorm", c.Hidden, c.Eps)
		}
		next := "text.norm"
		if i+1 < c.Layers {
			next = fmt.Sprintf("text.layers.%d.input_layernorm", i+1)
		}
		n, residual = b.AddRMSNorm(down, residual, next, c.Hidden, c.Eps)
	}
	return n
}

// logits adds the head over the given rows of x [B, S, hidden], counted through.
func (c Config) logits(b *graph.Builder, x, rows string) {
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(c.Hidden)))
	x = b.Op("Gather", onnx.Attrs{"axis": 0}, x, rows)
	head := "lm_head"
	if c.Tied {
		head = "text.embed_tokens"
	}
	b.Name(b.Wide(b.Head(x, head, c.Hidden, c.Vocab)), "logits")
}
