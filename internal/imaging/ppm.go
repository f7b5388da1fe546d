package imaging

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

// ppmFile is a portable bit, grey, pixel or float map.
type ppmFile struct {
	kind     byte // 1 to 6, f
	w, h     int
	most     int // the largest sample
	scale    float64
	channels int
	pixels   []byte
}

func isPPM(data []byte) bool {
	return len(data) >= 3 && data[0] == 'P' && (data[1] >= '1' && data[1] <= '6' || data[1] == 'f') && isSpace(data[2])
}

func isSpace(c byte) bool { return c == ' ' || c >= 9 && c <= 13 }

// token gives the next word of the header and what follows the one byte after it. Comments are passed over.
func token(b []byte) (word string, rest []byte, err error) {
	var w []byte
	for len(w) <= 10 && len(b) > 0 {
		c := b[0]
		b = b[1:]
		if c == '#' {
			for len(b) > 0 && b[0] != '\r' && b[0] != '\n' {
				b = b[1:]
			}
			b = b[min(1, len(b)):]
			continue
		}
		if isSpace(c) {
			if len(w) > 0 {
				break
			}
			continue
		}
		w = append(w, c)
	}
	if len(w) == 0 {
		return "", nil, io.ErrUnexpectedEOF
	}
	if len(w) > 10 {
		return "", nil, errors.New("a number of the header is too long")
	}
	return string(w), b, nil
}

func number(b []byte, most int) (n int, rest []byte, err error) {
	w, rest, err := token(b)
	if err != nil {
		return 0, nil, err
	}
	if n, err = strconv.Atoi(w); err != nil || n < 0 || n > most {
		return 0, nil, fmt.Errorf("its header has a number that is none, or above %d", most)
	}
	return n, rest, nil
}

func openPPM(ctx context.Context, data []byte) (*source, error) {
	f := ppmFile{kind: data[1], channels: 1, most: 255}
	var err error
	b := data[3:]
	if f.w, b, err = number(b, math.MaxInt32); err != nil {
		return nil, err
	}
	if f.h, b, err = number(b, math.MaxInt32); err != nil {
		return nil, err
	}
	switch f.kind {
	case '1', '4':
		f.most = 1
	case 'f':
		var w string
		if w, b, err = token(b); err != nil {
			return nil, err
		}
		f.scale, err = strconv.ParseFloat(w, 64)
		finite := !math.IsInf(f.scale, 0) && !math.IsNaN(f.scale)
		if err != nil || f.scale == 0 || !finite {
			return nil, errors.New("its scale is no finite number, or 0")
		}
	default:
		if f.most, b, err = number(b, 65535); err != nil {
			return nil, err
		}
		if f.most == 0 {
			return nil, errors.New("its largest sample is 0")
		}
		if f.kind == '3' || f.kind == '6' {
			f.channels = 3
		}
	}
	f.pixels = b
	return &source{w: f.w, h: f.h, bytes: Bytes(3, f.w, f.h), decode: f.decode}, nil
}

func (f *ppmFile) decode(ctx context.Context) (*RGB, error) {
	switch f.kind {
	case '1', '2', '3':
		return f.decodePlain(ctx)
	}
	bits := 8 * f.channels
	switch {
	case f.kind == '4':
		bits = 1
	case f.kind == 'f':
		bits = 32
	case f.most > 255:
		bits *= 2
	}
	rowBytes := (f.w*bits + 7) / 8
	if int64(len(f.pixels)) < int64(rowBytes)*int64(f.h) {
		return nil, io.ErrUnexpectedEOF
	}
	p := scratchRGB(f.w, f.h)
	err := eachBand(ctx, f.h, 6*f.w, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			f.unpack(p.Row(y), y, rowBytes)
		}
	})
	return p, err
}

// unpack writes row y. A float map's rows go up.
func (f *ppmFile) unpack(out []byte, y, rowBytes int) {
	if f.kind == 'f' {
		y = f.h - 1 - y
	}
	row := f.pixels[y*rowBytes:][:rowBytes]
	for i := range f.w * f.channels {
		var v uint8
		switch {
		case f.kind == '4':
			v = 255 * (1 - row[i/8]>>(7-i%8)&1)
		case f.kind == 'f':
			order := binary.ByteOrder(binary.BigEndian)
			if f.scale < 0 {
				order = binary.LittleEndian
			}
			v = floatSample(math.Float32frombits(order.Uint32(row[4*i:])))
		case f.most > 255:
			v = f.sample(int(binary.BigEndian.Uint16(row[2*i:])))
		default:
			v = f.sample(int(row[i]))
		}
		if f.channels == 3 {
			out[i] = v
		} else {
			out[3*i], out[3*i+1], out[3*i+2] = v, v, v
		}
	}
}

// sample scales to 255. Grey of more than 8 bits is scaled to 16 and clipped at 255, as Pillow converts it.
func (f *ppmFile) sample(v int) uint8 {
	most := 255.0
	if f.channels == 1 && f.most > 255 {
		most = 65535
	}
	if float64(f.most) == most {
		return uint8(min(v, 255))
	}
	return uint8(min(math.RoundToEven(float64(v)/float64(f.most)*most), 255))
}

// floatSample clips and cuts, as Pillow's conversion of floats does.
func floatSample(v float32) uint8 {
	switch {
	case v >= 255:
		return 255
	case v > 0:
		return uint8(v)
	}
	return 0
}

// decodePlain reads samples written as numbers.
func (f *ppmFile) decodePlain(ctx context.Context) (*RGB, error) {
	p := scratchRGB(f.w, f.h)
	b := f.pixels
	for i := range f.w * f.h * f.channels {
		if i&0xffff == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, rest, err := f.plainSample(b)
		if err != nil {
			return nil, err
		}
		b = rest
		v := f.sample(n)
		if f.kind == '1' {
			v = uint8(255 * (1 - n))
		}
		if f.channels == 3 {
			p.Pix[i] = v
		} else {
			p.Pix[3*i], p.Pix[3*i+1], p.Pix[3*i+2] = v, v, v
		}
	}
	return p, nil
}

// plainSample reads a number; of a bit map it is one digit, with or without space after it.
func (f *ppmFile) plainSample(b []byte) (n int, rest []byte, err error) {
	for len(b) > 0 && (isSpace(b[0]) || b[0] == '#') {
		if b[0] == '#' {
			for len(b) > 0 && b[0] != '\r' && b[0] != '\n' {
				b = b[1:]
			}
			continue
		}
		b = b[1:]
	}
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9' && i < 10; i++ {
		if n = 10*n + int(b[i]-'0'); f.kind == '1' {
			i++
			break
		}
	}
	switch {
	case len(b) == 0:
		return 0, nil, io.ErrUnexpectedEOF
	case i == 0, n > f.most, f.kind != '1' && i < len(b) && !isSpace(b[i]) && b[i] != '#':
		return 0, nil, fmt.Errorf("a sample is no number up to %d", f.most)
	}
	return n, b[i:], nil
}
