package vision

import (
	"context"
	"math"
)

// PaddleOCRVL is the preprocessing of PaddleOCR-VL: Qwen2VL's with one frame, and small images raised to one block.
// Reference: transformers 5.12 PaddleOCRVLImageProcessorPil, whose patches it gives bit for bit from equal RGB; there
// they come row by row.
type PaddleOCRVL struct{ Qwen2VL }

func parsePaddleOCRVL(raw []byte, tower Patches) (Preprocessor, error) {
	p, err := Qwen2VL{
		MinPixels: 384 * 384, MaxPixels: 1536 * 1536, PatchSize: 14, MergeSize: 2, TemporalPatchSize: 1, Resample: 3,
	}.parse(raw, tower, 1)
	return PaddleOCRVL{p}, err
}

// raise brings a side that is shorter than a block to a block's, first down, then across, its aspect kept.
func (p PaddleOCRVL) raise(w, h int) (int, int) {
	side := p.PatchSize * p.MergeSize
	scaled := func(long, short int) int { return int(math.RoundToEven(float64(long*side) / float64(short))) }
	if h < side {
		w, h = scaled(w, h), side
	}
	if w < side {
		w, h = side, scaled(h, w)
	}
	return w, h
}

// Grid implements Preprocessor.
func (p PaddleOCRVL) Grid(w, h int) Grid {
	w, h = p.raise(w, h)
	return p.area(1).resize(w, h)
}

// Measure implements Preprocessor.
func (p PaddleOCRVL) Measure(w, h int, _ bool) (Measured, error) {
	rw, rh := p.raise(w, h)
	return measurePatches(p, w, h, [2]int{rw, rh})
}

// Prepare implements Preprocessor.
func (p PaddleOCRVL) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	return prepare(ctx, p, data, l, split, patchRecipe(p, p.Resample))
}

// Smaller implements Shrinker.
func (p PaddleOCRVL) Smaller() (Preprocessor, bool) {
	q, ok := p.smaller(1)
	return PaddleOCRVL{q}, ok
}
