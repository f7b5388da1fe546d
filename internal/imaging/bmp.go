package imaging

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The decoder is our own: x/image/bmp reads neither runs nor 16 bits nor bit fields nor OS/2 headers.

// isBMP also looks at the size of the second header, since two letters can begin any text.
func isBMP(data []byte) bool {
	return len(data) >= 18 && string(data[:2]) == "BM" && isDIB(data[14:])
}

func isDIB(data []byte) bool {
	switch binary.LittleEndian.Uint32(data) {
	case 12, 40, 52, 56, 64, 108, 124:
		return true
	}
	return false
}

const (
	bmpRaw = iota
	bmpRLE8
	bmpRLE4
	bmpBitFields
)

// bmpFile is a bitmap from its second header on.
type bmpFile struct {
	w, h        int
	topDown     bool
	bits        int
	compression uint32
	palette     [256][3]uint8
	masks       [4]uint32
	pixels      []byte
	wordOdd     bool // the pixels begin at an odd offset of the file
}

func openBMP(ctx context.Context, data []byte) (*source, error) {
	f, err := readDIB(data, 14, int64(binary.LittleEndian.Uint32(data[10:])))
	if err != nil {
		return nil, err
	}
	return f.source(), nil
}

func (f *bmpFile) source() *source {
	return &source{w: f.w, h: f.h, bytes: Bytes(3, f.w, f.h), decode: f.decode}
}

// readDIB reads the header at file[at:]. offset is where the file says that pixels begin; 0 stands for after the
// palette.
func readDIB(file []byte, at int, offset int64) (*bmpFile, error) {
	if len(file)-at < 12 || !isDIB(file[at:]) {
		return nil, errors.New("its header is of no known kind")
	}
	le := binary.LittleEndian
	b := file[at:]
	size := int(le.Uint32(b))
	if len(b) < size {
		return nil, io.ErrUnexpectedEOF
	}
	f := &bmpFile{}
	padding, colors := 4, int64(0)
	after := at + size
	if size == 12 {
		f.w, f.h, f.bits, padding = int(le.Uint16(b[4:])), int(le.Uint16(b[6:])), int(le.Uint16(b[10:])), 3
	} else {
		height := int64(le.Uint32(b[8:]))
		if f.topDown = b[11] == 0xff; f.topDown {
			height = 1<<32 - height
		}
		f.w, f.h, f.bits, f.compression = int(le.Uint32(b[4:])), int(height), int(le.Uint16(b[14:])), le.Uint32(b[16:])
		colors = int64(le.Uint32(b[32:]))
		if f.compression == bmpBitFields {
			n := 3
			switch {
			case size >= 56:
				n = 4
				b = b[40:]
			case size >= 52:
				b = b[40:]
			default:
				if b = file[after:]; len(b) < 12 {
					return nil, io.ErrUnexpectedEOF
				}
				after += 12
			}
			for i := range n {
				f.masks[i] = le.Uint32(b[4*i:])
			}
		}
	}
	if colors == 0 && f.bits <= 32 {
		colors = 1 << f.bits
	}
	if offset == int64(14+size) && f.bits <= 8 {
		offset += int64(padding) * colors
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	if f.bits <= 8 {
		if colors < 1 || colors > 65536 {
			return nil, fmt.Errorf("a palette of %d colours, want 1 to 65536", colors)
		}
		n := min(int(colors)*padding, len(file)-after)
		f.readPalette(file[after:after+n], padding, int(colors))
		after += n
	}
	if offset == 0 {
		offset = int64(after)
	}
	if offset > int64(len(file)) {
		return nil, io.ErrUnexpectedEOF
	}
	f.pixels, f.wordOdd = file[offset:], offset%2 == 1
	return f, nil
}

func (f *bmpFile) check() error {
	switch f.bits {
	case 1, 4, 8, 16, 24, 32:
	default:
		return fmt.Errorf("%d bits a pixel are not supported, want 1, 4, 8, 16, 24 or 32", f.bits)
	}
	switch f.compression {
	case bmpRaw:
	case bmpRLE8, bmpRLE4:
		if f.bits > 8 {
			return fmt.Errorf("run lengths with %d bits a pixel", f.bits)
		}
	case bmpBitFields:
		if _, ok := f.channels(); !ok {
			return fmt.Errorf("the bit fields are not supported with %d bits a pixel", f.bits)
		}
	case 4:
		return errors.New("JPEG within a bitmap is not supported")
	case 5:
		return errors.New("PNG within a bitmap is not supported")
	default:
		return fmt.Errorf("compression %d is not supported", f.compression)
	}
	return nil
}

// channels gives the bytes of red, green and blue in a pixel of 24 or 32 bits by its masks: those that Pillow knows.
func (f *bmpFile) channels() (at [3]int, ok bool) {
	if f.compression != bmpBitFields {
		return [3]int{2, 1, 0}, f.bits >= 24
	}
	m := f.masks
	rgb := [3]uint32{m[0], m[1], m[2]}
	switch f.bits {
	case 32:
		switch m {
		case [4]uint32{0xff0000, 0xff00, 0xff, 0}, [4]uint32{0xff0000, 0xff00, 0xff, 0xff000000}, [4]uint32{}:
			return [3]int{2, 1, 0}, true
		case [4]uint32{0xff000000, 0xff0000, 0xff00, 0}, [4]uint32{0xff000000, 0xff0000, 0xff00, 0xff}:
			return [3]int{3, 2, 1}, true
		case [4]uint32{0xff000000, 0xff00, 0xff, 0}, [4]uint32{0xff000000, 0xff00, 0xff, 0xff0000}:
			return [3]int{3, 1, 0}, true
		case [4]uint32{0xff, 0xff00, 0xff0000, 0xff000000}:
			return [3]int{0, 1, 2}, true
		}
	case 24:
		return [3]int{2, 1, 0}, rgb == [3]uint32{0xff0000, 0xff00, 0xff}
	case 16:
		return at, rgb == [3]uint32{0xf800, 0x7e0, 0x1f} || rgb == [3]uint32{0x7c00, 0x3e0, 0x1f}
	}
	return at, false
}

// readPalette follows Pillow: colours beyond a short palette are black, and grey ones in order are their indices.
func (f *bmpFile) readPalette(b []byte, padding, colors int) {
	for i := range min(colors, 256) {
		if e := b[min(i*padding, len(b)):]; len(e) >= 3 {
			f.palette[i] = [3]uint8{e[2], e[1], e[0]}
		}
	}
}

func (f *bmpFile) decode(ctx context.Context) (*RGB, error) {
	if f.compression == bmpRLE4 || f.compression == bmpRLE8 {
		return f.decodeRuns(ctx)
	}
	stride := (f.w*f.bits + 31) / 32 * 4
	rowBytes := (f.w*f.bits + 7) / 8
	// Padding after the last row may be missing.
	if need := int64(stride)*int64(f.h-1) + int64(rowBytes); int64(len(f.pixels)) < need {
		return nil, io.ErrUnexpectedEOF
	}
	p := scratchRGB(f.w, f.h)
	err := eachBand(ctx, f.h, 4*f.w, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			f.unpack(p.Row(f.target(y)), f.pixels[y*stride:][:rowBytes])
		}
	})
	return p, err
}

