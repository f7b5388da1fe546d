package imaging

import (
	"encoding/binary"
	"errors"
	"math"
)

// unpredict undoes the prediction of a row of samples: 2 differences of whole numbers, 3 of floats by bytes.
// Reference: Adobe Photoshop TIFF Technical Note 3; TIFF 6.0, section 14.
func (f *tiffFile) unpredict(row []byte, samples int) error {
	order := f.dir.order
	switch {
	case f.predictor == 2 && f.bits == 8:
		for i := samples; i < len(row); i++ {
			row[i] += row[i-samples]
		}
	case f.predictor == 2 && f.bits == 16:
		for i := 2 * samples; i+2 <= len(row); i += 2 {
			order.PutUint16(row[i:], order.Uint16(row[i:])+order.Uint16(row[i-2*samples:]))
		}
	case f.predictor == 2 && f.bits == 32:
		for i := 4 * samples; i+4 <= len(row); i += 4 {
			order.PutUint32(row[i:], order.Uint32(row[i:])+order.Uint32(row[i-4*samples:]))
		}
	case f.predictor == 3 && f.bits == 32 && f.format == 3:
		for i := samples; i < len(row); i++ {
			row[i] += row[i-samples]
		}
		n := len(row) / 4
		split := append([]byte(nil), row...)
		for i := range n {
			v := uint32(split[i])<<24 | uint32(split[n+i])<<16 | uint32(split[2*n+i])<<8 | uint32(split[3*n+i])
			order.PutUint32(row[4*i:], v)
		}
	default:
		return errors.New("its predictor is not supported for its samples")
	}
	return nil
}

// unpacker gives what writes n pixels of a row, whose samples lie side by side.
func (f *tiffFile) unpacker() func(out, row []byte, n int) {
	switch {
	case f.photometric == photoRGB, f.photometric == photoYCbCr && f.samples == 3:
		return f.unpackRGB
	case f.photometric == photoCMYK:
		return f.unpackCMYK
	case f.photometric == photoPalette:
		return f.unpackTable(f.palette)
	}
	if f.bits <= 8 {
		var grey [256][3]uint8
		for i := range grey {
			v := uint8(i * 255 / (1<<f.bits - 1))
			if f.photometric == photoWhiteIsZero {
				v = 255 - v
			}
			grey[i] = [3]uint8{v, v, v}
		}
		return f.unpackTable(grey)
	}
	sample := f.wideSample()
	return func(out, row []byte, n int) {
		for i := range n {
			v := sample(row, i)
			out[3*i], out[3*i+1], out[3*i+2] = v, v, v
		}
	}
}

// unpackTable looks up samples of up to 8 bits; of several in a pixel, which have 8, the first.
func (f *tiffFile) unpackTable(t [256][3]uint8) func(out, row []byte, n int) {
	bits, step, mask := f.bits, f.bits*f.samples, byte(1<<f.bits-1)
	if step == 1 {
		return unpackBits(t[0], t[1])
	}
	return func(out, row []byte, n int) {
		for i := range n {
			bit := i * step
			copy(out[3*i:3*i+3], t[row[bit/8]>>(8-bits-bit%8)&mask][:])
		}
	}
}

// unpackBits looks up eight pixels at a time.
func unpackBits(zero, one [3]uint8) func(out, row []byte, n int) {
	var eight [256][24]uint8
	for v := range eight {
		for i := range 8 {
			c := zero
			if v<<i&0x80 != 0 {
				c = one
			}
			copy(eight[v][3*i:], c[:])
		}
	}
	return func(out, row []byte, n int) {
		for i := 0; i < n; i += 8 {
			copy(out[3*i:3*n], eight[row[i/8]][:])
		}
	}
}

// wideSample reads grey of more than 8 bits and clips it at 0 and 255, as Pillow converts it. White as 0 is not turned
// about, as there.
func (f *tiffFile) wideSample() func(row []byte, i int) uint8 {
	order := f.dir.order
	clip := func(v int64) uint8 { return uint8(min(max(v, 0), 255)) }
	switch {
	case f.bits == 12:
		return func(row []byte, i int) uint8 {
			at := i / 2 * 3
			if i%2 == 0 {
				return clip(int64(row[at])<<4 | int64(row[at+1])>>4)
			}
			return clip(int64(row[at+1]&15)<<8 | int64(row[at+2]))
		}
	case f.bits == 16 && f.format == 2:
		return func(row []byte, i int) uint8 { return clip(int64(int16(order.Uint16(row[2*i:])))) }
	case f.bits == 16:
		return func(row []byte, i int) uint8 { return clip(int64(order.Uint16(row[2*i:]))) }
	case f.format == 3:
		return func(row []byte, i int) uint8 { return floatSample(math.Float32frombits(order.Uint32(row[4*i:]))) }
	}
	return func(row []byte, i int) uint8 { return clip(int64(int32(order.Uint32(row[4*i:])))) }
}

// widths gives the bytes of a sample and the one of them that counts.
func (f *tiffFile) widths() (size, high int) {
	if f.bits == 16 {
		if f.dir.order == binary.ByteOrder(binary.LittleEndian) {
			return 2, 1
		}
		return 2, 0
	}
	return 1, 0
}

func (f *tiffFile) unpackRGB(out, row []byte, n int) {
	size, high := f.widths()
	premultiplied := f.samples > 3 && len(f.extra) > 0 && f.extra[0] == 1
	for i := range n {
		in, o := row[i*size*f.samples+high:], out[3*i:3*i+3]
		o[0], o[1], o[2] = in[0], in[size], in[2*size]
		if premultiplied {
			switch a := int(in[3*size]); a {
			case 255:
			case 0:
				o[0], o[1], o[2] = 0, 0, 0
			default:
				for c, v := range o {
					o[c] = uint8(min(int(v)*255/a, 255))
				}
			}
		}
	}
}

func (f *tiffFile) unpackCMYK(out, row []byte, n int) {
	size, high := f.widths()
	for i := range n {
		in, o := row[i*size*f.samples+high:], out[3*i:3*i+3]
		white := 255 - int32(in[3*size])
		for c := range 3 {
			o[c] = clip8(white - int32(mulDiv255(uint32(in[c*size]), uint32(white))))
		}
	}
}
