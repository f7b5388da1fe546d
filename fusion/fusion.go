// Package fusion lays text tokens and image patches out as one input sequence: it writes placeholders into
// the prompt, finds them again among the ids, and puts patch embeddings over them.
package fusion

import (
	"cmp"

	"github.com/mmserve/mmserve/vision"
)

// Layout says how a model family writes an image into its prompt. It is a value, read once at load.
type Layout struct {
	// Placeholder is the text the chat template writes where an image goes, e.g. "<image>".
	Placeholder string
	// Expand returns the text that replaces one placeholder for an image cut as g.
	Expand func(g vision.Grid) string
	// ImageTokenID is the id of the position that a patch embedding takes. ImageToken is its text; "" is Placeholder.
	ImageTokenID int32
	ImageToken   string
	// PatchTokens is the number of patch embeddings the connector gives for one tile.
	PatchTokens int
	// ImageTokens is the number of patch embeddings of an image cut as g; nil where every tile has PatchTokens.
	ImageTokens func(g vision.Grid) int
	// Map is the shape of the map that an image's patches form, for a decoder whose positions follow it; else nil.
	Map func(g vision.Grid) (rows, cols int)
	// SplitAlone leaves images whole where a prompt has more than one.
	SplitAlone bool
	// AddPlaceholder gives the tokenizer a token for the placeholder, with ImageTokenID, where it has none.
	AddPlaceholder bool
	// Frame is set for a model whose prompts are images, then text, with nothing else to tell them apart.
	Frame *Frame
}

// PatchToken is the text of the position that a patch embedding takes.
func (l Layout) PatchToken() string { return cmp.Or(l.ImageToken, l.Placeholder) }

// Frame is what stands around the text of a prompt: Start between the last image and it, End after it. Placeholders
// that a prompt lacks are put before it. Before stands before the first image.
type Frame struct {
	Before, Start, End string
	// Ask is what to say for the text of a prompt; nil for the text itself.
	Ask func(text string) string
	// OneImage makes a prompt one image and nothing else: its text is not read.
	OneImage bool
}

// Span is a run of consecutive prompt positions that hold patch embeddings of one image.
type Span struct {
	// Start is the first prompt position, Len the number of positions.
	Start, Len int
	// Image is the index of the image in the request; Offset the first row of its patches used here.
	Image, Offset int
	// Rows and Cols are the image's Layout.Map, 0 without.
	Rows, Cols int
	// File and Digest are that image's, as in vision.Image.
	File, Digest [32]byte
	// Patches is [Len, width] float32, row-major; nil until Attach. A row is a patch embedding, and in some models
	// features for layers of the decoder behind it (see PlacePart).
	Patches []float32
}

// Input is one prompt, ready to be run: ids with the image spans that lie over them.
type Input struct {
	IDs   []int32
	Spans []Span
}
