package imaging

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
)

// tgaFile is a Targa image.
type tgaFile struct {
	w, h         int
	kind         byte // 1 indexed, 2 colours, 3 grey
	runs         bool
	depth        int
	up, leftward bool
	palette      [256][3]uint8
	pixels       []byte
}

// isTGA holds every field of a header without signature to what exists.
func isTGA(data []byte) bool {
	if len(data) < 19 {
		return false
	}
	le := binary.LittleEndian
	kind, depth := data[2]&^8, data[16]
	w, h, interleaved := le.Uint16(data[12:]), le.Uint16(data[14:]), data[17]&0xc0
	if data[1] > 1 || kind < 1 || kind > 3 || data[2] > 11 || w == 0 || h == 0 || interleaved != 0 {
		return false
	}
	switch {
	case data[1] == 1 && data[7] != 16 && data[7] != 24 && data[7] != 32:
		return false
	case data[1] == 0 && (le.Uint32(data[3:]) != 0 || data[7] != 0):
		return false
	case kind == 1:
		return depth == 8 && data[1] == 1
	case kind == 2:
		return depth == 16 || depth == 24 || depth == 32
	}
	return depth == 1 && data[2] == 3 || depth == 8 || depth == 16
}

func openTGA(ctx context.Context, data []byte) (*source, error) {
	le := binary.LittleEndian
	f := tgaFile{
		w: int(le.Uint16(data[12:])), h: int(le.Uint16(data[14:])), kind: data[2] &^ 8, runs: data[2]&8 != 0,
		depth: int(data[16]), up: data[17]&0x20 == 0, leftward: data[17]&0x10 != 0,
	}
	at := 18 + int(data[0])
	if data[1] == 1 {
		first, n, size := int(le.Uint16(data[3:])), int(le.Uint16(data[5:])), (int(data[7])+7)/8
		if first+n > 256 {
			return nil, errors.New("a palette of more than 256 colours")
		}
		if at+n*size > len(data) {
			return nil, io.ErrUnexpectedEOF
		}
		for i := range n {
			tgaColor(f.palette[first+i][:], data[at+i*size:][:size])
		}
		at += n * size
	}
	if at > len(data) {
		return nil, io.ErrUnexpectedEOF
	}
	f.pixels = data[at:]
	return &source{w: f.w, h: f.h, bytes: Sum(Bytes(3, f.w, f.h), Bytes(4, f.w)), decode: f.decode}, nil
}

// tgaColor reads blue, green and red, of 5 bits each where in has two bytes.
func tgaColor(out, in []byte) {
	if len(in) == 2 {
		v := int(binary.LittleEndian.Uint16(in))
		out[0], out[1], out[2] = uint8(v>>10&31*255/31), uint8(v>>5&31*255/31), uint8(v&31*255/31)
		return
	}
	out[0], out[1], out[2] = in[2], in[1], in[0]
}

func (f *tgaFile) decode(ctx context.Context) (*RGB, error) {
	p := scratchRGB(f.w, f.h)
	rowBytes := (f.w*f.depth + 7) / 8
	row, rest := make([]byte, rowBytes), f.pixels
	var literal, repeat int // bytes still to come of a packet
	var pixel []byte
	for i := range f.h {
		if i&63 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !f.runs {
			if len(rest) < rowBytes {
				return nil, io.ErrUnexpectedEOF
			}
			row, rest = rest[:rowBytes], rest[rowBytes:]
		}
		for at := 0; f.runs && at < rowBytes; {
			size := f.depth / 8
			switch {
			case literal > 0:
				n := min(literal, rowBytes-at, len(rest))
				if n == 0 {
					return nil, io.ErrUnexpectedEOF
				}
				copy(row[at:], rest[:n])
				at, literal, rest = at+n, literal-n, rest[n:]
			case repeat > 0:
				if repeat > rowBytes-at {
					return nil, errors.New("a run goes beyond its row")
				}
				for ; repeat > 0; repeat -= size {
					at += copy(row[at:], pixel)
				}
			case len(rest) < 1+size:
				return nil, io.ErrUnexpectedEOF
			default:
				n := size * (int(rest[0]&0x7f) + 1)
				if rest[0]&0x80 != 0 {
					repeat, pixel, rest = n, rest[1:1+size], rest[1+size:]
				} else {
					literal, rest = n, rest[1:]
				}
			}
		}
		y := i
		if f.up {
			y = f.h - 1 - i
		}
		f.unpack(p.Row(y), row)
	}
	return p, nil
}

func (f *tgaFile) unpack(out, row []byte) {
	for x := range f.w {
		to := x
		if f.leftward {
			to = f.w - 1 - x
		}
		o := out[3*to : 3*to+3]
		switch {
		case f.kind == 1:
			copy(o, f.palette[row[x]][:])
		case f.kind == 2:
			size := f.depth / 8
			tgaColor(o, row[size*x:][:size])
		case f.depth == 1:
			v := 255 * (row[x/8] >> (7 - x%8) & 1)
			o[0], o[1], o[2] = v, v, v
		default:
			v := row[f.depth/8*x]
			o[0], o[1], o[2] = v, v, v
		}
	}
}
