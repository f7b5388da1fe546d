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
	seqlens, total string
	// full are the angles that layers rotate by, local those of layers with a window.
	full, local rotation
	// factors are what the queries of all positions are multiplied by, [positions]; "" without QueryScaling.
	factors string
	// at [B, S] are the numbers of a step's positions, where nodes rotate (see explicit) and rotations and factors are of
	// these; else "".
	at string
	// blockEnd [B, S] is the last position that each position sees; "" where that is its own.
	blockEnd string
	// places [rows, 2] are where each row starts among a step's positions, and its slot; "" where rows are as long as each
	// other and lie in the first slots.
	places string
	// first is true in a step that starts a sequence; "" where no layer needs to know.
	first string
	// shape is [B, S, -1] where values between layers are [B·S, width], as on a device; else "".
	shape string
}

// rotation names cosines and sines: of all positions, [positions, rotary dim/2], or of those of a step,
// [B, S, rotary dim/2].
type rotation struct{ cos, sin string }

// stepInputs adds the inputs that say more of a step's positions than their number: rope_cos and rope_sin
// [B,S,rotary dim/2] with MRope; block_end [B,S] with ImageBlocks, the last position that each one sees: for those of
// an image its last, for others their own. An image lies in one step.
func (a *attention) stepInputs(b *graph.Builder) {
	if !b.Device && a.mixes() {
		a.places = b.Input("row_places", onnx.I32, "R", 2)
	}
	if a.MRope != nil {
		half := a.rotaryDim() / 2
		a.full = rotation{b.Input("rope_cos", onnx.F32, "B", "S", half), b.Input("rope_sin", onnx.F32, "B", "S", half)}
	}
	if a.ImageBlocks {
		a.blockEnd = b.Input("block_end", onnx.I32, "B", "S")
	}
}

// rotary adds the tables of the angles that follow from a position's number. count is the number of positions of each
// row, a scalar.
func (a *attention) rotary(b *graph.Builder, count func() string) {
	if a.MRope == nil {
		a.full = a.Rope.tables(b, "", a.MaxLen, a.rotaryDim())
	}
	a.local = a.full
	if a.LocalRope != nil {
		a.local = a.LocalRope.tables(b, "local_", a.MaxLen, a.rotaryDim())
	}
	if a.QueryScaling != nil {
		factors := make([]float32, a.MaxLen)
		for p := range factors {
			factors[p] = float32(a.QueryScaling.at(p))
		}
		a.factors = b.F32s("query_factors", []int{a.MaxLen}, factors)
	}
	if a.explicit() && (b.Device || !a.ownAttention()) {
		a.atPositions(b, count())
	} else if b.Device {
		a.full = rotation{b.Narrow(a.full.cos), b.Narrow(a.full.sin)}
		a.local = a.full
	}
}

// window is the number of positions that layer i sees, 0 for all.
func (c Config) window(i int) int {
	if c.Windows == nil {
		return 0
	}
	return min(c.Windows[i], c.MaxLen)
}

// rotation is what layer i rotates by.
func (a attention) rotation(i int) rotation {
	if a.window(i) > 0 {
		return a.local
	}
	return a.full
}

// ownAttention tells whether layers run mmserve's own operator instead of ONNX Runtime's.
func (c Config) ownAttention() bool {
	return graph.HasKernels && !c.plain && c.EncoderStates == 0 && !(c.WholePrompt && c.explicit())
}

// mixes tells whether the rows of a run may have any number of positions each.
func (c Config) mixes() bool { return c.ownAttention() && c.ShortConv == nil && !c.WholePrompt }

// explicit tells that queries and keys are changed in ways that ONNX Runtime's attention does not know.
func (c Config) explicit() bool {
	return c.QKNorm || c.RopePairs || c.MRope != nil || c.QueryScaling != nil || c.ImageBlocks ||
		c.rotaryDim() != c.HeadDim
}

// scale multiplies the products of queries and keys.
func (c Config) scale() float32 {
	return cmp.Or(c.AttentionScale, float32(1/math.Sqrt(float64(c.HeadDim))))
}

// layer adds grouped-query attention of layer i, which rotates q and k, writes k and v into the cache in place and
// attends to everything up to each row's own length. qkv is three values, or one that holds all three.
func (a attention) layer(b *graph.Builder, i int, qkv []string) string {
	name := func(stem string) string { return fmt.Sprintf("%s.%d", stem, i) }
	dims := []any{"B", a.KVHeads, "P", a.HeadDim}
	if a.places != "" {
		dims[0] = "slots"
	}
	b.Input(name("past_key"), b.Type(), dims...)
	b.Input(name("past_value"), b.Type(), dims...)
	in := qkv
	if a.shape != "" {
		in = make([]string, len(qkv))
		for i, v := range qkv {
			in[i] = b.Op("Reshape", nil, v, a.shape)
		}
	}
	if !b.Device && a.ownAttention() {
		a.own(b, i, in)
	} else {
		in = a.plainly(b, i, in)
	}
	b.Output(name("present_key"), b.Type(), dims...)
	b.Output(name("present_value"), b.Type(), dims...)
	switch {
	case a.WholePrompt:
		return b.If(a.first,
			func(g *onnx.Graph) []string { return []string{a.bothWays(g, i, in)} },
			func(g *onnx.Graph) []string { return []string{g.Op("Identity", nil, name("attention"))} })[0]
	case a.ImageBlocks && !a.ownAttention():
		return a.blocks(b, i, in[0])
	}
	return b.Rows(name("attention"), a.Heads*a.HeadDim)
}

// names are the values of layer i's attention: what goes in after q, k and v, and what comes out.
func (a attention) names(i int) (in, out []string) {
	name := func(stem string) string { return fmt.Sprintf("%s.%d", stem, i) }
	return []string{name("past_key"), name("past_value"), a.seqlens},
		[]string{name("attention"), name("present_key"), name("present_value")}
}

// own adds mmserve's own operator.
func (a attention) own(b *graph.Builder, i int, qkv []string) {
	if len(qkv) == 1 {
		qkv = []string{qkv[0], "", ""}
	}
	in, out := a.names(i)
	r := a.rotation(i)
	in = append(append(qkv[:3:3], in...), r.cos, r.sin, a.blockEnd)
	in = append(append(in, a.headNorms(b, i)...), a.factors, a.places)
	pairs := 0
	if a.RopePairs {
		pairs = 1
	}
	b.Node(onnx.Own, "CachedAttention", onnx.Attrs{
		"heads": a.Heads, "kv_heads": a.KVHeads, "scale": a.scale(), "rotary": a.rotaryDim(), "pairs": pairs,
		"window": a.window(i), "softcap": a.Softcap, "epsilon": a.Eps,
	}, in, out)
}

// headNorms are the weights of the norms of layer i's queries and keys, "" without.
func (a attention) headNorms(b *graph.Builder, i int) []string {
	if !a.QKNorm {
		return []string{"", ""}
	}
	p := fmt.Sprintf("text.layers.%d.self_attn.", i)
	return []string{b.NormWeight(p+"q_norm.weight", a.HeadDim), b.NormWeight(p+"k_norm.weight", a.HeadDim)}
}
