package decoder

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// Bart is what a Config with it says of BART: an encoder over a prompt with the patches in it, and a decoder that
// attends to what the encoder gives. The rest of the Config is the decoder's.
type Bart struct {
	// EncoderLayers, EncoderHeads and EncoderIntermediate are the encoder's. Its width is the decoder's.
	EncoderLayers, EncoderHeads, EncoderIntermediate int
	// Start is the number of ids at a prompt's end that are the decoder's.
	Start int
}

// bartOffset is the first row of a table of positions that stands for one.
// Reference: transformers BartLearnedPositionalEmbedding.
const bartOffset = 2

// validate refuses values that no graph can be built from, naming the field.
func (b Bart) validate(c Config) error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"encoder_layers", b.EncoderLayers}, {"encoder_attention_heads", b.EncoderHeads},
		{"encoder_ffn_dim", b.EncoderIntermediate}, {"the number of ids that an answer starts with", b.Start},
	} {
		if f.value < 1 || f.value > 1<<20 {
			return fmt.Errorf("text_config.%s is %d, want 1 to %d", f.name, f.value, 1<<20)
		}
	}
	if c.Heads*c.HeadDim != c.Hidden || c.KVHeads != c.Heads || c.Hidden%b.EncoderHeads != 0 || c.MaxLen <= b.Start {
		return fmt.Errorf("text_config.d_model %d is no multiple of decoder_attention_heads %d and encoder_attention_heads "+
			"%d, or max_position_embeddings %d too small", c.Hidden, c.Heads, b.EncoderHeads, c.MaxLen)
	}
	return graph.CheckActivation("text_config.activation_function", c.Activation)
}

// BartGraphs builds the graphs of a Config with Bart: of embeddings, of the encoder and of the decoder, which take and
// give what ready-made graphs do.
// Reference: transformers BartModel.
func (c Config) BartGraphs(w *graph.Weights, p graph.Precision) (list [3]*graph.Builder, err error) {
	if err := c.Validate(); err != nil {
		return list, err
	}
	for i, build := range []func(bart){bart.embeddings, bart.encoder, bart.decoder} {
		b := bart{graph.NewBuilder([]string{"embed", "encoder", "decoder"}[i], w, p), c}
		build(b)
		if list[i] = b.Builder; b.Err() != nil {
			return list, b.Err()
		}
	}
	return list, nil
}

// bart builds one of the graphs.
type bart struct {
	*graph.Builder
	c Config
}

func (b bart) table() string { return b.Weight("text.embed_tokens.weight", b.c.Vocab, b.c.Hidden) }

func (b bart) embeddings() {
	ids := b.Input("input_ids", onnx.I64, 1, "S")
	b.Name(b.Op("Gather", onnx.Attrs{"axis": 0}, b.table(), ids), "inputs_embeds")
	b.Output("inputs_embeds", onnx.F32, 1, "S", b.c.Hidden)
}

// encoder reads all positions in both directions.
func (b bart) encoder() {
	b.Input("attention_mask", onnx.I64, 1, "S") // of one row, whose positions are all seen
	x := b.Input("inputs_embeds", onnx.F32, 1, "S", b.c.Hidden)
	zero := b.Op("Squeeze", nil, b.I64s(0))
	x = b.placed(x, "text.encoder.", zero)
	e, d := b.c.Bart, b.c.Hidden
	for i := range e.EncoderLayers {
		p := fmt.Sprintf("text.encoder.layers.%d.", i)
		outs := []graph.Out{{Prefix: p + "self_attn.q_proj", Dim: d}, {Prefix: p + "self_attn.k_proj", Dim: d},
			{Prefix: p + "self_attn.v_proj", Dim: d}}
		qkv := b.Split(b.JointLinear(b.Narrow(x), d, true, outs...), outs...)
		for j := range qkv {
			qkv[j] = b.Wide(qkv[j])
		}
		y := b.ContribOp("MultiHeadAttention", onnx.Attrs{"num_heads": e.EncoderHeads}, qkv...)
		x = b.added(x, b.Linear(b.Narrow(y), p+"self_attn.out_proj", d, d, true), p+"self_attn_layer_norm")
		x = b.mlp(x, p, e.EncoderIntermediate)
	}
	b.Name(x, "last_hidden_state")
	b.Output("last_hidden_state", onnx.F32, 1, "S", d)
}

