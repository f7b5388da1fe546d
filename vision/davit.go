package vision

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// DaViT is the tower of Florence-2 with its projector: stages of blocks, each of attention between the places of a
// window and attention between the channels of a group, and then a token of the mean and one of each place.
// Reference: transformers Florence2VisionBackbone and Florence2MultiModalProjector.
type DaViT struct {
	// ImageSize is the side of an image in pixels.
	ImageSize int
	Stages    []DaViTStage
	// Window is the side of a window.
	Window     int
	Activation string
	// Positions is the number of rows and of columns that have an embedding, Frames that of moments.
	Positions, Frames int
	// TextHidden is the width of what the projector gives.
	TextHidden int
}

// DaViTStage is a strided convolution and the blocks behind it.
type DaViTStage struct {
	// Depth is the number of blocks, Dim that of channels, MLP the width inside a block's MLP.
	Depth, Dim, MLP int
	// Heads are those of windows, Groups those of channels.
	Heads, Groups int
	// Kernel, Stride and Padding are the convolution's. PreNorm normalises before it, not behind it.
	Kernel, Stride, Padding int
	PreNorm                 bool
}

// davitEps is that of all norms. Reference: torch.nn.LayerNorm.
const davitEps = 1e-5

// maxDaViT bounds each number of a configuration, maxDaViTWindow a window's side.
const maxDaViT, maxDaViTWindow = 1 << 13, 64

// Within is c with images of the given side, or the largest below it whose map has positions.
func (c DaViT) Within(side int) (DaViT, error) {
	c.ImageSize = side
	if err := c.validateFields(); err != nil {
		return c, err
	}
	for c.Side() > c.Positions && c.ImageSize > 1 {
		c.ImageSize--
	}
	return c, c.Validate()
}

// Validate refuses values that no graph can be built from, naming the field.
func (c DaViT) Validate() error {
	if err := c.validateFields(); err != nil {
		return err
	}
	if c.Window > maxDaViTWindow {
		return fmt.Errorf("vision_config.window_size is %d, want 1 to %d", c.Window, maxDaViTWindow)
	}
	depth, side := 0, c.ImageSize
	for i, s := range c.Stages {
		if s.Dim%s.Heads != 0 || s.Dim%s.Groups != 0 || s.Dim%2 != 0 {
			return fmt.Errorf("vision_config.embed_dim %d is no multiple of num_heads %d, num_groups %d and 2",
				s.Dim, s.Heads, s.Groups)
		}
		if side+2*s.Padding < s.Kernel {
			return fmt.Errorf("vision_config: stage %d has nothing left of an image of %d pixels", i, c.ImageSize)
		}
		side = s.side(side)
		if depth += s.Depth; depth > 1<<10 || side*side > maxPatches {
			return fmt.Errorf("vision_config: stage %d has %d blocks so far, on maps of %d×%d; want at most %d and %d places",
				i, depth, side, side, 1<<10, maxPatches)
		}
	}
	if side > c.Positions {
		return fmt.Errorf("vision_config.max_position_embeddings is %d, an image of %d pixels has maps of %d×%d",
			c.Positions, c.ImageSize, side, side)
	}
	return graph.CheckActivation("vision_config.activation_function", c.Activation)
}

// validateFields refuses numbers that are out of range.
func (c DaViT) validateFields() error {
	type field struct {
		name  string
		value int
	}
	list := []field{
		{"image_size", c.ImageSize}, {"window_size", c.Window}, {"max_position_embeddings", c.Positions},
		{"max_temporal_embeddings", c.Frames}, {"projection_dim", c.TextHidden}, {"depths", len(c.Stages)},
	}
	for _, s := range c.Stages {
		list = append(list, field{"depths", s.Depth}, field{"embed_dim", s.Dim}, field{"mlp_ratio", s.MLP},
			field{"num_heads", s.Heads}, field{"num_groups", s.Groups}, field{"patch_size", s.Kernel},
			field{"patch_stride", s.Stride}, field{"patch_padding", s.Padding + 1})
	}
	for _, f := range list {
		if f.value < 1 || f.value > maxDaViT {
			return fmt.Errorf("vision_config.%s is %d, want 1 to %d", f.name, f.value, maxDaViT)
		}
	}
	return nil
}

// side is that of the map that a stage makes of one.
func (s DaViTStage) side(n int) int { return (n+2*s.Padding-s.Kernel)/s.Stride + 1 }

// Side is the side of the last map.
func (c DaViT) Side() int {
	n := c.ImageSize
	for _, s := range c.Stages {
		n = s.side(n)
	}
	return n
}

// Tokens is the number of patch embeddings of an image.
func (c DaViT) Tokens() int { return c.Side()*c.Side() + 1 }

