package vision

import (
	"cmp"
	"context"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/imaging"
)

// Patches is how a tower for images of any size takes them.
type Patches struct {
	// Patch is the side of a patch in pixels, Merge that of the block of patches that becomes one token.
	Patch, Merge int
	// Frames is how often a patch is repeated: an image is a film that stands still.
	Frames int
}

// Patcher is a Preprocessor that brings images to sizes of their own and cuts them into patches. An Image has those
// that become one token side by side, and blocks row by row: references may have them in another order.
type Patcher interface {
	Preprocessor
	Patches() Patches
}

// maxAspect is how many times longer than the other a side may be.
const maxAspect = 200

// maxArea is the most pixels that a configuration may bring one image to.
const maxArea = 1 << 25

// patchSetting is a setting of a file that the tower has a say in.
type patchSetting struct {
	name  string
	file  *int
	tower int // 0 where it is not known
	most  int
	to    *int // the class's default, then what counts
}

// settle takes the file's value, or else the tower's, or else the class's. It refuses a file that contradicts the
// tower.
func (s patchSetting) settle() error {
	*s.to = or(s.file, cmp.Or(s.tower, *s.to))
	if *s.to < 1 || *s.to > s.most {
		return fmt.Errorf("%s is %d, want 1 to %d", s.name, *s.to, s.most)
	}
	if s.tower > 0 && *s.to != s.tower {
		return fmt.Errorf("%s is %d, config.json's vision_config says %d", s.name, *s.to, s.tower)
	}
	return nil
}

// area is what an image is brought to: whole blocks of pixels, whose number, times frames, lies in a range.
type area struct {
	block, frames, least, most int
	// never0 has no side rounded to nothing before the range is looked at.
	never0 bool
}

// resize gives a size, its aspect kept as far as blocks allow.
// Reference: transformers smart_resize, whose round goes to the even number between two.
func (a area) resize(w, h int) (g Grid) {
	block, frames := float64(a.block), float64(a.frames)
	width, height := float64(w), float64(h)
	round := func(f func(float64) float64, scale float64) (int, int) {
		return int(f(width*scale/block) * block), int(f(height*scale/block) * block)
	}
	g.Width, g.Height = round(math.RoundToEven, 1)
	if a.never0 {
		g.Width, g.Height = max(g.Width, a.block), max(g.Height, a.block)
	}
	switch n := a.frames * g.Width * g.Height; {
	case n > a.most:
		shrink := math.Sqrt(frames * width * height / float64(a.most))
		g.Width = max(int(math.Floor(width/shrink/block)*block), a.block)
		g.Height = max(int(math.Floor(height/shrink/block)*block), a.block)
	case n < a.least:
		g.Width, g.Height = round(math.Ceil, math.Sqrt(float64(a.least)/(frames*width*height)))
	}
	return g
}

// checkAspect refuses strips.
func checkAspect(w, h int) error {
	if max(w, h) > maxAspect*min(w, h) {
		return fmt.Errorf("%w: %d×%d pixels, one side may be at most %d times the other", ErrImage, w, h, maxAspect)
	}
	return nil
}

// measurePatches measures an image of w×h pixels whose aspect is judged as that of the size raised.
func measurePatches(p Patcher, w, h int, raised [2]int) (Measured, error) {
	if err := checkAspect(raised[0], raised[1]); err != nil {
		return Measured{}, err
	}
	g := p.Grid(w, h)
	return Measured{Grid: g, ScaledWidth: g.Width, ScaledHeight: g.Height, Bytes: imaging.Sum(
		imaging.Bytes(3, g.Width, g.Height), floatBytes(g.Width, g.Height, p.Patches().Frames),
		imaging.ResizeBytes(w, h, g.Width, g.Height),
	)}, nil
}

// patchRecipe makes an image one rectangle of patches.
func patchRecipe(p Patcher, resample int) func(w, h int) recipe {
	return func(w, h int) recipe {
		g, size := p.Grid(w, h), p.Patches()
		whole := imaging.Filters[resample].To(w, h, g.Width, g.Height)
		return recipe{[]imaging.Scaling{whole}, func(_ context.Context, scaled []*imaging.RGB, img *Image) error {
			img.Size, img.Frames, img.Pixels = size.Patch, size.Frames, make([]uint8, 3*g.Width*g.Height)
			size.cut(img.Pixels, scaled[0], imaging.Canvas{W: g.Width, H: g.Height})
			imaging.Release(scaled[0])
			return nil
		}}
	}
}

// cut writes the patches of a part of rgb, block by block, and gives what follows them in patches.
func (p Patches) cut(patches []uint8, rgb *imaging.RGB, part imaging.Canvas) []uint8 {
	block := p.Patch * p.Merge
	for y := part.Y; y < part.Y+part.H; y += block {
		for x := part.X; x < part.X+part.W; x += block {
			for i := range p.Merge * p.Merge {
				patches = cut(patches, rgb, x+i%p.Merge*p.Patch, y+i/p.Merge*p.Patch, p.Patch)
			}
		}
	}
	return patches
}
