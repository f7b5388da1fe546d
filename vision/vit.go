package vision

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
)

// ViT holds the values of a vision transformer's config.json section; its flags say where SigLIP, CLIP and ViT differ.
type ViT struct {
	Hidden, Intermediate, Heads int
	// Layers is the number of encoder layers that run; the checkpoint may hold more.
	Layers int
	// ImageSize and PatchSize are sides in pixels. Pixels past the last whole patch are not seen.
	ImageSize, PatchSize int
	Eps                  float32
	Activation           string
	// ClassToken puts a learned embedding before the patches; DropFirst leaves out the first position of the output.
	ClassToken, DropFirst bool
	// PatchBias gives the patch projection a bias, PreNorm normalises before the first layer, PostNorm after the last.
	PatchBias, PreNorm, PostNorm bool
	// NoPositions leaves out the table of positions, NoQKVBias the biases of queries, keys and values.
	NoPositions, NoQKVBias bool
	// RMSNorm makes the two norms of a layer RMS norms. QKNorm has an RMS norm over queries and over keys, all heads at
	// once. LayerScale multiplies what attention and MLP add by a learned vector each.
	RMSNorm, QKNorm, LayerScale bool
	// FeatureLayers gives, in place of the last hidden state, those after so many layers, one after the other on the last
	// axis; 0 is what enters the first layer. None is above Layers.
	FeatureLayers []int
}

// qkNormEps is that of QKNorm, whatever the configuration's layer_norm_eps.
// Reference: transformers InternVLVisionRMSNorm.
const qkNormEps = 1e-6

// maxFeatureLayers is the most hidden states that make one.
const maxFeatureLayers = 64

// maxPatches bounds what one tile may become: its attention takes the square of it.
const maxPatches = 1 << 16

// Side is the number of patches along one side of a tile.
func (c ViT) Side() int { return c.ImageSize / c.PatchSize }

// Patches is the number of patches of one tile.
func (c ViT) Patches() int { return c.Side() * c.Side() }

// Width is the length of one hidden state that the tower gives.
func (c ViT) Width() int { return c.Hidden * max(1, len(c.FeatureLayers)) }

// Outputs is the number of hidden states that the tower gives for one tile.
func (c ViT) Outputs() int {
	n := c.Patches()
	if c.ClassToken {
		n++
	}
	if c.DropFirst {
		n--
	}
	return n
}

// RunBytes bounds what a run of as many tiles as there may be takes on a device beside the weights: the values around
// one layer, with attention's scores, which are not fused away on every device.
func (c ViT) RunBytes() int64 {
	if c.PatchSize == 0 { // images of any size, in a graph that is known by what it gives only
		return 0
	}
	n := c.Outputs() + 1
	tile := n*(8*c.Hidden+2*c.Intermediate+2*c.Hidden*len(c.FeatureLayers)) + 3*c.Heads*n*n + 3*c.ImageSize*c.ImageSize
	return 4 * int64(c.tiles()) * int64(tile)
}

// tiles is the most that one run takes.
func (c ViT) tiles() int { return max(1, targetPatches/c.Patches()) }

// targetPatches bounds the patches of one run: enough to fill the matrix kernels, small enough that
// activations stay tens of megabytes.
const targetPatches = 1024

// Validate refuses values that no graph can be built from, naming the field.
func (c ViT) Validate() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"hidden_size", c.Hidden}, {"intermediate_size", c.Intermediate}, {"num_hidden_layers", c.Layers},
		{"num_attention_heads", c.Heads}, {"image_size", c.ImageSize}, {"patch_size", c.PatchSize},
	} {
		if f.value <= 0 || f.value > 1<<20 {
			return fmt.Errorf("vision_config.%s is %d, want 1 to %d", f.name, f.value, 1<<20)
		}
	}
	if c.Hidden%c.Heads != 0 {
		return fmt.Errorf("vision_config.hidden_size %d is no multiple of num_attention_heads %d", c.Hidden, c.Heads)
	}
	if c.ImageSize < c.PatchSize {
		return fmt.Errorf("vision_config.image_size %d is less than patch_size %d", c.ImageSize, c.PatchSize)
	}
	if c.Patches() > maxPatches {
		return fmt.Errorf("vision_config.image_size %d has %d patches of %d pixels, want at most %d", c.ImageSize, c.Patches(), c.PatchSize, maxPatches)
	}
	if len(c.FeatureLayers) > maxFeatureLayers {
		return fmt.Errorf("vision_feature_layer has %d layers, want at most %d", len(c.FeatureLayers), maxFeatureLayers)
	}
	for _, n := range c.FeatureLayers {
		if n < 0 || n > c.Layers {
			return fmt.Errorf("vision_feature_layer: the state after %d layers of %d", n, c.Layers)
		}
	}
	return graph.CheckActivation("vision_config.hidden_act", c.Activation)
}