// placed adds the positions of x [B, S, hidden] from the one at first on, and normalises.
func (b bart) placed(x, p, first string) string {
	count := b.Op("Squeeze", nil, b.Op("Shape", onnx.Attrs{"start": 1, "end": 2}, x))
	from := b.Op("Add", nil, first, b.Op("Squeeze", nil, b.I64s(bartOffset)))
	at := b.Op("Range", nil, from, b.Op("Add", nil, from, count), b.Op("Squeeze", nil, b.I64s(1)))
	rows := b.Weight(p+"embed_positions.weight", b.c.MaxLen+bartOffset, b.c.Hidden)
	x = b.Op("Add", nil, x, b.Op("Gather", onnx.Attrs{"axis": 0}, rows, at))
	return b.Wide(b.LayerNorm(x, p+"layernorm_embedding", b.c.Hidden, b.c.Eps))
}

// added normalises the sum of x and what a part of a layer gives.
func (b bart) added(x, more, norm string) string {
	return b.Wide(b.LayerNorm(b.Op("Add", nil, x, b.Wide(more)), norm, b.c.Hidden, b.c.Eps))
}

func (b bart) mlp(x, p string, width int) string {
	y := b.Activated(b.Narrow(x), p+"fc1", b.c.Hidden, width, true, b.c.Activation)
	return b.added(x, b.Linear(y, p+"fc2", width, b.c.Hidden, true), p+"final_layer_norm")
}

// decoder takes a step's past and gives it longer. What it attends to of the encoder is projected in the first step.
func (b bart) decoder() {
	c := b.c
	x := b.Input("inputs_embeds", onnx.F32, "B", "S", c.Hidden)
	states := b.Input("encoder_hidden_states", onnx.F32, "B", "E", c.Hidden)
	later := b.Input("use_cache_branch", onnx.Bool, 1)
	var past string
	for i := range c.Layers {
		for _, kind := range []string{"decoder", "encoder"} {
			for _, part := range []string{"key", "value"} {
				in := b.Input(fmt.Sprintf("past_key_values.%d.%s.%s", i, kind, part), onnx.F32, "B", c.Heads, "P"+kind, c.HeadDim)
				if past == "" {
					past = b.Op("Squeeze", nil, b.Op("Shape", onnx.Attrs{"start": 2, "end": 3}, in))
				}
			}
		}
	}
	b.Output("logits", onnx.F32, "B", "S", c.Vocab)
	seen := b.causal(x, past)
	x = b.placed(x, "text.decoder.", past)
	for i := range c.Layers {
		p := fmt.Sprintf("text.decoder.layers.%d.", i)
		x = b.added(x, b.self(i, x, p+"self_attn.", seen), p+"self_attn_layer_norm")
		x = b.added(x, b.cross(i, x, p+"encoder_attn.", states, later), p+"encoder_attn_layer_norm")
		x = b.mlp(x, p, c.Intermediate)
	}
	head := "lm_head"
	if c.Tied {
		head = "text.embed_tokens"
	}
	b.Name(b.Wide(b.Head(b.Narrow(x), head, c.Hidden, c.Vocab)), "logits")
}

// causal is which of past + S positions each of the S of x sees.
func (b bart) causal(x, past string) string {
	zero, one := b.Op("Squeeze", nil, b.I64s(0)), b.Op("Squeeze", nil, b.I64s(1))
	count := b.Op("Squeeze", nil, b.Op("Shape", onnx.Attrs{"start": 1, "end": 2}, x))
	total := b.Op("Add", nil, past, count)
	own := b.Op("Unsqueeze", nil, b.Op("Range", nil, past, total, one), b.I64s(1))
	return b.Op("GreaterOrEqual", nil, own, b.Op("Range", nil, zero, total, one))
}