// DaViTGraph builds the graph of the tower: pixel_values [1, 3, S, S] to image_features [1, tokens, text hidden].
func DaViTGraph(w *graph.Weights, c DaViT, p graph.Precision) (*graph.Builder, error) {
	return c.graph(w, p, graph.Target{})
}

func (c DaViT) graph(w *graph.Weights, p graph.Precision, on graph.Target) (*graph.Builder, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b := graph.NewBuilder("vision", w, p)
	b.Target = on
	x := b.Input("pixel_values", onnx.F32, 1, 3, c.ImageSize, c.ImageSize)
	side, channels := c.ImageSize, 3
	for i, s := range c.Stages {
		x = s.convolve(b, fmt.Sprintf("vision.convs.%d.", i), x, channels)
		side, channels = s.side(side), s.Dim
		m := davitMap{b, c, s, side}
		for j := range s.Depth {
			p := fmt.Sprintf("vision.blocks.%d.%d.", i, j)
			x = m.block(x, p+"spatial_block.", m.windows)
			x = m.block(x, p+"channel_block.", m.channels)
		}
	}
	x = c.project(b, x, side, channels)
	b.Name(b.Wide(x), "image_features")
	b.Output("image_features", onnx.F32, 1, c.Tokens(), c.TextHidden)
	return b, b.Err()
}

// convolve is the convolution of a stage, from so many channels, with its norm over channels.
func (s DaViTStage) convolve(b *graph.Builder, p, x string, channels int) string {
	norm := func(x string, dim int) string {
		x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 3, 1}}, x)
		x = b.Wide(b.LayerNorm(x, p+"norm", dim, davitEps))
		return b.Op("Transpose", onnx.Attrs{"perm": []int{0, 3, 1, 2}}, x)
	}
	if s.PreNorm {
		x = norm(x, channels)
	}
	x = b.Op("Conv", onnx.Attrs{
		"kernel_shape": []int{s.Kernel, s.Kernel}, "strides": []int{s.Stride, s.Stride},
		"pads": []int{s.Padding, s.Padding, s.Padding, s.Padding},
	}, x, b.Weight(p+"conv.weight", s.Dim, channels, s.Kernel, s.Kernel), b.Weight(p+"conv.bias", s.Dim))
	if !s.PreNorm {
		x = norm(x, s.Dim)
	}
	return x
}

// davitMap builds blocks over maps [1, dim, side, side].
type davitMap struct {
	*graph.Builder
	DaViT
	stage DaViTStage
	side  int
}

// block is attention between two convolutions of each channel by itself, and an MLP.
func (m davitMap) block(x, p string, attend func(x, p string) string) string {
	dim := m.stage.Dim
	x = m.filter(x, p+"conv1")
	y := attend(m.LayerNorm(m.places(x), p+"norm1", dim, davitEps), p)
	x = m.filter(m.asMap(m.Op("Add", nil, m.places(x), m.Wide(y))), p+"conv2")
	x = m.places(x)
	y = m.Activated(m.LayerNorm(x, p+"norm2", dim, davitEps), p+"ffn.fc1", dim, m.stage.MLP, true, m.DaViT.Activation)
	y = m.Linear(y, p+"ffn.fc2", m.stage.MLP, dim, true)
	return m.asMap(m.Op("Add", nil, x, m.Wide(y)))
}

// filter adds a 3×3 convolution of each channel.
func (m davitMap) filter(x, p string) string {
	y := m.Op("Conv", onnx.Attrs{
		"kernel_shape": []int{3, 3}, "pads": []int{1, 1, 1, 1}, "group": m.stage.Dim,
	}, x, m.Weight(p+".weight", m.stage.Dim, 1, 3, 3), m.Weight(p+".bias", m.stage.Dim))
	return m.Op("Add", nil, x, y)
}

// places is a map as [1, places, dim], asMap the other way round.
func (m davitMap) places(x string) string {
	x = m.Op("Reshape", nil, x, m.I64s(1, int64(m.stage.Dim), int64(m.side*m.side)))
	return m.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, x)
}

func (m davitMap) asMap(x string) string {
	x = m.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, x)
	return m.Op("Reshape", nil, x, m.I64s(1, int64(m.stage.Dim), int64(m.side), int64(m.side)))
}

