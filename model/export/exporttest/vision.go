package exporttest

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/vision"
)

// vision writes the tower and the connector.
// Reference: transformers SiglipVisionTransformer, CLIPVisionTransformer, Idefics3Connector, LlavaMultiModalProjector.
func (s Source) vision(n *net) {
	if s.NativeResolution != nil {
		s.blocks(n)
		return
	}
	t := s.Tower
	var x string
	if n.options.Tiles {
		x = n.Input("pixel_values", onnx.F32, "batch_size", "num_images", 3, t.ImageSize, t.ImageSize)
		mask := n.Input("pixel_attention_mask", onnx.Bool, "batch_size", "num_images", t.ImageSize, t.ImageSize)
		x = n.Op("Mul", nil, x, n.cast(n.Op("Unsqueeze", nil, mask, n.I64s(2)), onnx.F32))
		side := int64(t.ImageSize)
		x = n.Op("Reshape", nil, x, n.I64s(-1, 3, side, side))
		most := n.Op("ReduceMax", onnx.Attrs{"keepdims": 0}, n.Op("Abs", nil, x), n.I64s(1, 2, 3))
		x = n.Op("Compress", onnx.Attrs{"axis": 0}, x, n.Op("Greater", nil, most, n.F32(0)))
	} else {
		x = n.Input("pixel_values", onnx.F32, "batch_size", 3, t.ImageSize, t.ImageSize)
	}
	x = s.tower(n, x)
	name := "image_features"
	if s.Decoder.EncoderStates > 0 && !n.options.CrossCaches {
		name = "last_hidden_state"
	}
	n.result(s.connector(n, x), name, onnx.F32, "num_images", s.Connector.Tokens(t), s.Connector.Width())
}

// blocks writes a stand-in for Qwen2-VL's tower: every block of patches and its place in the image through one layer.
func (s Source) blocks(n *net) {
	p := s.NativeResolution
	values, block := 2*3*p.PatchSize*p.PatchSize, p.MergeSize*p.MergeSize
	x := n.Input("pixel_values", onnx.F32, "patches", values)
	thw := n.Input("image_grid_thw", onnx.I64, "num_images", 3)
	x = n.Op("Reshape", nil, x, n.I64s(-1, int64(block*values)))
	weight := make([]float32, block*values*p.Width)
	for i := range weight {
		weight[i] = float32(math.Sin(float64(7*i))) / float32(values)
	}
	x = n.Op("MatMul", nil, x, n.constant("blocks", []int{block * values, p.Width}, weight))
	wide := n.Op("Slice", nil, thw, n.I64s(2), n.I64s(3), n.I64s(1))
	column := n.Op("Mod", nil, n.span(n.size(x, 0)),
		n.Op("Div", nil, n.Op("Reshape", nil, wide, n.I64s(-1)), n.I64s(int64(p.MergeSize))))
	x = n.Op("Add", nil, x, n.Op("Unsqueeze", nil, n.cast(column, onnx.F32), n.I64s(1)))
	n.result(x, "image_features", onnx.F32, "tokens", p.Width)
}

func (s Source) tower(n *net, x string) string {
	t := s.Tower
	const prefix = "vision."
	in := []string{x, n.weight(prefix+"embeddings.patch_embedding.weight", t.Hidden, 3, t.PatchSize, t.PatchSize)}
	if t.PatchBias {
		in = append(in, n.weight(prefix+"embeddings.patch_embedding.bias", t.Hidden))
	}
	x = n.Op("Conv", onnx.Attrs{"kernel_shape": []int{t.PatchSize, t.PatchSize},
		"strides": []int{t.PatchSize, t.PatchSize}}, in...)
	x = n.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, n.Op("Reshape", nil, x, n.I64s(0, int64(t.Hidden), -1)))
	positions := t.Patches()
	if t.ClassToken {
		shape := n.Op("Concat", onnx.Attrs{"axis": 0}, n.size(x, 0), n.I64s(1, int64(t.Hidden)))
		x = n.Op("Concat", onnx.Attrs{"axis": 1},
			n.Op("Expand", nil, n.weight(prefix+"embeddings.class_embedding", t.Hidden), shape), x)
		positions++
	}
	x = n.Op("Add", nil, x, n.weight(prefix+"embeddings.position_embedding.weight", positions, t.Hidden))
	if t.PreNorm {
		x = n.layerNorm(x, prefix+"pre_layrnorm", t.Hidden, t.Eps)
	}
	dim := t.Hidden / t.Heads
	for i := range t.Layers {
		p := fmt.Sprintf("%sencoder.layers.%d.", prefix, i)
		y := n.layerNorm(x, p+"layer_norm1", t.Hidden, t.Eps)
		part := func(name string) string {
			return n.heads(n.linear(y, p+"self_attn."+name, t.Hidden, t.Hidden, true), t.Heads, dim)
		}
		scores := n.scores(part("q_proj"), part("k_proj"), float32(1/math.Sqrt(float64(dim))))
		a := n.joined(n.attend(scores, part("v_proj")), t.Hidden)
		x = n.Op("Add", nil, x, n.linear(a, p+"self_attn.out_proj", t.Hidden, t.Hidden, true))
		y = n.layerNorm(x, p+"layer_norm2", t.Hidden, t.Eps)
		y = n.activation(t.Activation, n.linear(y, p+"mlp.fc1", t.Hidden, t.Intermediate, true))
		x = n.Op("Add", nil, x, n.linear(y, p+"mlp.fc2", t.Intermediate, t.Hidden, true))
	}
	if t.PostNorm {
		x = n.layerNorm(x, prefix+"post_layernorm", t.Hidden, t.Eps)
	}
	if t.DropFirst {
		x = n.Op("Slice", nil, x, n.I64s(1), n.I64s(math.MaxInt64), n.I64s(1))
	}
	return x
}

func (s Source) connector(n *net, x string) string {
	hidden := s.Tower.Hidden
	switch c := s.Connector.(type) {
	case vision.PixelShuffle:
		// The way transformers writes it: two reshapes and a transposition each.
		side, r := int64(s.Tower.Side()), int64(c.Scale)
		x = n.Op("Reshape", nil, x, n.I64s(0, side, side/r, int64(hidden)*r))
		x = n.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, x)
		x = n.Op("Reshape", nil, x, n.I64s(0, side/r, side/r, int64(hidden)*r*r))
		x = n.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, x)
		x = n.Op("Reshape", nil, x, n.I64s(0, -1, int64(hidden)*r*r))
		return n.linear(x, "connector.modality_projection.proj", hidden*c.Scale*c.Scale, c.TextHidden, false)
	case vision.Identity:
		return x
	case vision.MLP:
		x = n.activation(c.Activation, n.linear(x, "connector.linear_1", hidden, c.TextHidden, c.Bias))
		return n.linear(x, "connector.linear_2", c.TextHidden, c.TextHidden, c.Bias)
	case vision.Linear:
		return n.linear(x, "connector.linear", hidden, c.TextHidden, true)
	}
	n.err = fmt.Errorf("no export of connector %T", s.Connector)
	return x
}
