package vision

import (
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// SigLIP holds the values of a SigLIP tower's config.json section.
type SigLIP struct {
	Hidden, Intermediate, Layers, Heads int
	// ImageSize and PatchSize are sides in pixels.
	ImageSize, PatchSize int
	Eps                  float32
	Activation           string
}

// Patches is the number of patches of one tile.
func (c SigLIP) Patches() int { g := c.ImageSize / c.PatchSize; return g * g }

// Validate refuses values that no graph can be built from, naming the field.
func (c SigLIP) Validate() error {
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
	if c.ImageSize%c.PatchSize != 0 {
		return fmt.Errorf("vision_config.image_size %d is no multiple of patch_size %d", c.ImageSize, c.PatchSize)
	}
	return graph.CheckActivation("vision_config.hidden_act", c.Activation)
}

// build adds the tower over pixel_values [n, 3, S, S] and returns the last hidden state after the final norm,
// [n, patches, hidden]. prefix is the canonical prefix of its weights, e.g. "vision.".
// Reference: transformers SiglipVisionTransformer, Idefics3VisionTransformer with full tiles (identity positions).
func (c SigLIP) build(b *graph.Builder, prefix, pixels string) string {
	head := c.Hidden / c.Heads
	x := b.Op("Conv", onnx.Attrs{"kernel_shape": []int{c.PatchSize, c.PatchSize}, "strides": []int{c.PatchSize, c.PatchSize}},
		pixels, b.Weight(prefix+"embeddings.patch_embedding.weight", c.Hidden, 3, c.PatchSize, c.PatchSize),
		b.Weight(prefix+"embeddings.patch_embedding.bias", c.Hidden))
	x = b.Op("Reshape", nil, x, b.I64s(0, int64(c.Hidden), int64(c.Patches())))
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1}}, x)
	x = b.Op("Add", nil, x, b.Weight(prefix+"embeddings.position_embedding.weight", c.Patches(), c.Hidden))
	for i := range c.Layers {
		p := fmt.Sprintf("%sencoder.layers.%d.", prefix, i)
		n := b.LayerNorm(x, p+"layer_norm1", c.Hidden, c.Eps)
		q := b.Linear(n, p+"self_attn.q_proj", c.Hidden, c.Hidden, true)
		k := b.Linear(n, p+"self_attn.k_proj", c.Hidden, c.Hidden, true)
		v := b.Linear(n, p+"self_attn.v_proj", c.Hidden, c.Hidden, true)
		a := b.ContribOp("MultiHeadAttention", onnx.Attrs{"num_heads": c.Heads, "scale": invSqrt(head)}, q, k, v)
		x = b.Op("Add", nil, x, b.Linear(a, p+"self_attn.out_proj", c.Hidden, c.Hidden, true))
		n = b.LayerNorm(x, p+"layer_norm2", c.Hidden, c.Eps)
		m := b.Activation(c.Activation, b.Linear(n, p+"mlp.fc1", c.Hidden, c.Intermediate, true))
		x = b.Op("Add", nil, x, b.Linear(m, p+"mlp.fc2", c.Intermediate, c.Hidden, true))
	}
	return b.LayerNorm(x, prefix+"post_layernorm", c.Hidden, c.Eps)
}

// PixelShuffle is the connector of Idefics3: Scale×Scale neighbouring patches become one, projected without bias
// to the text model's width.
type PixelShuffle struct {
	Scale, TextHidden int
}

// Tokens is the number of patch embeddings that one tile of the given tower gives.
func (c PixelShuffle) Tokens(t SigLIP) int { return t.Patches() / (c.Scale * c.Scale) }

// Validate refuses a connector that does not fit its tower.
func (c PixelShuffle) Validate(t SigLIP) error {
	if side := t.ImageSize / t.PatchSize; c.Scale <= 0 || side%c.Scale != 0 {
		return fmt.Errorf("scale_factor is %d, want a divisor of the %d patches a side", c.Scale, side)
	}
	return nil
}

