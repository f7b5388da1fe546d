package imaging

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The decoder is our own: image/gif refuses what browsers and Pillow show, and replaces the transparent colour.

func isGIF(data []byte) bool {
	return bytes.HasPrefix(data, []byte("GIF87a")) || bytes.HasPrefix(data, []byte("GIF89a"))
}

// gifFile is the first frame of a GIF.
type gifFile struct {
	w, h         int // of the canvas, grown to hold the frame as in Pillow
	x, y, fw, fh int
	palette      []byte // nil for grey
	background   byte   // the transparent colour, or 0
	interlaced   bool
	codeBits     int
	data         []byte // sub-blocks of codes
}

// subBlock gives the sub-block at the beginning of data and what follows; n is 0 at the terminator.
func subBlock(data []byte) (block, rest []byte) {
	if len(data) == 0 || data[0] == 0 {
		return nil, data[min(1, len(data)):]
	}
	n := min(1+int(data[0]), len(data))
	return data[1:n], data[n:]
}

func openGIF(ctx context.Context, data []byte) (*source, error) {
	if len(data) < 13 {
		return nil, io.ErrUnexpectedEOF
	}
	f := gifFile{w: int(binary.LittleEndian.Uint16(data[6:])), h: int(binary.LittleEndian.Uint16(data[8:]))}
	flags, rest := data[10], data[13:]
	if flags&0x80 != 0 {
		n := min(3<<(flags&7+1), len(rest))
		f.palette, rest = rest[:n], rest[n:]
	}
	if err := f.findFrame(ctx, rest); err != nil {
		return nil, err
	}
	own := Sum(Bytes(1, f.fw), 64<<10)
	out := &source{w: f.w, h: f.h, bytes: Sum(Bytes(3, f.w, f.h), own), decode: f.decode}
	if !f.interlaced {
		out.strips, out.stripped = f.strips, Sum(stripBytes, own)
	}
	return out, nil
}

// findFrame passes over extensions, and like Pillow over bytes that are no block, up to the first frame.
func (f *gifFile) findFrame(ctx context.Context, rest []byte) error {
	for len(rest) > 0 {
		kind := rest[0]
		rest = rest[1:]
		switch kind {
		case ';':
			return errors.New("it has no frame")
		case '!':
			if len(rest) == 0 {
				return io.ErrUnexpectedEOF
			}
			label := rest[0]
			var err error
			if rest, err = f.extension(label, rest[1:]); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		case ',':
			return f.frame(rest)
		}
	}
	return errors.New("it has no frame")
}

// extension passes over one and keeps the transparent colour.
func (f *gifFile) extension(label byte, rest []byte) ([]byte, error) {
	const graphicControl, comment, application = 0xf9, 0xfe, 0xff
	block, rest := subBlock(rest)
	switch {
	case label == graphicControl && block != nil:
		if len(block) < 4 {
			return nil, io.ErrUnexpectedEOF
		}
		if block[0]&1 != 0 {
			f.background = block[3]
		}
	case label == comment && block == nil:
		return rest, nil
	case label == application && bytes.HasPrefix(block, []byte("NETSCAPE2.0")):
		_, rest = subBlock(rest)
	}
	for {
		if block, rest = subBlock(rest); block == nil {
			return rest, nil
		}
	}
}

func (f *gifFile) frame(b []byte) error {
	if len(b) < 10 {
		return io.ErrUnexpectedEOF
	}
	at := func(i int) int { return int(binary.LittleEndian.Uint16(b[i:])) }
	f.x, f.y, f.fw, f.fh = at(0), at(2), at(4), at(6)
	flags := b[8]
	b = b[9:]
	if flags&0x80 != 0 {
		n := min(3<<(flags&7+1), len(b))
		f.palette, b = b[:n], b[n:]
	}
	if len(b) == 0 {
		return io.ErrUnexpectedEOF
	}
	if f.fw == 0 || f.fh == 0 {
		return fmt.Errorf("a frame of %d×%d", f.fw, f.fh)
	}
	if b[0] > 12 {
		return fmt.Errorf("codes of %d bits, want at most 12", b[0])
	}
	f.interlaced, f.codeBits, f.data = flags&0x40 != 0, int(b[0]), b[1:]
	f.w, f.h = max(f.w, f.x+f.fw), max(f.h, f.y+f.fh)
	return nil
}

// colors gives the colours by index. Without a palette they are grey, beyond one black.
func (f *gifFile) colors() (t [256][3]uint8) {
	for i := range t {
		switch {
		case f.palette == nil:
			t[i] = [3]uint8{uint8(i), uint8(i), uint8(i)}
		case 3*i+2 < len(f.palette):
			t[i] = [3]uint8(f.palette[3*i:])
		}
	}
	return t
}

