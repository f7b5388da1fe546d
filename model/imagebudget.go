package model

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/vision"
)

// towerShare is the part of the memory of a process, one in so many, that a run of a vision tower may take for the
// values of one image.
const towerShare = 8

// fitMemory has images brought to what a run of the tower has memory for, where files allow larger ones: the values of
// an image of any size grow with it.
func (m *Model) fitMemory(p vision.Preprocessor) (_ vision.Preprocessor, warning string, err error) {
	limit := int64(host.ReadMemory().Limit)
	q, ok := p.(vision.Patcher)
	if m.AnySize == nil || !ok || limit == 0 {
		return p, "", nil
	}
	bytes, scores := limit/towerShare, m.AnySize.HoldsScores()
	if scores {
		bytes = min(bytes, vision.ScoredRunBytes)
	}
	most := m.AnySize.MostPatches(bytes, scores)
	allowed := largestImage(q)
	if allowed <= most {
		return p, "", nil
	}
	p, got := shrinkTo(q, most)
	if got > most {
		return nil, "", fmt.Errorf("images of %d patches are the smallest that the image processor makes, "+
			"a run of the vision tower has memory for %d of the %s that this process may use",
			got, most, host.FormatBytes(limit))
	}
	takes := func(n int) string { return host.FormatBytes(m.AnySize.RunBytes(n)) }
	return p, fmt.Sprintf("the image processor allows images of %d patches, for which a run of the vision tower takes %s; "+
		"they are brought to at most %d, for %s of the %s that this process may use",
		allowed, takes(allowed), got, takes(got), host.FormatBytes(limit)), nil
}

// largeImages are larger than any processor brings an image to: how whole blocks fill an area depends on its shape.
var largeImages = [][2]int{{32768, 32768}, {16000, 16000}, {24000, 16000}, {16000, 24000}, {32768, 16000}}

// largestImage is the number of patches that large images become, or their tiles: each is run by itself.
func largestImage(p vision.Patcher) (n int) {
	patch := p.Patches().Patch
	for _, size := range largeImages {
		g := p.Grid(size[0], size[1])
		n = max(n, g.Width/patch*(g.Height/patch))
		if l, ok := p.(vision.Lfm2VL); ok && g.Rows > 0 {
			n = max(n, l.TileSize/patch*(l.TileSize/patch))
		}
	}
	return n
}

// shrinkTo makes images smaller until they have at most so many patches, or cannot be smaller; it gives the number that
// the largest then have.
func shrinkTo(p vision.Patcher, most int) (vision.Preprocessor, int) {
	n := largestImage(p)
	for n > most {
		s, ok := vision.Preprocessor(p).(vision.Shrinker)
		if !ok {
			break
		}
		smaller, ok := s.Smaller()
		next, isPatcher := smaller.(vision.Patcher)
		if !ok || !isPatcher {
			break
		}
		p, n = next, largestImage(next)
	}
	return p, n
}
