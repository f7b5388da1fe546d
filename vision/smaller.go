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
	list, ok := p.Pinpoints.fewer()
	p.Pinpoints = list
	return p, ok
}

// fewer leaves the resolutions of most tiles out, false where none remain.
func (list Pinpoints) fewer() (Pinpoints, bool) {
	most := 0
	for _, r := range list {
		most = max(most, r[0]*r[1])
	}
	list = slices.DeleteFunc(slices.Clone(list), func(r [2]int) bool { return r[0]*r[1] == most })
	return list, len(list) > 0
}

// Smaller implements Shrinker.
func (p Qwen2VL) Smaller() (Preprocessor, bool) { return p.smaller(1) }

// smaller has an eighth less area, where the limits hold for so many frames together.
func (p Qwen2VL) smaller(frames int) (Qwen2VL, bool) {
	block := frames * p.PatchSize * p.MergeSize * p.PatchSize * p.MergeSize
	area := p.MaxPixels - max(p.MaxPixels/8, block)
	if area < block {
		return p, false
	}
	p.MaxPixels, p.MinPixels = area, min(p.MinPixels, area)
	return p, true
}

// Interface guards.
var (
	_ Shrinker = Idefics3{}
	_ Shrinker = AnyResTiles{}
	_ Shrinker = LlavaNext{}
	_ Shrinker = GotOcr2{}
	_ Shrinker = Qwen2VL{}
	_ Shrinker = Glm46V{}
	_ Shrinker = PaddleOCRVL{}
	_ Shrinker = Pixtral{}
	_ Shrinker = Lfm2VL{}
)
