package vision

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
)

// AnySize holds the values of a vision tower that takes an image of any size as one sequence of patches: a square block
// of them becomes one patch embedding. All that depends on an image's shape is computed outside its graph.
type AnySize struct {
	// NativeResolution's Width is that of a patch embedding with what Deepstack adds to it.
	NativeResolution
	// Frames is the number of frames that the patch projection is over, all of them the image; 0 where it is over one.
	Frames int

	// PixelsLast says that a patch has the three values of a pixel side by side, and the projection is a matrix.
	PixelsLast bool

	Hidden, Intermediate, Layers, Heads int
	Norm                                Norm
	Activation                          string
	// GatedMLP multiplies the activation of one projection by another.
	GatedMLP bool
	// JointQKV says that queries, keys and values are projected by one matrix; QKNorm normalises queries and keys by head.
	JointQKV, QKNorm bool
	// PatchBias, QKVBias, OutBias and MLPBias say which projections carry a bias.
	PatchBias, QKVBias, OutBias, MLPBias bool
	// PatchNorm normalises what the patch projection gives, PostNorm what the last layer gives.
	PatchNorm, PostNorm bool
	// Rope rotates queries and keys, unless NoRope is set.
	Rope   AxisRope
	NoRope bool
	// Positions is a learned table that is sampled for an image's shape; the zero value is none.
	Positions PositionTable
	// Window is the side, in patches, of the squares within which layers attend; 0 is none. Those of Whole attend to all.
	Window int
	Whole  []int
	// Deepstack are the layers whose hidden states become embeddings of their own, after one another behind the last's.
	Deepstack []int
	Merger    Merger
}

// Norm is a norm over the last axis: RMSNorm, or else LayerNorm.
type Norm struct {
	RMS bool
	Eps float32
}

func (n Norm) build(b *graph.Builder, x, prefix string, dim int) string {
	if n.RMS {
		return b.RMSNorm(x, prefix, dim, n.Eps)
	}
	return b.LayerNorm(x, prefix, dim, n.Eps)
}

// Merger maps the hidden states of a block of patches to one patch embedding. The implementations are values, one file
// each.
type Merger interface {
	// Validate refuses a merger that does not fit its tower.
	Validate(t AnySize) error
	// build maps [patches, hidden], those of a block side by side, to [tokens, width]. prefix is that of its weights.
	build(b *graph.Builder, x, prefix string, t AnySize) string
}

// mostAnySize is the most patches of an image: as many as the largest that a released processor makes.
const mostAnySize = 1 << 16

// values is the number of pixel values of a patch.
func (c AnySize) values() int { return 3 * max(c.Frames, 1) * c.PatchSize * c.PatchSize }

// head is the size of a head.
func (c AnySize) head() int { return c.Hidden / c.Heads }

// merged is the width of one of the embeddings that a patch embedding consists of.
func (c AnySize) merged() int { return c.Width / (1 + len(c.Deepstack)) }

// Validate refuses values that no graph can be built from, naming the field.
func (c AnySize) Validate() error {
	for _, f := range []struct {
		name        string
		value, most int
	}{
		{"hidden_size", c.Hidden, 1 << 17}, {"intermediate_size", c.Intermediate, 1 << 20},
		{"the number of layers", c.Layers, 1 << 10}, {"the number of heads", c.Heads, 1 << 11},
		{"patch_size", c.PatchSize, 64}, {"spatial_merge_size", c.MergeSize, 8},
	} {
		if f.value < 1 || f.value > f.most {
			return fmt.Errorf("vision_config: %s is %d, want 1 to %d", f.name, f.value, f.most)
		}
	}
	if c.Frames < 0 || c.Frames > 8 {
		return fmt.Errorf("vision_config.temporal_patch_size is %d, want 1 to 8", c.Frames)
	}
	if c.Hidden%c.Heads != 0 || c.head()%4 != 0 || c.head() > 1024 {
		return fmt.Errorf("vision_config: %d heads over a width of %d, want heads of 4 to 1024, multiples of 4", c.Heads, c.Hidden)
	}
	if c.Window < 0 || c.Window > 1<<12 || c.Window%c.MergeSize != 0 {
		return fmt.Errorf("vision_config: windows of %d patches, want multiples of the %d of a block", c.Window, c.MergeSize)
	}
	for _, list := range [][]int{c.Whole, c.Deepstack} {
		for i, layer := range list {
			if layer < 0 || layer >= c.Layers || i > 0 && layer <= list[i-1] {
				return fmt.Errorf("vision_config: layers %v, want numbers from 0 to %d, each once and in order", list, c.Layers-1)
			}
		}
	}
	if c.Width%(1+len(c.Deepstack)) != 0 || c.Width < 1 {
		return fmt.Errorf("vision tower: patch embeddings of %d values in %d parts", c.Width, 1+len(c.Deepstack))
	}
	if tile := c.PatchSize * c.MergeSize; c.TileSize < 0 || c.TileSize > maxSide || c.TileSize%tile != 0 {
		return fmt.Errorf("tile_size is %d, want a multiple of %d up to %d", c.TileSize, tile, maxSide)
	}
	if err := c.Rope.validate(); !c.NoRope && err != nil {
		return err
	}
	if err := c.Positions.validate(); err != nil {
		return err
	}
	if err := graph.CheckActivation("vision_config.hidden_act", c.Activation); err != nil {
		return err
	}
	return c.Merger.Validate(c)
}
