package imaging

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/image/tiff/lzw"

	"github.com/mmserve/mmserve/internal/jpeg"
)

// Compressions.
const (
	tiffNone     = 1
	tiffFaxRows  = 2
	tiffFax3     = 3
	tiffFax4     = 4
	tiffLZW      = 5
	tiffJPEG     = 7
	tiffDeflate  = 8
	tiffFaxWords = 32771
	tiffPackBits = 32773
	tiffDeflate2 = 32946
	tiffLZMA     = 34925
	tiffZstd     = 50000
	tiffWebP     = 50001
)

var tiffCompressions = map[int]bool{
	tiffNone: true, tiffFaxRows: true, tiffFaxWords: true, tiffFax3: true, tiffFax4: true, tiffLZW: true, tiffJPEG: true, tiffDeflate: true, tiffPackBits: true,
	tiffDeflate2: true, tiffLZMA: true, tiffZstd: true, tiffWebP: true,
}

// maxWindow bounds the memory that a decompressor takes for what it has written before.
const maxWindow = 8 << 20

// stored gives the bytes of a strip or tile.
func (f *tiffFile) stored(i int) ([]byte, error) {
	at := f.offsets[i]
	if at > int64(len(f.data)) {
		return nil, io.ErrUnexpectedEOF
	}
	b := f.data[at:]
	if f.compression != tiffNone {
		b = b[:min(f.counts[i], int64(len(b)))]
	}
	return b, nil
}

// chunk gives the decompressed bytes of a strip or tile, in rows of rowBytes.
func (f *tiffFile) chunk(ctx context.Context, i, rowBytes int) (io.Reader, error) {
	b, err := f.stored(i)
	if err != nil {
		return nil, err
	}
	if f.isFax() {
		return f.fax(ctx, b)
	}
	if f.reversed {
		if f.compression == tiffNone {
			b = b[:min(int64(len(b)), Bytes(rowBytes, f.ch))]
		}
		b = append([]byte(nil), b...)
		for j, v := range b {
			b[j] = bits.Reverse8(v)
		}
	}
	r := io.Reader(contextReader{ctx, bytes.NewReader(b)})
	switch f.compression {
	case tiffLZW:
		return lzw.NewReader(r, lzw.MSB, 8), nil
	case tiffDeflate, tiffDeflate2:
		z, err := zlib.NewReader(r)
		if err != nil {
			return nil, tiffError(err)
		}
		return z, nil
	case tiffPackBits:
		return &packBits{b: b, row: rowBytes}, nil
	case tiffZstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, tiffError(err)
		}
		return z.IOReadCloser(), nil
	case tiffLZMA:
		return openXZ(b)
	}
	return r, nil
}

// fax reads rows of bits. libtiff takes white for 0 whatever the file says; what the file says counts afterwards.
func (f *tiffFile) fax(ctx context.Context, b []byte) (io.Reader, error) {
	if f.bits != 1 || f.samples != 1 {
		return nil, errors.New("a fax of more than one bit a pixel")
	}
	const twoDimensional = 1
	kind := faxKind{}
	switch f.compression {
	case tiffFaxRows:
		kind = faxKind{flat: true, align: 8}
	case tiffFaxWords:
		kind = faxKind{flat: true, align: 16}
	case tiffFax3:
		modes := f.dir.or(tagT4Options, 0)&twoDimensional != 0
		kind = faxKind{ends: true, modes: modes, flat: !modes}
	}
	return newFax(ctx, b, f.cw, f.reversed, kind), nil
}

// isFax tells the compressions that read their bits in the file's order themselves.
func (f *tiffFile) isFax() bool {
	switch f.compression {
	case tiffFaxRows, tiffFaxWords, tiffFax3, tiffFax4:
		return true
	}
	return false
}

// packBits undoes run lengths.
type packBits struct {
	b       []byte
	row     int
	literal int
	repeat  int
	v       byte
}

