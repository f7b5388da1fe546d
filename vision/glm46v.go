package vision

import "context"

// Glm46V is the preprocessing of GLM-OCR, GLM-4.1V and GLM-4.6V: Qwen2VL's, with limits of the area that hold for all
// frames of a still together, and small images raised to one block.
// Reference: transformers 5.12 Glm46VImageProcessorPil, Glm4vImageProcessorPil, which it gives bit for bit from equal
// RGB.
type Glm46V struct{ Qwen2VL }

func parseGlm46V(raw []byte, tower Patches) (Preprocessor, error) {
	p, err := Qwen2VL{
		MinPixels: 112 * 112, MaxPixels: 28 * 28 * 15000, PatchSize: 14, MergeSize: 2, TemporalPatchSize: 2, Resample: 3,
	}.parse(raw, tower, 2)
	return Glm46V{p}, err
}

// raise brings a side that is shorter than a block to a block's, its aspect kept.
func (p Glm46V) raise(w, h int) (int, int) {
	side := float64(p.PatchSize * p.MergeSize)
	width, height := float64(w), float64(h)
	if width < side || height < side {
		scale := max(side/height, side/width)
		w, h = int(width*scale), int(height*scale)
	}
	return w, h
}

// Grid implements Preprocessor.
func (p Glm46V) Grid(w, h int) Grid {
	w, h = p.raise(w, h)
	return p.area(p.TemporalPatchSize).resize(w, h)
}

// Measure implements Preprocessor.
func (p Glm46V) Measure(w, h int, _ bool) (Measured, error) {
	rw, rh := p.raise(w, h)
	return measurePatches(p, w, h, [2]int{rw, rh})
}

// Prepare implements Preprocessor.
func (p Glm46V) Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error) {
	return prepare(ctx, p, data, l, split, patchRecipe(p, p.Resample))
}

// Smaller implements Shrinker.
func (p Glm46V) Smaller() (Preprocessor, bool) {
	q, ok := p.smaller(p.TemporalPatchSize)
	return Glm46V{q}, ok
}
