package imaging

import (
	"compress/zlib"
	"context"
	"errors"
	"io"
	"math/bits"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/image/tiff/lzw"
)

// Compressions.
const (
	tiffNone     = 1
	tiffFaxRows  = 2
	tiffFax3     = 3
	tiffFax4     = 4
	tiffLZW      = 5
	tiffOldJPEG  = 6
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
	tiffNone: true, tiffPackBits: true,
	tiffFaxRows: true, tiffFaxWords: true, tiffFax3: true, tiffFax4: true,
	tiffLZW: true, tiffDeflate: true, tiffDeflate2: true, tiffLZMA: true, tiffZstd: true,
	tiffOldJPEG: true, tiffJPEG: true, tiffWebP: true,
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

// tiffStream gives the decompressed bytes of a strip or tile.
type tiffStream struct {
	io.Reader
	*meter
}

// fill reads len(b) bytes. On an error it tells how many there were.
func (s *tiffStream) fill(b []byte) (int, error) {
	n, err := io.ReadFull(s.Reader, b)
	s.made += int64(n)
	return n, err
}

// Close keeps the decompressor for the next strip or tile: what it holds may be much more than that.
func (s *tiffStream) Close() error {
	s.rest = nil // what is kept must not keep the file
	switch r := s.Reader.(type) {
	case zlib.Resetter:
		inflaters.Put(s.Reader)
	case *zstd.Decoder:
		_ = r.Reset(nil) // it cannot fail
		unzstds.Put(r)
	case io.Closer:
		return r.Close()
	}
	return nil
}

var inflaters, unzstds sync.Pool

// chunk opens a strip or tile, in rows of rowBytes.
func (f *tiffFile) chunk(ctx context.Context, i, rowBytes int) (*tiffStream, error) {
	b, err := f.stored(i)
	if err != nil {
		return nil, err
	}
	m := newMeter(ctx, b, rowBytes)
	if f.isFax() {
		r, err := f.fax(ctx, b)
		return &tiffStream{r, m}, err
	}
	if f.reversed {
		if f.compression == tiffNone {
			b = b[:min(int64(len(b)), Bytes(rowBytes, f.ch))]
		}
		b = append([]byte(nil), b...)
		for j, v := range b {
			b[j] = bits.Reverse8(v)
		}
		m.rest = b
	}
	r, err := f.decompressor(m, b, rowBytes)
	if err != nil {
		return nil, tiffError(err)
	}
	return &tiffStream{r, m}, nil
}

func (f *tiffFile) decompressor(m *meter, b []byte, rowBytes int) (io.Reader, error) {
	switch f.compression {
	case tiffLZW:
		return lzw.NewReader(m, lzw.MSB, 8), nil
	case tiffDeflate, tiffDeflate2:
		if r, ok := inflaters.Get().(zlib.Resetter); ok {
			return r.(io.Reader), r.Reset(m, nil)
		}
		return zlib.NewReader(m)
	case tiffPackBits:
		return &packBits{b: b, row: rowBytes}, nil
	case tiffZstd:
		if r, ok := unzstds.Get().(*zstd.Decoder); ok {
			return r, r.Reset(m)
		}
		return zstd.NewReader(m, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderMaxWindow(maxWindow))
	case tiffLZMA:
		return openXZ(b, Bytes(rowBytes, f.ch))
	}
	return m, nil
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
		case r.b[0] == 0x80: // nothing
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