func (f *bmpFile) target(y int) int {
	if f.topDown {
		return y
	}
	return f.h - 1 - y
}

func (f *bmpFile) unpack(out, row []byte) {
	switch f.bits {
	case 1, 4, 8:
		mask := byte(1<<f.bits - 1)
		for x := range f.w {
			bit := x * f.bits
			copy(out[3*x:3*x+3], f.palette[row[bit/8]>>(8-f.bits-bit%8)&mask][:])
		}
	case 16:
		green, greenMost := 5, 31
		if f.compression == bmpBitFields && f.masks[1] == 0x7e0 {
			green, greenMost = 6, 63
		}
		for x := range f.w {
			v := int(binary.LittleEndian.Uint16(row[2*x:]))
			o := out[3*x : 3*x+3]
			o[0] = uint8(v >> (5 + green) & 31 * 255 / 31)
			o[1] = uint8(v >> 5 & greenMost * 255 / greenMost)
			o[2] = uint8(v & 31 * 255 / 31)
		}
	default:
		at, _ := f.channels()
		n := f.bits / 8
		for x := range f.w {
			in, o := row[n*x:][:n], out[3*x:3*x+3]
			o[0], o[1], o[2] = in[at[0]], in[at[1]], in[at[2]]
		}
	}
}

// decodeRuns reads run lengths. What they leave out has colour 0; runs end at their row, and rows are counted by
// pixels, as in Pillow.
func (f *bmpFile) decodeRuns(ctx context.Context) (*RGB, error) {
	r := &bmpRuns{bmpFile: f, p: scratchRGB(f.w, f.h)}
	b, at, x := f.pixels, 0, 0
	for r.y < f.h && at+1 < len(b) {
		if at&0xffff < 2 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, v := int(b[at]), b[at+1]
		at += 2
		switch {
		case n > 0:
			n = max(0, min(n, f.w-x))
			r.run(n, v)
			x += n
		case v == 0: // end of line
			r.run((f.w-r.x)%f.w, 0)
			x = 0
		case v == 1: // end of bitmap
			at = len(b)
		case v == 2:
			if at+2 > len(b) {
				at = len(b)
				break
			}
			r.run(int(b[at])+int(b[at+1])*f.w, 0)
			x, at = r.x, at+2
		default:
			n := min(f.w*f.h-f.w*r.y-r.x, int(v))
			bytes := n
			if f.compression == bmpRLE4 {
				bytes = (n + 1) / 2
			}
			short := len(b)-at < bytes
			r.literal(b[at:min(at+bytes, len(b))], n)
			if at += bytes; short {
				at = len(b)
			}
			x += int(v)
			if (at%2 == 1) != f.wordOdd {
				at++
			}
		}
	}
	if r.y < f.h {
		return nil, io.ErrUnexpectedEOF
	}
	return r.p, nil
}

// bmpRuns places pixels in the order of the file. x and y are those of the next.
type bmpRuns struct {
	*bmpFile
	p    *RGB
	x, y int
}

func (r *bmpRuns) put(v uint8) {
	if r.y >= r.h {
		return
	}
	copy(r.p.Pix[3*(r.w*r.target(r.y)+r.x):][:3], r.palette[v][:])
	if r.x++; r.x == r.w {
		r.x, r.y = 0, r.y+1
	}
}

func (r *bmpRuns) run(n int, v uint8) {
	pair := [2]uint8{v, v}
	if r.compression == bmpRLE4 {
		pair = [2]uint8{v >> 4, v & 15}
	}
	for i := 0; i < n && r.y < r.h; i++ {
		r.put(pair[i%2])
	}
}

func (r *bmpRuns) literal(b []byte, n int) {
	if r.compression == bmpRLE8 {
		for _, v := range b {
			r.put(v)
		}
		return
	}
	for i := range min(n, 2*len(b)) {
		r.put(b[i/2] >> (4 - 4*(i%2)) & 15)
	}
}