// windows is attention between the places of each window of x [1, places, dim]. Places that pad the last windows are
// zeros before the projections, and seen by the others as any place is.
func (m davitMap) windows(x, p string) string {
	w, dim, side := int64(m.Window), int64(m.stage.Dim), int64(m.side)
	across := (side + w - 1) / w
	x = m.Op("Reshape", nil, m.Wide(x), m.I64s(1, side, side, dim))
	if pad := across*w - side; pad > 0 {
		x = m.Op("Pad", nil, x, m.I64s(0, 0, 0, 0, 0, pad, pad, 0))
	}
	swap := onnx.Attrs{"perm": []int{0, 2, 1, 3, 4}}
	x = m.Op("Transpose", swap, m.Op("Reshape", nil, x, m.I64s(across, w, across, w, dim)))
	x = m.Op("Reshape", nil, x, m.I64s(across*across, w*w, dim))
	d := m.stage.Dim
	outs := []graph.Out{{Dim: d}, {Dim: d}, {Dim: d}}
	qkv := m.Split([]string{m.Wide(m.Linear(m.Narrow(x), p+"window_attn.qkv", d, 3*d, true))}, outs...)
	x = m.ContribOp("MultiHeadAttention", onnx.Attrs{"num_heads": m.stage.Heads}, qkv...)
	x = m.Wide(m.Linear(m.Narrow(x), p+"window_attn.proj", d, d, true))
	x = m.Op("Transpose", swap, m.Op("Reshape", nil, x, m.I64s(across, across, w, w, dim)))
	x = m.Op("Reshape", nil, x, m.I64s(1, across*w, across*w, dim))
	x = m.Op("Slice", nil, x, m.I64s(0, 0), m.I64s(side, side), m.I64s(1, 2))
	return m.Op("Reshape", nil, x, m.I64s(1, side*side, dim))
}

// channels is attention between the channels of each group, over all places of x [1, places, dim].
func (m davitMap) channels(x, p string) string {
	d, n, groups := m.stage.Dim, int64(m.side*m.side), int64(m.stage.Groups)
	each := int64(d) / groups
	outs := []graph.Out{{Dim: d}, {Dim: d}, {Dim: d}}
	qkv := m.Split([]string{m.Wide(m.Linear(x, p+"channel_attn.qkv", d, 3*d, true))}, outs...)
	for i := range qkv {
		qkv[i] = m.Op("Reshape", nil, qkv[i], m.I64s(n, groups, each))
		qkv[i] = m.Op("Transpose", onnx.Attrs{"perm": []int{1, 2, 0}}, qkv[i])
	}
	scale := onnx.Attrs{"transB": 1, "alpha": float32(1 / math.Sqrt(float64(n)))}
	scores := m.ContribOp("FusedMatMul", scale, qkv[0], qkv[1])
	x = m.Op("MatMul", nil, m.Op("Softmax", onnx.Attrs{"axis": -1}, scores), qkv[2])
	x = m.Op("Reshape", nil, m.Op("Transpose", onnx.Attrs{"perm": []int{2, 0, 1}}, x), m.I64s(1, n, int64(d)))
	return m.Linear(m.Narrow(x), p+"channel_attn.proj", d, d, true)
}

// project adds the embeddings of columns, rows and the first moment to a map, puts the mean before its places, and
// maps them to the width of the text.
func (c DaViT) project(b *graph.Builder, x string, side, dim int) string {
	n, rows := int64(side), dim/2
	table := func(name string, width int, shape ...int64) string {
		t := b.Weight("connector.image_position_embed."+name+"_embeddings.weight", c.Positions, width)
		t = b.Op("Slice", nil, t, b.I64s(0), b.I64s(n), b.I64s(0))
		return b.Op("Expand", nil, b.Op("Reshape", nil, t, b.I64s(shape...)), b.I64s(n, n, int64(width)))
	}
	at := b.Op("Concat", onnx.Attrs{"axis": -1},
		table("column", dim-rows, 1, n, int64(dim-rows)), table("row", rows, n, 1, int64(rows)))
	moments := b.Weight("connector.visual_temporal_embed.pos_idx_to_embed", c.Frames, dim)
	x = davitMap{b, c, c.Stages[len(c.Stages)-1], side}.places(x)
	x = b.Op("Add", nil, x, b.Op("Reshape", nil, at, b.I64s(1, n*n, int64(dim))))
	x = b.Op("Add", nil, x, b.Op("Slice", nil, moments, b.I64s(0), b.I64s(1), b.I64s(0)))
	mean := b.Op("ReduceMean", onnx.Attrs{"keepdims": 1}, x, b.I64s(1))
	x = b.Op("Concat", onnx.Attrs{"axis": 1}, mean, x)
	x = b.Linear(b.Narrow(x), "connector.image_projection", dim, c.TextHidden, false)
	return b.LayerNorm(x, "connector.image_proj_norm", c.TextHidden, davitEps)
}

// OpenDaViT opens a session over DaViTGraph.
func OpenDaViT(w *graph.Weights, c DaViT, p graph.Precision, o ort.Options) (*TiledTower, error) {
	on, err := graph.TargetOf(o, p)
	if err != nil {
		return nil, err
	}
	b, err := c.graph(w, p, on)
	if err != nil {
		return nil, err
	}
	f, err := ort.Built(b)
	if err != nil {
		return nil, err
	}
	o.ExternalDir = graph.Root
	return OpenExport(f, ViT{ImageSize: c.ImageSize}, InGraph{PerTile: c.Tokens(), TextHidden: c.TextHidden}, o)
}
