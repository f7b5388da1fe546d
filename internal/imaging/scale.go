package imaging

import (
	"context"
	"slices"
)

// Scaling is what becomes of an image: a canvas with the image upon it, scaled to Size, width and height, and of that
// the Part at x, y of w×h pixels. What lies beyond the part is never made.
type Scaling struct {
	Filter Filter
	Canvas Canvas
	Size   [2]int
	Part   [4]int
}

// To is the scaling of an image of w×h pixels to tw×th.
func (f Filter) To(w, h, tw, th int) Scaling {
	return Scaling{Filter: f, Canvas: Canvas{W: w, H: h}, Size: [2]int{tw, th}, Part: [4]int{0, 0, tw, th}}
}

const (
	across = iota
	down
)

// passes are the two that a scaling of an image takes, one after the other.
type passes struct {
	windows [2][]window // nil for a pass that would change nothing
	first   int         // across or down
	color   [3]uint8
	frame   []uint8 // a row of the canvas above or below the image, as the pass down finds it
}

func (s Scaling) passes(w, h int) *passes {
	c := s.Canvas
	framed := c.W != w || c.H != h
	p := &passes{color: c.Color, frame: frameRow(c.Color, w)}
	if s.Size[0] != c.W || s.Part[2] != c.W || c.W != w {
		p.windows[across] = s.Filter.windows(c.W, s.Size[0], s.Part[0], s.Part[2])
		trim(p.windows[across], c.X, w)
	}
	if s.Size[1] != c.H || s.Part[3] != c.H || c.H != h {
		p.windows[down] = s.Filter.windows(c.H, s.Size[1], s.Part[1], s.Part[3])
		trim(p.windows[down], c.Y, h)
	}
	// Never down first for the squares that are made of framed images.
	downFirst := s.Size[1] < c.H && 2*(c.W-s.Size[0]) < c.H-s.Size[1] && !framed
	if p.windows[across] == nil || downFirst && p.windows[down] != nil {
		p.first = down
		return p
	}
	p.frame = frameRow(c.Color, s.Part[2])
	for i, win := range p.windows[across] {
		if !framed {
			break
		}
		total := win.outside
		for _, v := range win.weights {
			total += v
		}
		for j, v := range c.Color {
			p.frame[3*i+j] = clip8(int32((weightHalf + int64(v)*total) >> weightBits))
		}
	}
	return p
}

// idle tells that the image stays as it is.
func (p *passes) idle() bool { return p.windows[across] == nil && p.windows[down] == nil }

// pass runs one pass. The result is in itself where there is nothing to do.
func (p *passes) pass(ctx context.Context, in *RGB, axis int) (*RGB, error) {
	ws := p.windows[axis]
	if ws == nil {
		return in, nil
	}
	if axis == across {
		out := scratchRGB(len(ws), in.H)
		return out, horizontal(ctx, out, in, ws, p.color)
	}
	out := scratchRGB(in.W, len(ws))
	return out, vertical(ctx, out, in, ws, p.frame)
}

// Of scales p, which stays the caller's. The result may be p.
func (s Scaling) Of(ctx context.Context, p *RGB) (*RGB, error) {
	ps := s.passes(p.W, p.H)
	out, err := ps.pass(ctx, p, ps.first)
	if err != nil {
		return nil, err
	}
	return ps.second(ctx, p, out)
}