// heads is x [B, S, hidden] as [B, heads, S, dim].
func (b bart) heads(g *onnx.Graph, x string) string {
	x = g.Op("Reshape", nil, x, g.I64s(0, 0, int64(b.c.Heads), int64(b.c.HeadDim)))
	return g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, x)
}

// attend is attention, of which seen, unless empty, says what each query sees, with its last projection.
func (b bart) attend(q, k, v, seen, p string) string {
	scale := float32(1 / math.Sqrt(float64(b.c.HeadDim)))
	scores := b.ContribOp("FusedMatMul", onnx.Attrs{"transB": 1, "alpha": scale}, q, k)
	if seen != "" {
		scores = b.Op("Where", nil, seen, scores, b.F32(-math.MaxFloat32))
	}
	x := b.Op("MatMul", nil, b.Op("Softmax", onnx.Attrs{"axis": -1}, scores), v)
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, x)
	x = b.Op("Reshape", nil, x, b.I64s(0, 0, int64(b.c.Hidden)))
	return b.Linear(b.Narrow(x), p+"out_proj", b.c.Hidden, b.c.Hidden, true)
}

func (b bart) self(i int, x, p, seen string) string {
	d := b.c.Hidden
	outs := []graph.Out{{Prefix: p + "q_proj", Dim: d}, {Prefix: p + "k_proj", Dim: d}, {Prefix: p + "v_proj", Dim: d}}
	qkv := b.Split(b.JointLinear(b.Narrow(x), d, true, outs...), outs...)
	for j := range qkv {
		qkv[j] = b.heads(b.Graph, b.Wide(qkv[j]))
	}
	for j, part := range []string{"key", "value"} {
		name := fmt.Sprintf("%d.decoder.%s", i, part)
		present := b.Op("Concat", onnx.Attrs{"axis": 2}, "past_key_values."+name, qkv[j+1])
		qkv[j+1] = b.present(present, name)
	}
	return b.attend(qkv[0], qkv[1], qkv[2], seen, p)
}

// present gives a value as the output of a name.
func (b bart) present(x, name string) string {
	b.Name(x, "present."+name)
	b.Output("present."+name, onnx.F32, "B", b.c.Heads, "T"+name, b.c.HeadDim)
	return "present." + name
}

// cross attends to the encoder's states. Their keys and values are outputs of the first step, inputs of later ones,
// which give nothing in their place. They are float32 in every precision.
func (b bart) cross(i int, x, p, states, later string) string {
	d := b.c.Hidden
	q := b.heads(b.Graph, b.Wide(b.Linear(b.Narrow(x), p+"q_proj", d, d, true)))
	var kv [2]string
	for j, part := range []string{"key", "value"} {
		weight, bias := b.Weight(p+part[:1]+"_proj.weight", d, d), b.Weight(p+part[:1]+"_proj.bias", d)
		name := fmt.Sprintf("%d.encoder.%s", i, part)
		kv[j] = b.If(later,
			func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, "past_key_values."+name)} },
			func(g *onnx.Graph) []string {
				y := g.ContribOp("FusedMatMul", onnx.Attrs{"transB": 1}, states, weight)
				return []string{b.heads(g, g.Op("Add", nil, y, bias))}
			})[0]
		b.present(b.If(later,
			func(g *onnx.Graph) []string {
				return []string{g.Op("Slice", nil, kv[j], g.I64s(0), g.I64s(0), g.I64s(2))}
			},
			func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, kv[j])} })[0], name)
	}
	return b.attend(q, kv[0], kv[1], "", p)
}

// OpenBart opens the graphs of a Config with Bart and reserves the caches.
func OpenBart(c Config, w *graph.Weights, o OpenOptions) (*ExportRunner, error) {
	graphs, err := c.BartGraphs(w, o.Precision)
	if err != nil {
		return nil, err
	}
	var files [3]ort.File
	for i, b := range graphs {
		if files[i], err = ort.Built(b); err != nil {
			return nil, err
		}
	}
	o.Session.ExternalDir = graph.Root
	return OpenExport(ExportConfig{Vocab: c.Vocab, MaxLen: c.MaxLen, Start: c.Bart.Start},
		ExportFiles{Embed: files[0], Encoder: files[1], Decoder: files[2]}, o)
}
