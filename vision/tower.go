package vision

import (
	"context"
	"errors"
)

// Tower is an opened vision tower with its connector. It encodes images part by part: a TiledTower's parts are tiles, a
// NativeTower and an AnySizeTower take each image as one part. One goroutine uses it at a time.
type Tower interface {
	// Parts is the number of an image's parts.
	Parts(img *Image) int
	// MaxParts is the most parts of one run. They may be of different images.
	MaxParts() int
	// Load puts part i of an image at a place of the next run, 0 to MaxParts-1. It refuses an image that was not prepared
	// for the tower, and with errFull, at any place but the first, one that the run has no room for.
	Load(place int, img *Image, i int, normalize Normalizer) error
	// Run encodes the parts at the first n places. It ends early, with the context's cause, when ctx ends.
	Run(ctx context.Context, n int) error
	// Patches are the patch embeddings, [tokens, width] row-major, of the part at a place of the last run. They are valid
	// until the next Load or Run.
	Patches(place int) []float32
	// Pack makes the patch embeddings of an image out of those of its parts, in order. The result may be patches itself.
	Pack(g Grid, patches []float32) []float32
	// Wipe puts zeros over what is left of images.
	Wipe() error
	// WarmUp runs what the first images would otherwise wait for.
	WarmUp() error
	Close() error
}

// errFull is Load's error where a run has no room for a part beside those that are loaded: it is one of the next run.
var errFull = errors.New("vision tower: the run has no room for another image")

// Normalizer maps the bytes of a part, planar RGB, to the pixel values that its tower takes. A tower that takes a patch
// several times has a dst as many times as long as src.
type Normalizer func(dst []float32, src []uint8)

// Encode encodes one image by itself. Its patch embeddings, packed, are the caller's.
func Encode(t Tower, img *Image, normalize Normalizer) ([]float32, error) {
	var patches []float32
	for i, parts := 0, t.Parts(img); i < parts; {
		n := min(t.MaxParts(), parts-i)
		for place := range n {
			err := t.Load(place, img, i+place, normalize)
			if place > 0 && errors.Is(err, errFull) {
				n = place
				break
			}
			if err != nil {
				return nil, err
			}
		}
		if err := t.Run(context.Background(), n); err != nil {
			return nil, err
		}
		for place := range n {
			patches = append(patches, t.Patches(place)...)
		}
		i += n
	}
	return t.Pack(img.Grid, patches), nil
}

var (
	_ Tower = (*TiledTower)(nil)
	_ Tower = (*NativeTower)(nil)
	_ Tower = (*AnySizeTower)(nil)
)
