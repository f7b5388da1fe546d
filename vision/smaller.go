package vision

import "slices"

// Shrinker is a Preprocessor that can bring images to fewer pixels than its settings say, for fewer positions in a
// prompt.
type Shrinker interface {
	// Smaller is the same with the next smaller size, false where there is none.
	Smaller() (Preprocessor, bool)
}

// Smaller implements Shrinker: the longer side has one tile less.
func (p Idefics3) Smaller() (Preprocessor, bool) {
	tiles := (p.Size+p.MaxImageSize-1)/p.MaxImageSize - 1
	if !p.DoResize || !p.Split || tiles < 1 {
		return nil, false
	}
	p.Size = tiles * p.MaxImageSize
	return p, true
}

// Smaller implements Shrinker: the resolutions of most tiles are left out.
func (p AnyResTiles) Smaller() (Preprocessor, bool) {
	most := 0
	for _, r := range p.Pinpoints {
		most = max(most, r[0]*r[1])
	}
	p.Pinpoints = slices.DeleteFunc(slices.Clone(p.Pinpoints), func(r [2]int) bool { return r[0]*r[1] == most })
	return p, len(p.Pinpoints) > 0
}

// Smaller implements Shrinker: the area is an eighth less.
func (p Qwen2VL) Smaller() (Preprocessor, bool) {
	block := p.PatchSize * p.MergeSize
	area := p.MaxPixels - max(p.MaxPixels/8, block*block)
	if area < block*block {
		return nil, false
	}
	p.MaxPixels, p.MinPixels = area, min(p.MinPixels, area)
	return p, true
}

// Interface guards.
var (
	_ Shrinker = Idefics3{}
	_ Shrinker = AnyResTiles{}
	_ Shrinker = Qwen2VL{}
)