// build adds the tower over pixel_values [n, 3, S, S] and returns its hidden states [n, outputs, width]. prefix is the
// canonical prefix of its weights, e.g. "vision.".
// Reference: transformers SiglipVisionTransformer, CLIPVisionTransformer, InternVLVisionModel, and
// Idefics3VisionTransformer with full tiles (identity positions).
func (c ViT) build(b *graph.Builder, prefix, pixels string) string {
	x, positions := c.embed(b, prefix, pixels)
	if c.PreNorm {
		x = b.Wide(b.LayerNorm(x, prefix+"pre_layrnorm", c.Hidden, c.Eps)) // the checkpoints' own spelling
	}
	x = b.Rows(x, c.Hidden)
	states := []string{x}
	for i := range c.Layers {
		x = c.layer(b, fmt.Sprintf("%sencoder.layers.%d.", prefix, i), x, positions)
		states = append(states, x)
	}
	if len(c.FeatureLayers) > 0 {
		var list []string
		for _, n := range c.FeatureLayers {
			list = append(list, states[n])
		}
		x = b.Op("Concat", onnx.Attrs{"axis": -1}, list...)
	}
	x = b.Blocks(x, positions, c.Width())
	if c.PostNorm {
		x = b.LayerNorm(x, prefix+"post_layernorm", c.Hidden, c.Eps)
	}
	if c.DropFirst {
		x = b.Op("Slice", nil, x, b.I64s(1), b.I64s(math.MaxInt64), b.I64s(1))
	}
	return x
}

// embed adds the patch projection, the class token and the positions, of which it returns the number.
func (c ViT) embed(b *graph.Builder, prefix, pixels string) (x string, positions int) {
	in := []string{pixels, b.Weight(prefix+"embeddings.patch_embedding.weight", c.Hidden, 3, c.PatchSize, c.PatchSize)}
	if c.PatchBias {
		in = append(in, b.Weight(prefix+"embeddings.patch_embedding.bias", c.Hidden))
	}
	x = b.Op("Conv", onnx.Attrs{"kernel_shape": []int{c.PatchSize, c.PatchSize},
		"strides": []int{c.PatchSize, c.PatchSize}}, in...)
	x = b.Op("Reshape", nil, x, b.I64s(0, int64(c.Hidden), int64(c.Patches())))
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, x)
	positions = c.Patches()
	add := "" // what is added to all positions, [positions, hidden], a constant
	if c.ClassToken {
		x = b.Op("Pad", nil, x, b.I64s(0, 1, 0, 0, 0, 0))
		class := b.Op("Reshape", nil, b.Weight(prefix+"embeddings.class_embedding", c.Hidden), b.I64s(1, int64(c.Hidden)))
		add = b.Op("Pad", nil, class, b.I64s(0, 0, int64(positions), 0))
		positions++
	}
	if !c.NoPositions {
		table := b.Weight(prefix+"embeddings.position_embedding.weight", positions, c.Hidden)
		if add != "" {
			table = b.Op("Add", nil, table, add)
		}
		add = table
	}
	if add != "" {
		x = b.Op("Add", nil, x, add)
	}
	return x, positions
}

// layer adds one encoder layer, whose weights' prefix is p, over x, which is float32.
func (c ViT) layer(b *graph.Builder, p, x string, positions int) string {
	head := c.Hidden / c.Heads
	outs := []graph.Out{{Prefix: p + "self_attn.q_proj", Dim: c.Hidden},
		{Prefix: p + "self_attn.k_proj", Dim: c.Hidden}, {Prefix: p + "self_attn.v_proj", Dim: c.Hidden}}
	qkv := b.JointLinear(c.norm(b, x, p+"layer_norm1"), c.Hidden, !c.NoQKVBias, outs...)
	if c.QKNorm {
		qkv = b.Split(qkv, outs...)
		qkv[0] = b.RMSNorm(qkv[0], p+"self_attn.q_norm", c.Hidden, qkNormEps)
		qkv[1] = b.RMSNorm(qkv[1], p+"self_attn.k_norm", c.Hidden, qkNormEps)
	}
	a := b.SelfAttention(qkv, c.Heads, head, positions, invSqrt(head))
	x = c.add(b, x, b.Linear(a, p+"self_attn.out_proj", c.Hidden, c.Hidden, true), p+"lambda_1")
	m := b.Activated(c.norm(b, x, p+"layer_norm2"), p+"mlp.fc1", c.Hidden, c.Intermediate, true, c.Activation)
	return c.add(b, x, b.Linear(m, p+"mlp.fc2", c.Intermediate, c.Hidden, true), p+"lambda_2")
}

// norm is one of a layer's two norms.
func (c ViT) norm(b *graph.Builder, x, prefix string) string {
	if c.RMSNorm {
		return b.RMSNorm(x, prefix, c.Hidden, c.Eps)
	}
	return b.LayerNorm(x, prefix, c.Hidden, c.Eps)
}

// add is the residual connection, with the vector that LayerScale multiplies by.
func (c ViT) add(b *graph.Builder, x, more, scale string) string {
	more = b.Wide(more)
	if c.LayerScale {
		more = b.Op("Mul", nil, more, b.Weight(scale, c.Hidden))
	}
	return b.Op("Add", nil, x, more)
}

func invSqrt(n int) float32 { return float32(1 / math.Sqrt(float64(n))) }
