package imaging

import (
	"context"
	"errors"
	"fmt"
	"io"

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

// decodeYCbCr reads strips and tiles of clumps: the lumas of a few pixels, then their one chroma. What is missing or damaged
// is 0, as in libtiff.
func (f *tiffFile) decodeYCbCr(ctx context.Context, p *RGB) error {
	c, err := f.newYCbCr()
	if err != nil {
		return err
	}
	clump := c.across*c.down + 2
	row := make([]byte, (f.cw+c.across-1)/c.across*clump)
	for i := range f.across * ((f.h + f.ch - 1) / f.ch) {
		x, y := i%f.across*f.cw, i/f.across*f.ch
		r, err := f.chunk(ctx, i, len(row))
		damaged := err != nil
		for j := 0; j < min(f.ch, f.h-y); j += c.down {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n := 0
			if !damaged {
				n, err = io.ReadFull(r, row)
				damaged = err != nil
			}
			clear(row[n:])
			if f.predictor > 1 && f.compression != tiffNone && !damaged {
				if err := f.unpredictClumps(row, c.down); err != nil {
					return err
				}
			}
			c.clumps(p, row, x, y+j, min(f.cw, f.w-x), min(c.down, f.ch-j, f.h-y-j))
		}
		if c, ok := r.(io.Closer); ok {
			c.Close()
		}
	}
	return nil
}

// unpredictClumps takes a row of clumps for as many rows of bytes as it has of pixels.
func (f *tiffFile) unpredictClumps(row []byte, down int) error {
	if len(row)%down != 0 || f.predictor != 2 {
		return errors.New("its predictor is not supported for its chroma")
	}
	for n := len(row) / down; len(row) > 0; row = row[n:] {
		for i := 3; i < n; i++ {
			row[i] += row[i-3]
		}
	}
	return nil
}

// clumps places a row of clumps at x, y: w×h pixels of it.
func (c *ycbcr) clumps(p *RGB, row []byte, x, y, w, h int) {
	size := c.across * c.down
	for dy := range h {
		out := p.Row(y + dy)[3*x:][:3*w]
		for at, px := 0, 0; px < w; at += size + 2 {
			cb, cr := row[at+size], row[at+size+1]
			for _, l := range row[at+dy*c.across:][:min(c.across, w-px)] {
				c.put(out[3*px:], l, cb, cr)
				px++
			}
		}
	}
}

// planes converts the planes of a JPEG, whose own steps count.
func (c *ycbcr) planes(ctx context.Context, m *jpeg.Image) (*RGB, error) {
	p := scratchRGB(m.Width, m.Height)
	err := eachBand(ctx, p.H, 8*p.W, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			var rows [3][]uint8
			for i := range rows {
				rows[i] = m.Planes[i].Pix[y/m.Planes[i].StepY*m.Planes[i].Stride:]
			}
			out := p.Row(y)
			for x := range p.W {
				c.put(out[3*x:], rows[0][x/m.Planes[0].StepX], rows[1][x/m.Planes[1].StepX], rows[2][x/m.Planes[2].StepX])
			}
		}
	})
	return p, err
}

// decodeYCbCrPlanes reads lumas and both chromas from planes of full size.
func (f *tiffFile) decodeYCbCrPlanes(ctx context.Context, p *RGB) error {
	c, err := f.newYCbCr()
	if err != nil {
		return err
	}
	if c.across != 1 || c.down != 1 {
		return errors.New("planes of YCbCr with reduced chroma are not supported")
	}
	if err := f.gather(ctx, p); err != nil {
		return err
	}
	return eachBand(ctx, p.H, 8*p.W, func(lo, hi int) {
		for i := 3 * p.W * lo; i < 3*p.W*hi; i += 3 {
			c.put(p.Pix[i:i+3], p.Pix[i], p.Pix[i+1], p.Pix[i+2])
		}
	})
}

// gather places the samples of three planes of 8 bits side by side.
func (f *tiffFile) gather(ctx context.Context, p *RGB) error {
	for plane := range 3 {
		err := f.eachRow(ctx, plane, 1, func(x, y, n int, row []byte) {
			out := p.Row(y)[3*x+plane:]
			for i := range n {
				out[3*i] = row[i]
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}
