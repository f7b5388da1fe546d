package decoder

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// mostLikely is the number of tokens that the graph of topGraph gives for each row.
const mostLikely = 64

// deviceGraph builds the decoder's graph for a device. It looks embeddings up itself and picks the most likely token,
// so that ids come and ids go. N is B·S; values between layers are [N, width]. Inputs, in order: input_ids [N], of
// which -1-i is row i of patches; patches [P, hidden]; shape, which is B, S, -1; seqlens_k [B]; total_sequence_length
// [1]; sample_rows [K]; those of stepInputs and deepstackInputs; then per layer past key and value. Outputs: logits
// [K, vocab], the most likely token's logit [K] and id [K], then per layer present key and value, in the memory of the
// past.
func (c Config) deviceGraph(w *graph.Weights, p graph.Precision, on graph.Target) (*graph.Builder, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		has  bool
		what string
	}{
		{c.EncoderStates > 0, "cross-attention"}, {c.WholePrompt, "attention both ways in the prompt"},
		{c.Softcap > 0, "attn_logit_softcapping"}, {c.Windows != nil, "sliding windows"},
		{c.ShortConv != nil, "short convolutions"},
		{c.ImageBlocks, "attention both ways among an image's positions"},
	} {
		if f.has {
			return nil, fmt.Errorf("decoders with %s run on the cpu provider only", f.what)
		}
	}
	b := graph.NewBuilder("decoder", w, p)
	b.UnitNorms, b.Target = c.UnitNorms, on
	ids := b.Input("input_ids", onnx.I32, "N")
	patches := b.Input("patches", onnx.F32, "P", c.Hidden)
	attend := attention{Config: c, shape: b.Input("shape", onnx.I64, 3)}
	attend.seqlens = b.Input("seqlens_k", onnx.I32, "B")
	attend.total = b.Input("total_sequence_length", onnx.I32, 1)
	sample := b.Input("sample_rows", onnx.I64, "K")
	attend.stepInputs(b)
	attend.rotary(b, func() string {
		return b.Op("Squeeze", nil, b.Op("Slice", nil, attend.shape, b.I64s(1), b.I64s(2)))
	})

	zero, last := b.I32(0), b.I32(-1)
	isPatch := b.Op("Less", nil, ids, zero)
	token := b.Op("Gather", nil, b.Operand("text.embed_tokens.weight", c.Vocab, c.Hidden),
		b.Op("Where", nil, isPatch, zero, ids))
	token = b.Wide(token)
	if c.EmbedScale != 0 && c.EmbedScale != 1 {
		token = b.Op("Mul", nil, token, b.F32(c.EmbedScale))
	}
	patch := b.Op("Gather", nil, patches, b.Op("Where", nil, isPatch, b.Op("Sub", nil, last, ids), zero))
	x := b.Op("Where", nil, b.Op("Unsqueeze", nil, isPatch, b.I64s(1)), patch, token)

	b.Output("logits", onnx.F32, "K", c.Vocab)
	b.Output("best_logits", onnx.F32, "K")
	b.Output("best_ids", onnx.I64, "K")
	c.logits(b, c.layers(b, attend, x), sample)
	b.Node("", "ReduceMax", onnx.Attrs{"keepdims": 0}, []string{"logits", b.I64s(-1)}, []string{"best_logits"})
	b.Node("", "ArgMax", onnx.Attrs{"axis": -1, "keepdims": 0}, []string{"logits"}, []string{"best_ids"})
	return b, b.Err()
}

// topGraph gives, for logits [K, vocab], those of the mostLikely tokens and their ids.
func topGraph(vocab int) *onnx.Graph {
	g := onnx.New("top")
	logits := g.Input("logits", onnx.F32, "K", vocab)
	g.Node("", "TopK", onnx.Attrs{"axis": -1}, []string{logits, g.I64s(mostLikely)}, []string{"top_logits", "top_ids"})
	g.Output("top_logits", onnx.F32, "K", mostLikely)
	g.Output("top_ids", onnx.I64, "K", mostLikely)
	return g
}

// blockGraph copies blocks of n caches: for each, blocks from of the source over blocks to of the target, in the
// target's memory. All are read before one is written.
func blockGraph(t onnx.DType, n, block int) *onnx.Graph {
	g := onnx.New("blocks")
	from, to := g.Input("from", onnx.I32, "K"), g.Input("to", onnx.I64, "K", 1)
	for i := range n {
		name := func(stem string) string { return fmt.Sprintf("%s.%d", stem, i) }
		source, target := g.Input(name("source"), t, "S", block), g.Input(name("target"), t, "T", block)
		g.Node("", "ScatterND", nil, []string{target, to, g.Op("Gather", onnx.Attrs{"axis": 0}, source, from)},
			[]string{name("result")})
		g.Output(name("result"), t, "T", block)
	}
	return g
}
