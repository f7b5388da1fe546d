package decoder

import (
	"cmp"
	"errors"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// Config holds the values of a decoder; its flags say where Llama and its descendants differ.
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
	// QKNorm normalises each head's queries and keys before they are rotated.
	UnitNorms, SandwichNorms, QKNorm bool
	// GateUp says that gate_proj and up_proj are one matrix, gate_up_proj, the gate first.
	GateUp bool
	// EmbedScale multiplies the embeddings of tokens, not those of patches; InputScale multiplies both. 0 is 1.
	EmbedScale, InputScale float32
	// ResidualScale multiplies what attention and MLP add to the hidden states; 0 is 1.
	ResidualScale float32
	// AttentionScale multiplies the products of queries and keys; 0 is 1/√HeadDim. Softcap bounds them to ±Softcap by
	// tanh; 0 leaves them.
	AttentionScale, Softcap float32
	// Windows are the positions, its own and those before, that each layer sees; 0 is all of them, nil all in every layer.
	Windows []int
	// LocalRope is the rope of the layers that have a window; nil where it is that of the others.
	LocalRope *Rope
	// RotaryDim is the number of a head's values, its first, that are rotated; 0 is all. RopePairs rotates values that lie
	// beside each other instead of halves against each other.
	RotaryDim int
	RopePairs bool
	// QueryScaling makes queries longer with their position; nil where they are not.
	QueryScaling *QueryScaling
	// ShortConv has some layers be short convolutions; nil where all attend.
	ShortConv *ShortConv
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

	// Bart, unless nil, makes it BART with its encoder, which OpenBart opens.
	Bart *Bart

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
	if c.Bart != nil {
		return c.Bart.validate(c)
	}
	if c.EncoderStates > 0 {
		if c.Heads*c.HeadDim != c.Hidden || c.HeadDim%8 != 0 {
			return fmt.Errorf("decoder.n_embd %d is no multiple of 8 × n_head %d", c.Hidden, c.Heads)
		}
		if !(c.Eps >= 0 && c.Eps <= 1) {
			return fmt.Errorf("decoder.layer_norm_epsilon is %g, want 0 to 1", c.Eps)
		}
		return graph.CheckActivation("decoder.activation_function", c.Activation)
	}
	if c.HeadDim%16 != 0 {
		// ONNX Runtime's CPU kernel rotates 16 values at a time.
		return fmt.Errorf("text_config.head_dim %d is no multiple of 16, which rotary attention needs here", c.HeadDim)
	}
	if err := c.validateRotation(); err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		value float32
	}{
		{"attention scale", c.AttentionScale}, {"attn_logit_softcapping", c.Softcap}, {"embedding scale", c.EmbedScale},
		{"embedding_multiplier", c.InputScale}, {"residual_multiplier", c.ResidualScale},
	} {
		if !(f.value >= 0 && f.value <= math.MaxFloat32) {
			return fmt.Errorf("text_config: %s is %g, want a finite number, none below 0", f.name, f.value)
		}
	}
	if len(c.Windows) != 0 && len(c.Windows) != c.Layers {
		return fmt.Errorf("text_config.layer_types has %d layers, num_hidden_layers is %d", len(c.Windows), c.Layers)
	}
	if !(c.Eps >= 0 && c.Eps <= 1) {
		return fmt.Errorf("text_config.rms_norm_eps is %g, want 0 to 1", c.Eps)
	}
	for _, n := range c.Windows {
		if n < 0 {
			return fmt.Errorf("text_config.sliding_window is %d, want 1 or more", n)
		}
	}
	if c.ShortConv != nil {
		if c.WholePrompt || c.ImageBlocks {
			return errors.New("text_config: short convolutions and attention both ways are not supported together")
		}
		if err := c.ShortConv.validate(c.Layers); err != nil {
			return err
		}
	}
	return graph.CheckActivation("text_config.hidden_act", c.Activation)
}

// mostDeepstack bounds what stands for a patch, a few times what any released model has.
const mostDeepstack = 16

