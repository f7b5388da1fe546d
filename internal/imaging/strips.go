package imaging

import "context"

// stripBytes is about how much of an image is decoded before the first pass takes it.
const stripBytes = 8 << 20

// stripRows is how many rows of a w×h image make a strip.
func stripRows(w, h int) int { return min(h, 2*max(1, stripBytes/(6*w))) }

// eachStrip calls f with strips for the rows of a w×h image, from the top on. Their memory is one.
func eachStrip(w, h int, f func(y int, strip *RGB) error) error {
	n := stripRows(w, h)
	p := scratchRGB(w, n)
	defer Release(p)
	for y := 0; y < h; y += n {
		p.H = min(n, h-y)
		p.Pix = p.Pix[:3*w*p.H]
		if err := f(y, p); err != nil {
			return err
		}
	}
	return nil
}

// rowBand collects rows, from the top on, for an image of h of them. Its memory is one.
type rowBand struct {
	p      *RGB
	top, h int
	yield  func(*RGB) error
}

func newRowBand(w, h int, yield func(*RGB) error) *rowBand {
	return &rowBand{p: scratchRGB(w, stripRows(w, h)), h: h, yield: yield}
}

// row gives the bytes of row y, which full has not given away.
func (b *rowBand) row(y int) []uint8 { return b.p.Row(y - b.top) }

// full gives the band away where the rows before y fill it or are the image's last.
func (b *rowBand) full(y int) error {
	if y-b.top < b.p.H && y < b.h {
		return nil
	}
	strip := &RGB{Pix: b.p.Pix[:3*b.p.W*(y-b.top)], W: b.p.W, H: y - b.top}
	b.top = y
	return b.yield(strip)
}

// gather decodes an image from its strips.
func (s *source) gather(ctx context.Context) (*RGB, error) {
	p := scratchRGB(s.w, s.h)
	y := 0
	err := s.strips(ctx, func(strip *RGB) error {
		if strip.H > s.h-y {
			return errPanic
		}
		copy(p.Pix[3*s.w*y:], strip.Pix)
		y += strip.H
		return nil
	})
	if err == nil && y != s.h {
		err = errPanic
	}
	if err != nil {
		Release(p)
		return nil, err
	}
	return p, nil
}