// decode places the frame on a canvas of the transparent colour or, without one, of colour 0, as in Pillow.
func (f *gifFile) decode(ctx context.Context) (*RGB, error) {
	p := scratchRGB(f.w, f.h)
	colors := f.colors()
	if f.fw != f.w || f.fh != f.h {
		fillColor(p.Pix, colors[f.background])
	}
	rows := gifRows(f.fh, f.interlaced)
	err := f.eachPixelRow(ctx, func(y int, row []uint8) error {
		paint(p.Row(f.y + rows(y))[3*f.x:], row, &colors)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func fillColor(pix []uint8, c [3]uint8) {
	for i := 0; i < len(pix); i += 3 {
		pix[i], pix[i+1], pix[i+2] = c[0], c[1], c[2]
	}
}

func paint(out, row []uint8, colors *[256][3]uint8) {
	for x, v := range row {
		copy(out[3*x:3*x+3], colors[v][:])
	}
}

// strips is decode of a frame that is not interlaced.
func (f *gifFile) strips(ctx context.Context, yield func(*RGB) error) error {
	b := newRowBand(f.w, f.h, yield)
	defer Release(b.p)
	colors := f.colors()
	blank := func(from, to int) error {
		for y := from; y < to; y++ {
			fillColor(b.row(y), colors[f.background])
			if err := b.full(y + 1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := blank(0, f.y); err != nil {
		return err
	}
	err := f.eachPixelRow(ctx, func(y int, row []uint8) error {
		out := b.row(f.y + y)
		if f.fw != f.w {
			fillColor(out, colors[f.background])
		}
		paint(out[3*f.x:], row, &colors)
		return b.full(f.y + y + 1)
	})
	if err != nil {
		return err
	}
	return blank(f.y+f.fh, f.h)
}

// eachPixelRow gives the rows of the frame in the order of the file.
func (f *gifFile) eachPixelRow(ctx context.Context, put func(y int, row []uint8) error) error {
	row, x, y := make([]uint8, f.fw), 0, 0
	var failed error
	err := f.codes(ctx, func(s []uint8) bool {
		for len(s) > 0 {
			n := copy(row[x:], s)
			s = s[n:]
			if x += n; x < f.fw {
				return true
			}
			if failed = put(y, row); failed != nil {
				return false
			}
			if x, y = 0, y+1; y == f.fh {
				return false
			}
		}
		return true
	})
	if err == nil {
		err = failed
	}
	return err
}

// gifRows maps the order of the file to rows.
func gifRows(h int, interlaced bool) func(i int) int {
	if !interlaced {
		return func(i int) int { return i }
	}
	return func(i int) int {
		for _, pass := range [4][2]int{{0, 8}, {4, 8}, {2, 4}, {1, 2}} {
			n := max(0, (h-pass[0]+pass[1]-1)/pass[1])
			if i < n {
				return pass[0] + i*pass[1]
			}
			i -= n
		}
		return 0
	}
}

// codes expands LZW codes and gives their strings to emit until that has enough. Terminators among the sub-blocks are
// passed over, and a code of the end does not end, as in Pillow. Too few codes are an error.
func (f *gifFile) codes(ctx context.Context, emit func([]uint8) bool) error {
	var (
		clearCode   = 1 << f.codeBits
		next        = clearCode + 2
		width       = f.codeBits + 1
		suffix      [4096]uint8
		link        [4096]uint16
		stack       [4097]uint8
		acc, n      uint
		block, rest = []byte(nil), f.data
		last        = -1 // the code before; -1 after a clear
		first       uint8
	)
	for count := 0; ; count++ {
		if count&0xffff == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for n < uint(width) {
			for len(block) == 0 {
				if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
					return io.ErrUnexpectedEOF
				}
				block, rest = rest[1:1+int(rest[0])], rest[1+int(rest[0]):]
			}
			acc |= uint(block[0]) << n
			block, n = block[1:], n+8
		}
		code := int(acc & (1<<width - 1))
		acc, n = acc>>width, n-uint(width)
		switch {
		case code == clearCode:
			next, width, last = clearCode+2, f.codeBits+1, -1
			continue
		case code == clearCode+1:
			return io.ErrUnexpectedEOF
		case last < 0 && code > clearCode, code > next:
			return errors.New("a bad code")
		}
		at, c := len(stack), code
		if last >= 0 && code == next {
			at--
			stack[at] = first
			c = last
		}
		for c >= clearCode {
			if at == 0 || c >= 4096 {
				return errors.New("a bad code")
			}
			at--
			stack[at] = suffix[c]
			c = int(link[c])
		}
		if at == 0 {
			return errors.New("a bad code")
		}
		at--
		stack[at], first = uint8(c), uint8(c)
		if last >= 0 && next < 4096 {
			suffix[next], link[next] = first, uint16(last)
			if next == 1<<width-1 && width < 12 {
				width++
			}
			next++
		}
		last = code
		if !emit(stack[at:]) {
			return nil
		}
	}
}
