package imaging

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"slices"

	"github.com/mmserve/mmserve/internal/jpeg"
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

// joinEXIF adds a segment to an EXIF block. A block that needs one segment alone is not copied.
func joinEXIF(block, segment []byte) []byte {
	switch {
	case block == nil:
		return slices.Clip(segment) // append copies it
	case len(block) >= maxMetadata:
		return block
	}
	return append(block, segment[len(exifMark):]...)
}

func openJPEG(ctx context.Context, data []byte) (*source, error) {
	var meta metadata
	for marker, b := range jpegSegments(data) {
		if marker == markerSOS { // what follows is pixels: a header takes no longer to read where there are more
			break
		}
		xmp, isXMP := bytes.CutPrefix(b, []byte("http://ns.adobe.com/xap/1.0/\x00"))
		switch {
		case marker != markerAPP1:
		case bytes.HasPrefix(b, exifMark):
			meta.exif = joinEXIF(meta.exif, b)
		case isXMP:
			meta.xmp = xmp
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	c, err := jpeg.DecodeConfig(data)
	if err != nil {
		return nil, err
	}
	if c.Components == 2 {
		return nil, errors.New("2 components are not supported, want 1, 3 or 4")
	}
	return &source{
		w: c.Width, h: c.Height, orientation: meta.orientation(), bytes: Sum(Bytes(3, c.Width, c.Height), c.DecodeBytes),
		decode: func(ctx context.Context) (*RGB, error) {
			m, err := decodeJPEG(ctx, data)
			if err != nil {
				return nil, err
			}
			return jpegColors(ctx, m)
		},
		stripped: Sum(c.DecodeBytes, stripBytes),
		strips: func(ctx context.Context, yield func(*RGB) error) error {
			m, err := decodeJPEG(ctx, data)
			if err != nil {
				return err
			}
			defer m.Release()
			return eachStrip(m.Width, m.Height, func(y int, strip *RGB) error {
				if err := jpegRows(ctx, m, strip, y); err != nil {
					return err
				}
				return yield(strip)
			})
		},
	}, nil
}

// decodeJPEG decodes an image, if it has no more scans than are allowed.
func decodeJPEG(ctx context.Context, data []byte) (*jpeg.Image, error) {
	scans := 0
	for marker := range jpegSegments(data) {
		if marker == markerSOS {
			scans++
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	if scans > jpeg.MaxScans {
		return nil, tooMany("scans", scans, jpeg.MaxScans)
	}
	return jpeg.Decode(ctx, data)
}

// jpegColors makes colours of all samples and takes m over.
func jpegColors(ctx context.Context, m *jpeg.Image) (*RGB, error) {
	p := scratchRGB(m.Width, m.Height)
	err := jpegRows(ctx, m, p, 0)
	m.Release()
	return p, err
}

// jpegRows upsamples and converts colours as libjpeg and libjpeg-turbo do by default, "fancy upsampling" included.
// image/color takes the nearest chroma sample instead, which is up to 53 levels off in photographs. p becomes the rows
// from top on.
func jpegRows(ctx context.Context, m *jpeg.Image, p *RGB, top int) error {
	return eachBand(ctx, p.H, 8*p.W, func(lo, hi int) {
		var ups []*upsampler
		for i := range m.Planes {
			ups = append(ups, newUpsampler(&m.Planes[i], p.W))
		}
		var rows [4][]uint8
		for y := lo; y < hi; y++ {
			for i, up := range ups {
				rows[i] = up.row(top + y)[:p.W]
			}
			out := p.Row(y)
			switch m.Model {
			case jpeg.Gray:
				interleave(out, rows[0], rows[0], rows[0])
			case jpeg.YCbCr:
				jfifRow(out, rows[0], rows[1], rows[2])
			case jpeg.RGB:
				interleave(out, rows[0], rows[1], rows[2])
			case jpeg.CMYK:
				interleave(out, rows[0], rows[1], rows[2])
				for i, v := range out {
					out[i] = 255 - v
				}
				inkRow(out, rows[3])
			case jpeg.YCCK:
				jfifRow(out, rows[0], rows[1], rows[2])
				inkRow(out, rows[3])
			}
		}
	})
}

func interleave(dst, r, g, b []uint8) {
	g, b = g[:len(r)], b[:len(r)]
	for x, v := range r {
		out := dst[3*x : 3*x+3]
		out[0], out[1], out[2] = v, g[x], b[x]
	}
}

// inkRow makes colours of inks. black is as Adobe's files have it, 255 for none, and Pillow takes all files for those.
func inkRow(inks, black []uint8) {
	for x, k := range black {
		for c := range 3 {
			i := &inks[3*x+c]
			*i = k - uint8(mulDiv255(uint32(*i), uint32(k)))
		}
	}
}

// mulDiv255 is a*b/255, rounded, as Pillow's CMYK conversion takes it.
func mulDiv255(a, b uint32) uint32 {
	t := a*b + 128
	return (t>>8 + t) >> 8
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

// upsampler brings the rows of a plane to the image's width and height, as libjpeg-turbo's jdsample.c does: weights 3/4
// and 1/4 to the two nearest samples along an axis that has half of them, repetition for all else.
type upsampler struct {
	*jpeg.Plane
	smoothX, fancy bool
	out            []uint8
	column         []int32 // one row, blended vertically
}

func newUpsampler(p *jpeg.Plane, width int) *upsampler {
	u := &upsampler{Plane: p}
	u.smoothX = p.StepX == 2 && p.StepY <= 2 && p.Width > 2 // libjpeg repeats samples of planes narrower than that
	u.fancy = u.smoothX || p.StepX == 1 && p.StepY == 2
	u.out = make([]uint8, p.Width*p.StepX)
	u.column = make([]int32, p.Width)
	return u
}

// row gives the samples for the image's row y, rounded up to whole ones, until it is called again.
func (u *upsampler) row(y int) []uint8 {
	dst, near := u.out, u.Row(y / u.StepY)[:u.Width]
	if !u.fancy {
		if u.StepX == 1 {
			return near
		}
		for x := range dst {
			dst[x] = near[x/u.StepX]
		}
		return dst
	}
	odd := y & 1
	far := near
	if u.StepY == 2 {
		far = u.Row(min(max(y/2-1+2*odd, 0), u.Height-1))[:u.Width]
	}
	switch {
	case u.smoothX && u.StepY == 2: // h2v2: 9/16, 3/16, 3/16, 1/16
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
	return dst
}

// spread doubles column: each sample gives a left pixel, blended with its left neighbour, and a right one. The two
// biases take turns so that the image gets no lighter.
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
