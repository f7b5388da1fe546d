package imaging

import (
	"context"
	"image"

	"github.com/disintegration/imaging"
)

// turn undoes an orientation of 2 to 8.
var turn = [9]func(image.Image) *image.NRGBA{
	2: imaging.FlipH, 3: imaging.Rotate180, 4: imaging.FlipV,
	5: imaging.Transpose, 6: imaging.Rotate270, 7: imaging.Transverse, 8: imaging.Rotate90,
}

// strip is about how many pixels orient turns at a time: it holds no third copy of a large image.
const strip = 1 << 18

// orient turns an image upright and takes it over. The result may be p itself.
func orient(ctx context.Context, p *RGB, exif int) (*RGB, error) {
	if exif < 2 || exif > 8 {
		return p, nil
	}
	out := scratchRGB(p.W, p.H)
	if exif >= 5 {
		out.W, out.H = p.H, p.W
	}
	rows := max(1, strip/p.W)
	err := eachBand(ctx, (p.H+rows-1)/rows, 30*rows*p.W, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			turnStrip(out, p, exif, i*rows, min((i+1)*rows, p.H))
		}
	})
	Release(p)
	return out, err
}

// turnStrip turns rows lo to hi of p and places them in out.
func turnStrip(out, p *RGB, exif, lo, hi int) {
	m := image.NewNRGBA(image.Rect(0, 0, p.W, hi-lo))
	for i, o := 3*p.W*lo, 0; o < len(m.Pix); i, o = i+3, o+4 {
		m.Pix[o], m.Pix[o+1], m.Pix[o+2], m.Pix[o+3] = p.Pix[i], p.Pix[i+1], p.Pix[i+2], 255
	}
	m = turn[exif](m)
	x, y := 0, 0 // where the strip comes to lie
	switch exif {
	case 2:
		y = lo
	case 3, 4:
		y = p.H - hi
	case 5, 8:
		x = lo
	case 6, 7:
		x = p.H - hi
	}
	for r := range m.Rect.Dy() {
		row := out.Row(y + r)[3*x:]
		for i, o := r*m.Stride, 0; i < r*m.Stride+4*m.Rect.Dx(); i, o = i+4, o+3 {
			row[o], row[o+1], row[o+2] = m.Pix[i], m.Pix[i+1], m.Pix[i+2]
		}
	}
}
