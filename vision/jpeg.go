package vision

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/jpeg"
	"iter"
)

const (
	markerTEM  = 0x01
	markerRST0 = 0xd0
	markerRST7 = 0xd7
	markerSOI  = 0xd8
	markerEOI  = 0xd9
	markerSOS  = 0xda
	markerAPP1 = 0xe1
)

// jpegSegments gives the markers that carry a payload, with it, up to the end of the image or to damage. The
// entropy-coded data after a scan's header is passed over: there, 0xff is followed by 0 or a restart marker only.
func jpegSegments(data []byte) iter.Seq2[byte, []byte] {
	return func(yield func(byte, []byte) bool) {
		for {
			i := bytes.IndexByte(data, 0xff)
			if i < 0 || i+1 >= len(data) {
				return
			}
			marker := data[i+1]
			switch {
			case marker == 0xff:
				data = data[i+1:]
				continue
			case marker == 0, marker == markerTEM, marker >= markerRST0 && marker <= markerSOI:
				data = data[i+2:]
				continue
			case marker == markerEOI:
				return
			}
			data = data[i+2:]
			if len(data) < 2 {
				return
			}
			n := int(binary.BigEndian.Uint16(data))
			if n < 2 || n > len(data) || !yield(marker, data[2:n]) {
				return
			}
			data = data[n:]
		}
	}
}

func decodeJPEG(data []byte) (*RGB, error) {
	m, err := jpeg.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if m, ok := m.(*image.YCbCr); ok {
		return fromJFIF(m), nil
	}
	return fromImage(m)
}

// fromJFIF converts Y'CbCr of full range as libjpeg and libjpeg-turbo do by default, "fancy upsampling" included.
// image/color takes the nearest chroma sample instead, which is up to 53 levels off in photographs.
func fromJFIF(m *image.YCbCr) *RGB {
	p := newRGB(m.Rect.Dx(), m.Rect.Dy())
	eachBand(p.H, 8*p.W, func(lo, hi int) {
		up := newUpsampler(m.SubsampleRatio, p.W, p.H)
		cb, cr := make([]uint8, up.width()), make([]uint8, up.width())
		for y := lo; y < hi; y++ {
			up.row(cb, m.Cb, m.CStride, y)
			up.row(cr, m.Cr, m.CStride, y)
			jfifRow(p.row(y), m.Y[y*m.YStride:][:p.W], cb, cr)
		}
	})
	return p
}

// jfifRow converts one row in the 16-bit fixed point of libjpeg's jdcolor.c.
func jfifRow(dst, luma, cb, cr []uint8) {
	const half = 1 << 15
	cb, cr = cb[:len(luma)], cr[:len(luma)]
	for x, l := range luma {
		y, b, r := int32(l), int32(cb[x])-128, int32(cr[x])-128
		out := dst[3*x : 3*x+3]
		out[0] = clip8(y + (91881*r+half)>>16)
		out[1] = clip8(y + (-22554*b-46802*r+half)>>16)
		out[2] = clip8(y + (116130*b+half)>>16)
	}
}

func clip8(v int32) uint8 {
	if uint32(v) <= 255 {
		return uint8(v)
	}
	return uint8(^(v >> 31)) // 0 below, 255 above
}

// upsampler brings chroma rows to the picture's width and height, as libjpeg-turbo's jdsample.c does: weights 3/4
// and 1/4 to the two nearest samples along an axis that has half of them, repetition for all else.
type upsampler struct {
	w, h           int // of the chroma plane
	stepX, stepY   int // pixels for each sample
	smoothX, fancy bool
	column         []int32 // one row, blended vertically
}

func newUpsampler(ratio image.YCbCrSubsampleRatio, w, h int) *upsampler {
	u := &upsampler{stepX: 1, stepY: 1}
	switch ratio {
	case image.YCbCrSubsampleRatio422:
		u.stepX = 2
	case image.YCbCrSubsampleRatio420:
		u.stepX, u.stepY = 2, 2
	case image.YCbCrSubsampleRatio440:
		u.stepY = 2
	case image.YCbCrSubsampleRatio411:
		u.stepX = 4
	case image.YCbCrSubsampleRatio410:
		u.stepX, u.stepY = 4, 2
	}
	u.w, u.h = (w+u.stepX-1)/u.stepX, (h+u.stepY-1)/u.stepY
	u.smoothX = u.stepX == 2 && u.w > 2 // libjpeg repeats samples of planes narrower than that
	u.fancy = u.smoothX || u.stepX == 1 && u.stepY == 2
	u.column = make([]int32, u.w)
	return u
}

// width is what row needs of its destination: the picture's width, rounded up to whole samples.
func (u *upsampler) width() int { return u.w * u.stepX }

// row writes the chroma of the picture's row y.
func (u *upsampler) row(dst, plane []uint8, stride, y int) {
	near := plane[y/u.stepY*stride:][:u.w]
	if !u.fancy {
		for x := range dst {
			dst[x] = near[x/u.stepX]
		}
		return
	}
	odd := y & 1
	far := near
	if u.stepY == 2 {
		far = plane[min(max(y/2-1+2*odd, 0), u.h-1)*stride:][:u.w]
	}
	switch {
	case u.smoothX && u.stepY == 2: // h2v2: 9/16, 3/16, 3/16, 1/16
		for x, n := range near {
			u.column[x] = 3*int32(n) + int32(far[x])
		}
		u.spread(dst, 8, 7, 4)
	case u.smoothX: // h2v1
		for x, n := range near {
			u.column[x] = int32(n)
		}
		u.spread(dst, 1, 2, 2)
	default: // h1v2
		bias := int32(1 + odd)
		for x, n := range near {
			dst[x] = uint8((3*int32(n) + int32(far[x]) + bias) >> 2)
		}
	}
}

// spread doubles column: each sample gives a left pixel, blended with its left neighbour, and a right one. The two
// biases take turns so that the picture gets no lighter.
func (u *upsampler) spread(dst []uint8, left, right int32, shift uint) {
	before := u.column[0]
	for x, c := range u.column {
		after := c
		if x+1 < len(u.column) {
			after = u.column[x+1]
		}
		dst[2*x] = uint8((3*c + before + left) >> shift)
		dst[2*x+1] = uint8((3*c + after + right) >> shift)
		before = c
	}
}