func (r *packBits) Read(out []byte) (n int, err error) {
	for n < len(out) {
		switch {
		case r.literal > 0:
			k := copy(out[n:], r.b[:min(r.literal, len(r.b))])
			if k == 0 {
				return n, io.ErrUnexpectedEOF
			}
			r.b, r.literal, n = r.b[k:], r.literal-k, n+k
		case r.repeat > 0:
			out[n], r.repeat, n = r.v, r.repeat-1, n+1
		case len(r.b) == 0:
			return n, io.EOF
		case r.b[0] == 0x80:
			r.b = r.b[1:]
		case r.b[0] < 0x80:
			r.literal, r.b = int(r.b[0])+1, r.b[1:]
		default:
			if len(r.b) < 2 {
				return n, io.ErrUnexpectedEOF
			}
			r.repeat, r.v, r.b = 257-int(r.b[0]), r.b[1], r.b[2:]
		}
	}
	return n, nil
}

// decodeImages reads strips or tiles that are image files of their own.
func (f *tiffFile) decodeImages(ctx context.Context, p *RGB) error {
	if f.bits != 8 || f.planar && f.samples > 1 {
		return fmt.Errorf("JPEG or WebP of %d bits, in planes %v, is not supported", f.bits, f.planar)
	}
	for i := range f.across * ((f.h + f.ch - 1) / f.ch) {
		b, err := f.stored(i)
		if err != nil {
			return err
		}
		x, y := i%f.across*f.cw, i/f.across*f.ch
		var part *RGB
		if f.compression == tiffWebP {
			part, err = f.decodeWebP(ctx, b)
		} else {
			part, err = f.decodeJPEG(ctx, b)
		}
		if err != nil {
			return err
		}
		w, h := min(f.cw, f.w-x), min(f.ch, f.h-y)
		if part.W < w || part.H < h {
			return fmt.Errorf("a strip or tile of %d×%d where it should have %d×%d", part.W, part.H, w, h)
		}
		for r := range h {
			copy(p.Row(y + r)[3*x:], part.Row(r)[:3*w])
		}
		Release(part)
	}
	return nil
}

// fits refuses an inner image that is larger than its strip or tile.
func (f *tiffFile) fits(w, h int) error {
	if w > f.cw || h > max(f.ch, 16) {
		return fmt.Errorf("an image of %d×%d in a strip or tile of %d×%d", w, h, f.cw, f.ch)
	}
	return nil
}

func (f *tiffFile) decodeWebP(ctx context.Context, b []byte) (*RGB, error) {
	if !isWebP(b) {
		return nil, errors.New("a strip or tile is no WebP")
	}
	s, err := openWebP(ctx, b)
	if err != nil {
		return nil, err
	}
	if err := f.fits(s.w, s.h); err != nil {
		return nil, err
	}
	return s.decode(ctx)
}

// decodeJPEG reads an abbreviated JPEG with the tables of the directory. What its components are the directory says.
func (f *tiffFile) decodeJPEG(ctx context.Context, b []byte) (*RGB, error) {
	if tables := f.dir.fields[tagJPEGTables].raw; len(tables) > 4 && len(b) > 2 {
		if end := len(tables) - 2; tables[end] == 0xff && tables[end+1] == 0xd9 {
			tables = tables[:end]
		}
		b = append(append([]byte(nil), tables...), b[2:]...)
	}
	c, err := jpeg.DecodeConfig(b)
	if err != nil {
		return nil, err
	}
	if err := f.fits(c.Width, c.Height); err != nil {
		return nil, err
	}
	if c.Components != f.samples {
		return nil, fmt.Errorf("a JPEG of %d components for %d samples", c.Components, f.samples)
	}
	m, err := jpeg.Decode(ctx, b)
	if err != nil {
		return nil, err
	}
	switch f.photometric {
	case photoYCbCr:
		m.Model = jpeg.YCbCr
		if f.samples == 1 {
			m.Model = jpeg.Gray
		}
	case photoRGB:
		m.Model = jpeg.RGB
	case photoCMYK:
		if len(m.Planes) != 4 {
			return nil, errors.New("CMYK of other than four components as JPEG is not supported")
		}
		m.Model = jpeg.CMYK
		for _, plane := range m.Planes { // inks are 255 here, where Adobe's JPEG files have 0
			for i, v := range plane.Pix {
				plane.Pix[i] = 255 - v
			}
		}
	case photoPalette:
		return nil, errors.New("a palette as JPEG is not supported")
	default:
		m.Model = jpeg.Gray
	}
	p, err := jpegColors(ctx, m)
	if err == nil && f.photometric == photoWhiteIsZero {
		for i, v := range p.Pix {
			p.Pix[i] = 255 - v
		}
	}
	return p, err
}
