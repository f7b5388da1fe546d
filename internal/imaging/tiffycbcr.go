package imaging

import (
	"context"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/jpeg"
)

// ycbcr converts colours of TIFF as libtiff's tif_color.c does: tables in 16-bit fixed point, made of the file's luma
// coefficients and of its black and white. Reference: TIFF 6.0, section 21.
type ycbcr struct {
	luma            [256]int32
	redCr, greenCr  [256]int32
	greenCb, blueCb [256]int32
	across, down    int // pixels for each sample of chroma
}

// newYCbCr reads what the directory says of its colours.
func (f *tiffFile) newYCbCr() (*ycbcr, error) {
	c := &ycbcr{across: 2, down: 2}
	steps, err := f.dir.list(tagYCbCrSub, 16)
	if err != nil {
		return nil, err
	}
	if len(steps) >= 2 {
		c.across, c.down = int(min(steps[0], 16)), int(min(steps[1], 16))
	}
	switch [2]int{c.across, c.down} {
	case [2]int{4, 4}, [2]int{4, 2}, [2]int{4, 1}, [2]int{2, 2}, [2]int{2, 1}, [2]int{1, 2}, [2]int{1, 1}:
	default:
		return nil, fmt.Errorf("YCbCr with chroma of %d×%d pixels is not supported", c.across, c.down)
	}
	luma := f.dir.floats(tagYCbCrCoefficients, []float32{0.299, 0.587, 0.114})
	black := f.dir.floats(tagReferenceBW, []float32{0, 255, 128, 255, 128, 255})
	for _, v := range append(luma[:3:3], black...) {
		if v != v || v > 1<<24 || v < -1<<24 {
			return nil, errors.New("its colours have coefficients that are no numbers")
		}
	}
	if luma[1] == 0 {
		return nil, errors.New("its green has no luma")
	}
	c.fill(luma, black)
	return c, nil
}

func (c *ycbcr) fill(luma, black []float32) {
	const half = 1 << 15
	fix := func(v float32) int32 { return int32(float64(min(max(v, 0), 2))*65536 + 0.5) }
	// code gives the value of a code between black and white.
	code := func(v int32, black, white, span float32) int32 {
		width := white - black
		if width == 0 {
			width = 1
		}
		x := float32(v-int32(black)) * span / width
		return int32(min(max(x, -128*32), 128*32))
	}
	red, blue := 2-2*luma[0], 2-2*luma[2]
	d1, d2 := fix(red), -fix(luma[0]*red/luma[1])
	d3, d4 := fix(blue), -fix(luma[2]*blue/luma[1])
	for i := range int32(256) {
		cr := code(i-128, black[4]-128, black[5]-128, 127)
		cb := code(i-128, black[2]-128, black[3]-128, 127)
		c.redCr[i], c.blueCb[i] = (d1*cr+half)>>16, (d3*cb+half)>>16
		c.greenCr[i], c.greenCb[i] = d2*cr, d4*cb+half
		c.luma[i] = code(i, black[0], black[1], 255)
	}
}

func (c *ycbcr) put(out []uint8, y, cb, cr uint8) {
	l := c.luma[y]
	out[0] = clip8(l + c.redCr[cr])
	out[1] = clip8(l + (c.greenCb[cb]+c.greenCr[cr])>>16)
	out[2] = clip8(l + c.blueCb[cb])
}

// clumpRows are rows of clumps: the lumas of a few pixels, then their one chroma. What is missing or damaged is 0, as
// in libtiff.
type clumpRows struct {
	*ycbcr
	f       *tiffFile
	stream  *tiffStream
	clumps  []byte
	y       int
	damaged bool
}

func (f *tiffFile) openClumps(ctx context.Context, c *ycbcr, i int) *clumpRows {
	r := &clumpRows{ycbcr: c, f: f, clumps: make([]byte, (f.cw+c.across-1)/c.across*(c.across*c.down+2))}
	var err error
	r.stream, err = f.chunk(ctx, i, len(r.clumps))
	r.damaged = err != nil
	return r
}

func (r *clumpRows) row(out []uint8, n int) error {
	dy := r.y % r.down
	if r.y++; dy == 0 {
		if err := r.next(); err != nil {
			return err
		}
	}
	size := r.across * r.down
	for at, x := 0, 0; x < n; at += size + 2 {
		cb, cr := r.clumps[at+size], r.clumps[at+size+1]
		for _, l := range r.clumps[at+dy*r.across:][:min(r.across, n-x)] {
			r.put(out[3*x:], l, cb, cr)
			x++
		}
	}
	return nil
}

func (r *clumpRows) next() error {
	n := 0
	if !r.damaged {
		var err error
		n, err = r.stream.fill(r.clumps)
		r.damaged = err != nil
	}
	clear(r.clumps[n:])
	if r.f.predictor > 1 && !r.damaged {
		return r.unpredict()
	}
	return nil
}

// unpredict takes a row of clumps for as many rows of bytes as it has of pixels.
func (r *clumpRows) unpredict() error {
	row := r.clumps
	if len(row)%r.down != 0 || r.f.predictor != 2 {
		return errors.New("its predictor is not supported for its chroma")
	}
	for n := len(row) / r.down; len(row) > 0; row = row[n:] {
		for i := 3; i < n; i++ {
			row[i] += row[i-3]
		}
	}
	return nil
}

func (r *clumpRows) Close() error {
	if r.stream == nil {
		return nil
	}
	return r.stream.Close()
}

// unpack converts samples that lie side by side.
func (c *ycbcr) unpack(out, row []byte, n int) {
	for i := 0; i < 3*n; i += 3 {
		c.put(out[i:i+3], row[i], row[i+1], row[i+2])
	}
}

// planes converts rows from top on of the planes of a JPEG, whose own steps count.
func (c *ycbcr) planes(ctx context.Context, m *jpeg.Image, p *RGB, top int) error {
	return eachBand(ctx, p.H, 8*p.W, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			var rows [3][]uint8
			for i := range rows {
				rows[i] = m.Planes[i].Row((top + y) / m.Planes[i].StepY)
			}
			out := p.Row(y)
			for x := range p.W {
				c.put(out[3*x:], rows[0][x/m.Planes[0].StepX], rows[1][x/m.Planes[1].StepX], rows[2][x/m.Planes[2].StepX])
			}
		}
	})
}