// second runs the pass that comes second and releases what it takes, but for given.
func (p *passes) second(ctx context.Context, given, in *RGB) (*RGB, error) {
	out, err := p.pass(ctx, in, 1-p.first)
	if out != in && in != given {
		Release(in)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Scale decodes the image as Decode does and gives what the scalings make of it. Where the file has its rows in order,
// it never holds the whole: strips pass into the first pass of each scaling. Errors are those of Decode.
func (h *Header) Scale(ctx context.Context, list ...Scaling) (made []*RGB, err error) {
	defer func() {
		if recover() != nil {
			made, err = nil, h.failed(ctx, errPanic)
		}
	}()
	plans := make([]*passes, len(list))
	for i, s := range list {
		if plans[i] = s.passes(h.Width, h.Height); plans[i].idle() {
			return h.scaleWhole(ctx, list)
		}
	}
	firsts := make([]*firstPass, len(list))
	for i, p := range plans {
		firsts[i] = newFirstPass(p, h.source)
	}
	if err := h.source.each(h.background.with(ctx), firsts); err != nil {
		return nil, h.failed(ctx, err)
	}
	for i, p := range plans {
		out, err := orient(ctx, firsts[i].out, h.source.orientation)
		if err != nil {
			return nil, err
		}
		if out, err = p.second(ctx, nil, out); err != nil {
			return nil, err
		}
		made = append(made, out)
	}
	return made, nil
}

// Rows gives the rows of the decoded image, a strip of them at a time from the top on; a strip is valid until yield
// returns. Errors are those of Decode, and yield's.
func (h *Header) Rows(ctx context.Context, yield func(strip *RGB) error) (err error) {
	if h.source.strips == nil || h.source.orientation >= 2 {
		p, err := h.Decode(ctx)
		if err != nil {
			return err
		}
		defer Release(p)
		return yield(p)
	}
	defer func() {
		if recover() != nil {
			err = h.failed(ctx, errPanic)
		}
	}()
	if err := h.source.strips(h.background.with(ctx), yield); err != nil {
		return h.failed(ctx, err)
	}
	return nil
}

// scaleWhole is Scale where the whole image is asked for.
func (h *Header) scaleWhole(ctx context.Context, list []Scaling) (made []*RGB, err error) {
	p, err := h.Decode(ctx)
	if err != nil {
		return nil, err
	}
	kept := false
	for i, s := range list {
		out, err := s.Of(ctx, p)
		if err != nil {
			return nil, err
		}
		if out == p && i < len(list)-1 {
			out = &RGB{Pix: slices.Clone(p.Pix), W: p.W, H: p.H}
		}
		kept = kept || out == p
		made = append(made, out)
	}
	if !kept {
		Release(p)
	}
	return made, nil
}

// each gives strips of the image to all firsts.
func (s *source) each(ctx context.Context, firsts []*firstPass) error {
	y := 0
	yield := func(strip *RGB) error {
		if strip.W != s.w || strip.H > s.h-y {
			return errPanic
		}
		for _, f := range firsts {
			if err := f.take(ctx, y, strip); err != nil {
				return err
			}
		}
		y += strip.H
		return nil
	}
	if s.strips != nil {
		return s.strips(ctx, yield)
	}
	p, err := s.decode(ctx)
	if err != nil {
		return err
	}
	defer Release(p)
	if p.H != s.h {
		return errPanic
	}
	return yield(p)
}

// firstPass is the first pass of a scaling, run on strips of an image as it is stored. Sums of integers do not depend
// on their order, so a mirrored window gives what the turned image would give.
type firstPass struct {
	down  bool // as stored
	ws    []window
	color [3]uint8
	frame []uint8
	out   *RGB
	done  int     // rows of out that a pass down has made
	tail  []uint8 // rows above the next strip that windows still take
	base  int     // the row that tail, or without it the strip, begins with
}

func newFirstPass(p *passes, s *source) *firstPass {
	axis, o := p.first, s.orientation
	rightToLeft, bottomUp := o == 2 || o == 3 || o == 6 || o == 7, o == 3 || o == 4 || o == 7 || o == 8
	mirrored := axis == across && rightToLeft || axis == down && bottomUp
	f := &firstPass{ws: p.windows[axis], color: p.color, down: (axis == down) != (o >= 5 && o <= 8)}
	n := s.w
	if f.down {
		n = s.h
	}
	if mirrored {
		f.ws = mirror(f.ws, n)
	}
	if !f.down {
		f.out = scratchRGB(len(f.ws), s.h)
		return f
	}
	f.frame = frameRow(p.color, s.w)
	f.out = scratchRGB(s.w, len(f.ws))
	return f
}

// mirror gives the windows over n samples that come in the other order.
func mirror(ws []window, n int) []window {
	out := make([]window, len(ws))
	for i, w := range ws {
		m := window{weights: slices.Clone(w.weights), outside: w.outside}
		slices.Reverse(m.weights)
		if len(m.weights) > 0 {
			m.first = n - w.first - len(w.weights)
		}
		out[len(ws)-1-i] = m
	}
	return out
}

// take runs the pass on a strip that begins at row y.
func (f *firstPass) take(ctx context.Context, y int, strip *RGB) error {
	if !f.down {
		rows := &RGB{Pix: f.out.Pix[3*f.out.W*y:], W: f.out.W, H: strip.H}
		return horizontal(ctx, rows, strip, f.ws, f.color)
	}
	src, end := strip, y+strip.H
	if len(f.tail) > 0 {
		f.tail = append(f.tail, strip.Pix...)
		src = &RGB{Pix: f.tail, W: strip.W, H: end - f.base}
	}
	n := f.done
	var ready []window
	for ; n < len(f.ws) && f.ws[n].first+len(f.ws[n].weights) <= end; n++ {
		w := f.ws[n]
		w.first = max(0, w.first-f.base)
		ready = append(ready, w)
	}
	if len(ready) > 0 {
		rows := &RGB{Pix: f.out.Pix[3*f.out.W*f.done:], W: f.out.W, H: len(ready)}
		if err := vertical(ctx, rows, src, ready, f.frame); err != nil {
			return err
		}
	}
	keep := end
	if n < len(f.ws) {
		keep = min(end, f.ws[n].first)
	}
	rest := src.Pix[3*src.W*(keep-f.base):]
	if cap(f.tail) == 0 && len(rest) > 0 {
		longest := 0
		for _, w := range f.ws {
			longest = max(longest, len(w.weights))
		}
		f.tail = make([]uint8, 0, 3*strip.W*(longest+strip.H))
	}
	f.tail, f.base, f.done = append(f.tail[:0], rest...), keep, n
	return nil
}
