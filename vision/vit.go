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
}

// maxPatches bounds what one tile may become: its attention takes the square of it.
const maxPatches = 1 << 16

// Side is the number of patches along one side of a tile.
func (c ViT) Side() int { return c.ImageSize / c.PatchSize }

// Patches is the number of patches of one tile.
func (c ViT) Patches() int { return c.Side() * c.Side() }

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
	tile := n*(8*c.Hidden+2*c.Intermediate) + 3*c.Heads*n*n + 3*c.ImageSize*c.ImageSize
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
	return graph.CheckActivation("vision_config.hidden_act", c.Activation)
}

// build adds the tower over pixel_values [n, 3, S, S] and returns its hidden states [n, outputs, hidden]. prefix is the
// canonical prefix of its weights, e.g. "vision.".
// Reference: transformers SiglipVisionTransformer, CLIPVisionTransformer, and Idefics3VisionTransformer with full
// tiles (identity positions).
func (c ViT) build(b *graph.Builder, prefix, pixels string) string {
	head := c.Hidden / c.Heads
	in := []string{pixels, b.Weight(prefix+"embeddings.patch_embedding.weight", c.Hidden, 3, c.PatchSize, c.PatchSize)}
	if c.PatchBias {
		in = append(in, b.Weight(prefix+"embeddings.patch_embedding.bias", c.Hidden))
	}
	x := b.Op("Conv", onnx.Attrs{"kernel_shape": []int{c.PatchSize, c.PatchSize},
		"strides": []int{c.PatchSize, c.PatchSize}}, in...)
	x = b.Op("Reshape", nil, x, b.I64s(0, int64(c.Hidden), int64(c.Patches())))
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, x)
	positions := c.Patches()
	if c.ClassToken {
		tiles := b.Op("Shape", onnx.Attrs{"start": 0, "end": 1}, x)
		class := b.Op("Expand", nil, b.Weight(prefix+"embeddings.class_embedding", c.Hidden),
			b.Op("Concat", onnx.Attrs{"axis": 0}, tiles, b.I64s(1, int64(c.Hidden))))
		x = b.Op("Concat", onnx.Attrs{"axis": 1}, class, x)
		positions++
	}
	x = b.Op("Add", nil, x, b.Weight(prefix+"embeddings.position_embedding.weight", positions, c.Hidden))
	if c.PreNorm {
		x = b.LayerNorm(x, prefix+"pre_layrnorm", c.Hidden, c.Eps) // the checkpoints' own spelling
	}
	x = b.Rows(x, c.Hidden)
	for i := range c.Layers {
		p := fmt.Sprintf("%sencoder.layers.%d.", prefix, i)
		n := b.LayerNorm(x, p+"layer_norm1", c.Hidden, c.Eps)
		outs := []graph.Out{{Prefix: p + "self_attn.q_proj", Dim: c.Hidden},
			{Prefix: p + "self_attn.k_proj", Dim: c.Hidden}, {Prefix: p + "self_attn.v_proj", Dim: c.Hidden}}
		a := b.SelfAttention(b.JointLinear(n, c.Hidden, true, outs...), c.Heads, head, positions, invSqrt(head))
		x = b.Op("Add", nil, x, b.Wide(b.Linear(a, p+"self_attn.out_proj", c.Hidden, c.Hidden, true)))
		n = b.LayerNorm(x, p+"layer_norm2", c.Hidden, c.Eps)
		m := b.Activated(n, p+"mlp.fc1", c.Hidden, c.Intermediate, true, c.Activation)
		x = b.Op("Add", nil, x, b.Wide(b.Linear(m, p+"mlp.fc2", c.Intermediate, c.Hidden, true)))
	}
	x = b.Blocks(x, positions, c.Hidden)
	if c.PostNorm {
		x = b.LayerNorm(x, prefix+"post_layernorm", c.Hidden, c.Eps)
	}
	if c.DropFirst {
		x = b.Op("Slice", nil, x, b.I64s(1), b.I64s(math.MaxInt64), b.I64s(1))
	}
	return x
}

func invSqrt(n int) float32 { return float32(1 / math.Sqrt(float64(n))) }