// build maps [n, patches, hidden] to [n, tokens, text hidden].
// Reference: transformers Idefics3Connector.pixel_shuffle; the channel order inside a block is row, column, channel.
func (c PixelShuffle) build(b *graph.Builder, x string, t SigLIP) string {
	side, r := t.ImageSize/t.PatchSize, c.Scale
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(side/r), int64(r), int64(side/r), int64(r*t.Hidden)))
	x = b.Op("Transpose", onnx.Attrs{"perm": []int{0, 1, 3, 2, 4}}, x)
	x = b.Op("Reshape", nil, x, b.I64s(-1, int64(c.Tokens(t)), int64(r*r*t.Hidden)))
	return b.Linear(x, "connector.modality_projection.proj", r*r*t.Hidden, c.TextHidden, false)
}

// Tower is an opened vision tower with its connector. It is used by one goroutine at a time.
type Tower struct {
	session *ort.Session
	pixels  *ort.Memory[float32]
	patches *ort.Memory[float32]
	// MaxTiles is the most tiles one Run takes. TilePixels and TilePatches are float32 elements for one tile.
	MaxTiles, TilePixels, TilePatches int
	shape                             SigLIP
	tokens, hidden                    int
}

// targetPatches bounds the patches of one run: enough to fill the matrix kernels, small enough that
// activations stay tens of megabytes.
const targetPatches = 4096

// OpenTower builds the graph of a SigLIP tower with a pixel-shuffle connector and opens its session.
func OpenTower(w *graph.Weights, t SigLIP, c PixelShuffle, o ort.Options) (*Tower, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	if err := c.Validate(t); err != nil {
		return nil, err
	}
	b := graph.NewBuilder("vision", w)
	x := b.Input("pixel_values", onnx.F32, "tiles", 3, t.ImageSize, t.ImageSize)
	x = c.build(b, t.build(b, "vision.", x), t)
	b.Name(x, "image_features")
	b.Output("image_features", onnx.F32, "tiles", c.Tokens(t), c.TextHidden)
	if err := b.Err(); err != nil {
		return nil, err
	}
	o.ExternalDir = w.Root()
	s, err := ort.NewSession(b, o)
	if err != nil {
		return nil, fmt.Errorf("vision tower: %w", err)
	}
	tw := &Tower{
		session: s, shape: t, tokens: c.Tokens(t), hidden: c.TextHidden,
		MaxTiles:    max(1, targetPatches/t.Patches()),
		TilePixels:  3 * t.ImageSize * t.ImageSize,
		TilePatches: c.Tokens(t) * c.TextHidden,
	}
	if tw.pixels, err = ort.Alloc[float32](tw.MaxTiles * tw.TilePixels); err != nil {
		tw.Close()
		return nil, err
	}
	if tw.patches, err = ort.Alloc[float32](tw.MaxTiles * tw.TilePatches); err != nil {
		tw.Close()
		return nil, err
	}
	return tw, nil
}

// Input is where the normalised pixel values of the next Run go: tile i at [i*TilePixels, (i+1)*TilePixels).
func (t *Tower) Input() []float32 { return t.pixels.Slice() }

// Run encodes the first n tiles of Input. The result, n × TilePatches values, is valid until the next Run.
func (t *Tower) Run(n int) ([]float32, error) {
	if n < 1 || n > t.MaxTiles {
		return nil, fmt.Errorf("vision tower: %d tiles in one run, want 1 to %d", n, t.MaxTiles)
	}
	in, err := ort.View(t.pixels.Slice(), n, 3, t.shape.ImageSize, t.shape.ImageSize)
	if err != nil {
		return nil, err
	}
	defer in.Destroy()
	out, err := ort.View(t.patches.Slice(), n, t.tokens, t.hidden)
	if err != nil {
		return nil, err
	}
	defer out.Destroy()
	if err := t.session.Run([]ort.Tensor{in}, []ort.Tensor{out}); err != nil {
		return nil, fmt.Errorf("vision tower: %w", err)
	}
	return t.patches.Slice()[:n*t.TilePatches], nil
}

// Close frees the session and its memory.
func (t *Tower) Close() error {
	err := t.session.Close()
	t.pixels.Free()
	t.patches.Free()
	return err
}

func invSqrt(n int) float32 { return float32(1 / math.Sqrt(float64(n))) }
