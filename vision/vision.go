// Package vision turns encoded images into patch embeddings: decode, orient, resize, split into tiles,
// normalise, run the vision tower, cache the result.
//
// Prepare runs on the caller's goroutine and touches the CPU only; Encoder owns one worker goroutine that
// batches the tiles of concurrent callers into one tower run.
package vision

import "time"

// Grid says how one image was cut into tiles.
// Rows = Cols = 0 means it was not split and is a single tile.
// A split image has Rows×Cols tiles in row-major order, and one tile of the whole image.
type Grid struct {
	Rows, Cols int
	// Width and Height are 0 unless the number of patches depends on them: the image's in pixels with AnyResTiles, with a
	// Patcher those that it was resized to; of an image that Lfm2VL cuts, those of the tile of the whole.
	Width, Height int
}

// Tiles is the number of tower inputs the grid stands for.
func (g Grid) Tiles() int { return g.Rows*g.Cols + 1 }

// Image is a prepared image: what the tower needs and nothing that was in the file besides.
type Image struct {
	// File is the SHA-256 of the encoded bytes, Digest that of File and of the preprocessing that was applied.
	File, Digest [32]byte
	// Tenant is whose embeddings of the image may be reused; empty for those of callers without a tenant.
	Tenant string
	// Width and Height are those of the image after orientation, before any resizing, in pixels.
	Width, Height int
	Grid          Grid
	// Size is the side of one tile in pixels, with a Patcher of one patch.
	Size int
	// Frames is how many times the pixel values of a patch are to be repeated; 0 where nobody says.
	Frames int
	// Pixels holds Grid.Tiles() tiles, each planar RGB: [tiles, 3, Size, Size] bytes, not yet normalised. With a
	// Patcher it holds patches, those that become one token side by side: [patches, 3, Size, Size].
	Pixels []uint8
	// Started is when decoding began, after the budget had room.
	Started time.Time
	// Decoded is when the file was decoded and scaled once; the two run side by side.
	Decoded time.Time
}
