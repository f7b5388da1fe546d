package vision

import (
	"errors"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
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

// RunBytes bounds what a run of as many tiles as there may be takes on a device beside the weights: the values around one
// layer, with attention's scores, which are not fused away on every device.
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
	x := b.Op("Conv", onnx.Attrs{"kernel_shape": []int{c.PatchSize, c.PatchSize}, "strides": []int{c.PatchSize, c.PatchSize}}, in...)
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
		outs := []graph.Out{{Prefix: p + "self_attn.q_proj", Dim: c.Hidden}, {Prefix: p + "self_attn.k_proj", Dim: c.Hidden}, {Prefix: p + "self_attn.v_proj", Dim: c.Hidden}}
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

// Tower is an opened vision tower with its connector. It is used by one goroutine at a time.
type Tower struct {
	session *ort.Session
	pixels  *ort.Floats
	patches *ort.Floats
	// MaxTiles is the most tiles one Run takes. TilePixels and TilePatches are float32 elements for one tile.
	MaxTiles, TilePixels, TilePatches int
	shape                             ViT
	connector                         Connector
	packWeights                       [][]float32 // values of the connector's packWeights
	feeds                             feeds
	native                            *nativeTower // nil where images come in tiles
}

// feeds are the shapes of a graph's values for n tiles.
type feeds struct {
	pixels, patches func(n int) []int
	// mask tells of each pixel that it is one, in graphs that want to know; it has shape masks.
	mask  *ort.Memory[uint8]
	masks func(n int) []int
}

// targetPatches bounds the patches of one run: enough to fill the matrix kernels, small enough that
// activations stay tens of megabytes.
const targetPatches = 1024

// TowerGraph builds the graph of a tower with its connector: pixel_values [tiles, 3, S, S] to image_features
// [tiles, tokens, text hidden].
func TowerGraph(w *graph.Weights, t ViT, c Connector, p graph.Precision) (*graph.Builder, error) {
	return towerGraph(w, t, c, p, graph.Target{})
}

func towerGraph(w *graph.Weights, t ViT, c Connector, p graph.Precision, on graph.Target) (*graph.Builder, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	if err := c.Validate(t); err != nil {
		return nil, err
	}
	b := graph.NewBuilder("vision", w, p)
	b.Target = on
	x := b.Input("pixel_values", onnx.F32, "tiles", 3, t.ImageSize, t.ImageSize)
	x = c.build(b, t.build(b, "vision.", x), t)
	b.Name(b.Wide(x), "image_features")
	b.Output("image_features", onnx.F32, "tiles", c.Tokens(t), c.Width())
	if err := b.Err(); err != nil {
		return b, err
	}
	for _, s := range c.packWeights() { // a checkpoint without them is refused with the graph's
		if _, err := w.Get(s.Name, s.Dims...); err != nil {
			return b, err
		}
	}
	return b, nil
}

// readPackWeights reads what packing an image's tiles takes.
func readPackWeights(w *graph.Weights, c Connector) (list [][]float32, err error) {
	for _, s := range c.packWeights() {
		t, err := w.Get(s.Name, s.Dims...)
		if err != nil {
			return nil, err
		}
		values, err := t.Floats()
		if err != nil {
			return nil, err
		}
		list = append(list, values)
	}
	return list, nil
}

// OpenTower opens a session over TowerGraph.
func OpenTower(w *graph.Weights, t ViT, c Connector, p graph.Precision, o ort.Options) (*Tower, error) {
	on, err := graph.TargetOf(o, p)
	if err != nil {
		return nil, err
	}
	b, err := towerGraph(w, t, c, p, on)
	if err != nil {
		return nil, err
	}
	o.ExternalDir, o.Background = graph.Root, true // answers under way do not wait for images
	s, err := ort.NewSession(b, o)
	if err != nil {
		return nil, fmt.Errorf("vision tower: %w", err)
	}
	tw := &Tower{
		session: s, shape: t, connector: c,
		MaxTiles:    t.tiles(),
		TilePixels:  3 * t.ImageSize * t.ImageSize,
		TilePatches: c.Tokens(t) * c.Width(),
	}
	if tw.packWeights, err = readPackWeights(w, c); err != nil {
		return nil, errors.Join(err, tw.Close())
	}
	tw.feeds = feeds{
		pixels:  func(n int) []int { return []int{n, 3, t.ImageSize, t.ImageSize} },
		patches: func(n int) []int { return []int{n, c.Tokens(t), c.Width()} },
	}
	if err := tw.reserve(onnx.F32, onnx.F32); err != nil {
		tw.Close()
		return nil, err
	}
	return tw, nil
}

// WarmUp runs a tower on a device once in each number of tiles for which its kernels differ. Elsewhere it does nothing.
func (t *Tower) WarmUp() error {
	if t.session.Device() == nil || t.native != nil {
		return nil
	}
	for _, n := range []int{1, 2, 3, 4, t.MaxTiles} { // kernels differ by what divides their rows
		if _, err := t.Run(min(n, t.MaxTiles)); err != nil {
			return err
		}
	}
	return nil
}

// reserve makes room for a run's pixel values and patch embeddings, which are of the given types in the graph.
func (t *Tower) reserve(pixels, patches onnx.DType) (err error) {
	if t.pixels, err = ort.AllocFloats(pixels, t.MaxTiles*t.TilePixels); err == nil {
		t.patches, err = ort.AllocFloats(patches, t.MaxTiles*t.TilePatches)
	}
	return err
}

// Input is where the normalised pixel values of the next Run go: tile i at [i*TilePixels, (i+1)*TilePixels).
func (t *Tower) Input() []float32 { return t.pixels.Slice() }

// Run encodes the first n tiles of Input. The result, n × TilePatches values, is valid until the next Run.
func (t *Tower) Run(n int) ([]float32, error) {
	if n < 1 || n > t.MaxTiles {
		return nil, fmt.Errorf("vision tower: %d tiles in one run, want 1 to %d", n, t.MaxTiles)
	}
	t.pixels.Store(n * t.TilePixels)
	px, err := t.pixels.View(t.feeds.pixels(n)...)
	if err != nil {
		return nil, err
	}
	defer px.Destroy()
	in := []ort.Tensor{px}
	if t.feeds.mask != nil {
		mask, err := ort.ViewAs(t.feeds.mask.Slice(), onnx.Bool, t.feeds.masks(n)...)
		if err != nil {
			return nil, err
		}
		defer mask.Destroy()
		in = append(in, mask)
	}
	out, err := t.patches.View(t.feeds.patches(n)...)
	if err != nil {
		return nil, err
	}
	defer out.Destroy()
	if err := t.session.Run(in, []ort.Tensor{out}); err != nil {
		return nil, fmt.Errorf("vision tower: %w", err)
	}
	return t.patches.Load(0, n*t.TilePatches), nil
}

// Pack makes the patch embeddings of an image out of those of its tiles, in order. The result may be patches itself.
func (t *Tower) Pack(g Grid, patches []float32) []float32 {
	return t.connector.pack(t.shape, g, patches, t.packWeights)
}

// Close frees the session and its memory.
func (t *Tower) Close() error {
	var err error
	if t.session != nil {
		err = t.session.Close()
	}
	t.pixels.Free()
	t.patches.Free()
	t.feeds.mask.Free()
	if t.native != nil {
		t.native.thw.Free()
	}
	return err
}

func invSqrt(n int) float32 { return float32(1 / math.Sqrt(float64(n))) }