// validateImages checks what concerns the positions of images.
func (c Config) validateImages() error {
	switch {
	case c.Deepstack > mostDeepstack:
		return fmt.Errorf("vision_config.deepstack_visual_indexes names %d layers, want at most %d", c.Deepstack, mostDeepstack)
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
	switch {
	case c.Bart != nil: // where they are kept, and in the past and the present of a step; the encoder's states
		return 6*c.Layers + 1
	case c.EncoderStates > 0:
		return 2 * c.Layers
	}
	return c.Layers - len(c.convLayers())
}

// ShortestPrompt is the fewest positions that a sequence's first chunk may have.
func (c Config) ShortestPrompt() int {
	if c.Bart != nil {
		return c.Bart.Start + 1
	}
	return c.EncoderStates + 1
}

// KVBytesPerToken is the KV cache that one position takes over all layers, in bytes (float32).
func (c Config) KVBytesPerToken() int64 {
	return int64(c.caches())*2*int64(c.KVHeads)*int64(c.HeadDim)*4 + c.convBytesPerToken()
}

// Graph builds the decoder's graph. Inputs, in order: inputs_embeds [B,S,hidden], seqlens_k [rows] (length after the
// step − 1), total_sequence_length [1], sample_rows [K] (indices into the B·S positions that want logits), those of
// stepInputs, deepstackInputs and convInputs, then per layer that attends past key and value [B, kv heads, max len,
// head dim]. Outputs: logits [K, vocab], present states of convolutions, then per layer present key and value, which
// are bound to the same memory as the past so that the step writes in place.
// Reference: transformers LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM,
// Gemma3ForCausalLM, GraniteForCausalLM, Ministral3ForCausalLM, Glm4vTextModel.
func (c Config) Graph(w *graph.Weights, p graph.Precision) (*graph.Builder, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.EncoderStates > 0 {
		return c.crossGraph(w, p)
	}
	if c.Bart != nil {
		graphs, err := c.BartGraphs(w, p)
		return graphs[2], err
	}
	b := graph.NewBuilder("decoder", w, p)
	b.UnitNorms = c.UnitNorms
	x := b.Input("inputs_embeds", onnx.F32, "B", "S", c.Hidden)
	rows := "B"
	if c.mixes() {
		rows = "R"
	}
	seqlens := b.Input("seqlens_k", onnx.I32, rows)
	total := b.Input("total_sequence_length", onnx.I32, 1)
	sample := b.Input("sample_rows", onnx.I64, "K")
	attend := attention{Config: c, seqlens: seqlens, total: total}
	attend.stepInputs(b)
	attend.rotary(b, func() string { return b.Op("Squeeze", nil, b.Op("Shape", onnx.Attrs{"start": 1, "end": 2}, x)) })
	if c.WholePrompt {
		attend.first = isFirst(b, x, seqlens)
	}
	b.Output("logits", onnx.F32, "K", c.Vocab)
	c.logits(b, c.layers(b, attend, x), sample)
	return b, b.Err()
}

// layers adds all layers over x, which is float32, and returns the hidden states after the last norm.
func (c Config) layers(b *graph.Builder, attend attention, x string) string {
	x = scaled(b, x, c.InputScale)
	residual, n := x, b.RMSNorm(x, "text.layers.0.input_layernorm", c.Hidden, c.Eps)
	deep, convs := c.deepstackInputs(b), c.convInputs(b)
	for i := range c.Layers {
		p := fmt.Sprintf("text.layers.%d.", i)
		var o string
		if c.isConv(i) {
			o = c.shortConv(b, convs, i, n)
		} else {
			o = c.selfAttention(b, attend, i, n)
		}
		before := p + "post_attention_layernorm"
		if c.SandwichNorms {
			o = b.RMSNorm(o, before, c.Hidden, c.Eps)
			before = p + "pre_feedforward_layernorm"
		}
		n, residual = b.AddRMSNorm(scaled(b, o, c.ResidualScale), residual, before, c.Hidden, c.Eps)
		down := c.mlp(b, p+"mlp.", n)
		if c.SandwichNorms {
			down = b.RMSNorm(down, p+"post_feedforward_layernorm", c.Hidden, c.Eps)
		}
		down = scaled(b, down, c.ResidualScale)
		if i < c.Deepstack {
			down = b.Op("Add", nil, b.Wide(down), deep[i])
		}
		next := "text.norm"
		if i+1 < c.Layers {
			next = fmt.Sprintf("text.layers.%d.input_layernorm", i+1)
		}
		n, residual = b.AddRMSNorm(down, residual, next, c.Hidden, c.Eps)
	}
	return n
}

// selfAttention is the attention of layer i over x with its projections.
func (c Config) selfAttention(b *graph.Builder, attend attention, i int, x string) string {
	p := fmt.Sprintf("text.layers.%d.self_attn.", i)
	outs := []graph.Out{
		{Prefix: p + "q_proj", Dim: c.Heads * c.HeadDim},
		{Prefix: p + "k_proj", Dim: c.KVHeads * c.HeadDim},
		{Prefix: p + "v_proj", Dim: c.KVHeads * c.HeadDim},
	}
	qkv := b.JointLinear(x, c.Hidden, c.QKVBias, outs...)
	if c.WholePrompt || c.explicit() && (b.Device || !c.ownAttention()) {
		qkv = b.Split(qkv, outs...)
	}
	return b.Linear(attend.layer(b, i, qkv), p+"o_proj", c.Heads*c.HeadDim, c.Hidden, c.OBias)
}

// mlp is the gated MLP over x.
func (c Config) mlp(b *graph.Builder, prefix, x string) string {
	var act string
	if c.GateUp {
		halves := []graph.Out{{Dim: c.Intermediate}, {Dim: c.Intermediate}}
		y := b.Split([]string{b.Linear(x, prefix+"gate_up_proj", c.Hidden, 2*c.Intermediate, c.MLPBias)}, halves...)
		act = b.Op("Mul", nil, b.Activation(c.Activation, y[0]), y[1])
	} else {
		act = b.Gated(x, c.Hidden, c.MLPBias, c.Activation, graph.Out{Prefix: prefix + "gate_proj", Dim: c.Intermediate},
			graph.Out{Prefix: prefix + "up_proj", Dim: c.Intermediate})
	}
	return b.Linear(act, prefix+"down_proj", c.Intermediate, c.Hidden, c.MLPBias)
}

// scaled is x times a factor, of which 0 is 1; of any other factor the result is float32.
func scaled(b *graph.Builder, x string, by float32) string {
	if by = cmp.Or(by, 1); by == 1 {
		return x
	}
	return b.Op("Mul", nil, b.Wide(x), b.F32(by))
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
