package graph

import (
	"math"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
)

// Sequences says which of n positions attend to each other, and where they stand.
type Sequences struct {
	Heads, Dim int
	// Cos and Sin are [n, Dim/2], of rotate-half position embeddings; "" where nothing rotates.
	Cos, Sin string
	// Lengths are those of the sequences that the n positions are, one after the other, int32.
	Lengths string
	// Single says that there is but one where mmserve's own operators are not used.
	Single bool
}

// SequenceAttention is attention among the positions of each sequence. qkv is three values [n, heads·dim], or one that
// holds all three on its last axis. mmserve's own operator holds the scores of a few keys or queries at a time; others
// may hold those of a whole sequence. Where weights are quantised and the processor is fast at it, long sequences are
// attended in small integers.
func (b *Builder) SequenceAttention(qkv []string, s Sequences) string {
	scale := float32(1 / math.Sqrt(float64(s.Dim)))
	if OwnSequences(s.Dim, b.Target) {
		in, op := append(append([]string{}, qkv...), "", "")[:3], "SegmentAttention"
		if wide := padded8(s.Dim); b.row.form != nil && kernels.HasSelfAttention8() && wide-s.Dim <= s.Dim/4 {
			op = "SegmentAttention8"
		}
		return b.OpN(onnx.Own, op, onnx.Attrs{"heads": s.Heads, "scale": scale},
			append(in, s.Lengths, s.Cos, s.Sin), 1)[0]
	}
	width := s.Heads * s.Dim
	third := Out{Dim: width}
	qkv = b.Split(qkv, third, third, third)
	for i, v := range qkv {
		qkv[i] = b.Op("Reshape", nil, v, b.I64s(1, -1, int64(width)))
		if i < 2 && s.Cos != "" {
			qkv[i] = b.ContribOp("RotaryEmbedding", onnx.Attrs{"num_heads": s.Heads}, qkv[i], b.I64s(0), b.Narrow(s.Cos),
				b.Narrow(s.Sin))
		}
	}
	a := attended{s.Heads, s.Dim, scale, ""}
	if s.Single {
		return b.Op("Reshape", nil, b.attend(qkv, a), b.I64s(-1, int64(width)))
	}
	return b.attendPadded(qkv, a, s.Lengths)
}

// OwnSequences tells whether SequenceAttention is mmserve's own operator for heads of that size.
func OwnSequences(dim int, on Target) bool {
	return HasKernels && !on.Device && dim%8 == 0 && dim <= 256
}

// attended is attention over values [blocks, n, heads·dim].
type attended struct {
	heads, dim int
	scale      float32
	// lengths, unless empty, are the keys that a block has, int32 [blocks].
	lengths string
}

// attend gives the shape of its inputs.
func (b *Builder) attend(qkv []string, a attended) string {
	if !b.Device || b.Fused && a.lengths == "" {
		in := append([]string{}, qkv...)
		if a.lengths != "" {
			in = append(in, "", a.lengths)
		}
		return b.ContribOp("MultiHeadAttention", onnx.Attrs{"num_heads": a.heads, "scale": a.scale}, in...)
	}
	split := func(x string, perm ...int) string {
		x = b.Op("Reshape", nil, x, b.I64s(0, 0, int64(a.heads), int64(a.dim)))
		return b.Op("Transpose", onnx.Attrs{"perm": perm}, x)
	}
	q, k, v := split(qkv[0], 0, 2, 1, 3), split(qkv[1], 0, 2, 3, 1), split(qkv[2], 0, 2, 1, 3)
	scores := b.Op("Mul", nil, b.Wide(b.Op("MatMul", nil, q, k)), b.F32(a.scale))
	if a.lengths != "" {
		scores = b.Op("Add", nil, scores, b.keyBias(a.lengths))
	}
	shares := b.Narrow(b.Op("Softmax", onnx.Attrs{"axis": -1}, scores))
	mixed := b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, b.Op("MatMul", nil, shares, v))
	return b.Op("Reshape", nil, mixed, b.I64s(0, 0, int64(a.heads*a.dim)))
}

// slots are the positions of sequences padded to the longest, [sequences, longest].
type slots struct{ index, inside string }

// pad tells which position stands where. What is not inside is padding.
func (b *Builder) pad(lengths string) slots {
	n := b.Op("Cast", onnx.Attrs{"to": int(onnx.I64)}, lengths)
	most := b.Op("ReduceMax", onnx.Attrs{"keepdims": 0}, n)
	zero, one := b.Op("Squeeze", nil, b.I64s(0)), b.Op("Squeeze", nil, b.I64s(1))
	places := b.Op("Unsqueeze", nil, b.Op("Range", nil, zero, most, one), b.I64s(0))
	starts := b.Op("Sub", nil, b.Op("CumSum", nil, n, zero), n)
	inside := b.Op("Less", nil, places, b.Op("Unsqueeze", nil, n, b.I64s(1)))
	index := b.Op("Add", nil, b.Op("Unsqueeze", nil, starts, b.I64s(1)), places)
	return slots{b.Op("Where", nil, inside, index, zero), inside}
}

// keyBias is 0 for a block's keys and far below for its padding, [blocks, 1, 1, longest].
func (b *Builder) keyBias(lengths string) string {
	bias := b.Op("Where", nil, b.pad(lengths).inside, b.F32(0), b.F32(-math.MaxFloat32))
	return b.Op("Unsqueeze", nil, bias, b.I64s(1, 2))
}

// attendPadded has sequences of the given lengths attend as blocks of the longest.
func (b *Builder) attendPadded(qkv []string, a attended, lengths string) string {
	s, width := b.pad(lengths), int64(a.heads*a.dim)
	blocks := make([]string, len(qkv))
	for i, v := range qkv {
		blocks[i] = b.Op("Gather", onnx.Attrs{"axis": 0}, b.Op("Reshape", nil, v, b.I64s(-1, width)), s.index)
	}
	a.lengths = lengths
	x := b.Op("Reshape", nil, b.attend(blocks, a), b.I64s(-1, width))
	inside := b.Op("Reshape", nil, s.inside, b.I64s(-1))
	zero, one := b.Op("Squeeze", nil, b.I64s(0)), b.Op("Squeeze", nil, b.I64s(1))
	all := b.Op("Range", nil, zero, b.Op("Size", nil, inside), one)
	return b.Op("Gather", onnx.Attrs{"axis": 0}, x, b.Op("Compress", onnx.Attrs{"axis": 0}, all, inside))
}
