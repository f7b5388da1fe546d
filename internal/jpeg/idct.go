package jpeg

import (
	"unsafe"

	"github.com/mmserve/mmserve/internal/crew"
)

// transform writes the samples of rows of blocks to dst. coefficients and dst begin with those of the first.
func (c *component) transform(dst []uint8, coefficients []int16, rows int) {
	stride := 8 * c.stride
	for row := range rows {
		for column := range c.stride {
			at := 64 * (row*c.stride + column)
			inverseDCT(dst[8*row*stride+8*column:], stride, (*[64]int16)(coefficients[at:]), c.quant)
		}
	}
}

// transformAll writes the samples of a progressive image over its coefficients, which take twice the memory: those of a
// row of blocks lie where the row's coefficients began.
func (d *decoder) transformAll() {
	var parts crew.Group
	defer parts.Wait()
	for i := range d.list {
		c := &d.list[i]
		if c.quant == nil {
			continue
		}
		size := 64 * c.stride
		c.pix = unsafe.Slice((*uint8)(unsafe.Pointer(unsafe.SliceData(c.coefficients))), 2*len(c.coefficients))
		c.gap = size
		n := min(readers(), c.height)
		for j := range n {
			from, to := c.height*j/n, c.height*(j+1)/n
			parts.Go(func() error {
				samples := make([]uint8, size)
				for row := from; row < to && d.ctx.Err() == nil; row++ {
					c.transform(samples, c.coefficients[size*row:], 1)
					copy(c.pix[2*size*row:], samples)
				}
				return nil
			})
		}
	}
}

// The inverse DCT is that of Loeffler, Ligtenberg and Moschytz ("Practical fast 1-D DCT algorithms with 11
// multiplications", 1989) with libjpeg's rounding: columns first, kept with passBits more bits; factors of factorBits.
const (
	factorBits = 13
	passBits   = 2
)

const (
	f0298 = 2446 // 0.298631336 · 2^13, and so on
	f0390 = 3196
	f0541 = 4433
	f0765 = 6270
	f0899 = 7373
	f1175 = 9633
	f1501 = 12299
	f1847 = 15137
	f1961 = 16069
	f2053 = 16819
	f2562 = 20995
	f3072 = 25172
)

// inverse8 gives the eight sums and differences of a row or column, factorBits too large.
func inverse8(x0, x1, x2, x3, x4, x5, x6, x7 int32) (y0, y1, y2, y3, y4, y5, y6, y7 int32) {
	z := (x2 + x6) * f0541
	e2, e3 := z-x6*f1847, z+x2*f0765
	e0, e1 := (x0+x4)<<factorBits, (x0-x4)<<factorBits
	a0, a3 := e0+e3, e0-e3
	a1, a2 := e1+e2, e1-e2

	z5 := (x7 + x3 + x5 + x1) * f1175
	z1, z2 := (x7+x1)*-f0899, (x5+x3)*-f2562
	z3, z4 := z5-(x7+x3)*f1961, z5-(x5+x1)*f0390
	o0, o1 := x7*f0298+z1+z3, x5*f2053+z2+z4
	o2, o3 := x3*f3072+z2+z3, x1*f1501+z1+z4
	return a0 + o3, a1 + o2, a2 + o1, a3 + o0, a3 - o0, a2 - o1, a1 - o2, a0 - o3
}

// inverseDCT dequantises and transforms a block.
func inverseDCT(dst []uint8, stride int, b *[64]int16, q *[64]int32) {
	var w [64]int32
	for x := range 8 {
		x0 := int32(b[x]) * q[x]
		if b[8+x]|b[16+x]|b[24+x]|b[32+x]|b[40+x]|b[48+x]|b[56+x] == 0 {
			x0 <<= passBits
			w[x], w[8+x], w[16+x], w[24+x], w[32+x], w[40+x], w[48+x], w[56+x] = x0, x0, x0, x0, x0, x0, x0, x0
			continue
		}
		const shift, half = factorBits - passBits, 1 << (factorBits - passBits - 1)
		y0, y1, y2, y3, y4, y5, y6, y7 := inverse8(x0, int32(b[8+x])*q[8+x], int32(b[16+x])*q[16+x], int32(b[24+x])*q[24+x],
			int32(b[32+x])*q[32+x], int32(b[40+x])*q[40+x], int32(b[48+x])*q[48+x], int32(b[56+x])*q[56+x])
		w[x], w[8+x], w[16+x], w[24+x] = (y0+half)>>shift, (y1+half)>>shift, (y2+half)>>shift, (y3+half)>>shift
		w[32+x], w[40+x], w[48+x], w[56+x] = (y4+half)>>shift, (y5+half)>>shift, (y6+half)>>shift, (y7+half)>>shift
	}
	for y := range 8 {
		const shift, middle = factorBits + passBits + 3, 128<<(factorBits+passBits+3) + 1<<(factorBits+passBits+2)
		r := (*[8]int32)(w[8*y:])
		y0, y1, y2, y3, y4, y5, y6, y7 := inverse8(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7])
		out := (*[8]uint8)(dst[y*stride:])
		out[0], out[1] = clip((y0+middle)>>shift), clip((y1+middle)>>shift)
		out[2], out[3] = clip((y2+middle)>>shift), clip((y3+middle)>>shift)
		out[4], out[5] = clip((y4+middle)>>shift), clip((y5+middle)>>shift)
		out[6], out[7] = clip((y6+middle)>>shift), clip((y7+middle)>>shift)
	}
}

func clip(v int32) uint8 {
	if uint32(v) <= 255 {
		return uint8(v)
	}
	return uint8(^(v >> 31)) // 0 below, 255 above
}
