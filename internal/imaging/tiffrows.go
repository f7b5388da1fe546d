package imaging

import (
	"context"
	"errors"
	"io"
)

// bandHeight is the rows of a band: as many as a tile has where several lie side by side.
func (f *tiffFile) bandHeight() int {
	if f.across > 1 {
		return min(f.ch, f.h)
	}
	return stripRows(f.w, f.h)
}

// tiffRows gives the rows of a strip or tile, one after the other. A row has n pixels.
type tiffRows interface {
	row(out []uint8, n int) error
	io.Closer
}

// strips reads strip after strip, tile after tile, row by row.
func (f *tiffFile) strips(ctx context.Context, yield func(*RGB) error) error {
	switch f.compression {
	case tiffOldJPEG:
		return f.oldJPEGStrips(ctx, yield)
	case tiffJPEG, tiffWebP:
		return f.imageStrips(ctx, yield)
	}
	open, err := f.opener()
	if err != nil {
		return err
	}
	b := &rowBand{p: scratchRGB(f.w, f.bandHeight()), h: f.h, yield: yield}
	defer Release(b.p)
	for i := range f.across * ((f.h + f.ch - 1) / f.ch) {
		x, y := i%f.across*f.cw, i/f.across*f.ch
		n := min(f.cw, f.w-x)
		rows, err := open(ctx, i)
		if err != nil {
			return err
		}
		for j := range min(f.ch, f.h-y) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := rows.row(b.row(y + j)[3*x:][:3*n], n); err != nil {
				return err
			}
			if f.across > 1 {
				continue
			}
			if err := b.full(y + j + 1); err != nil {
				return err
			}
		}
		rows.Close()
		if f.across > 1 && i%f.across == f.across-1 {
			if err := b.full(min(y+f.ch, f.h)); err != nil {
				return err
			}
		}
	}
	return nil
}

// opener gives what opens a strip or tile by its number.
func (f *tiffFile) opener() (func(ctx context.Context, i int) (tiffRows, error), error) {
	switch {
	case f.photometric == photoYCbCr && f.samples == 3 && !f.planar:
		c, err := f.newYCbCr()
		return func(ctx context.Context, i int) (tiffRows, error) { return f.openClumps(ctx, c, i), nil }, err
	case f.planar && f.samples > 1:
		return f.planeOpener()
	}
	unpack := f.unpacker()
	return func(ctx context.Context, i int) (tiffRows, error) {
		p, err := f.openPlane(ctx, i, f.samples)
		return &plainRows{tiffPlane: p, unpack: unpack}, err
	}, nil
}

// tiffPlane is a strip or tile that is decompressed. row is its last one.
type tiffPlane struct {
	f *tiffFile
	*tiffStream
	samples int
	bytes   []byte
}

func (f *tiffFile) openPlane(ctx context.Context, i, samples int) (*tiffPlane, error) {
	p := &tiffPlane{f: f, samples: samples, bytes: make([]byte, (f.cw*samples*f.bits+7)/8)}
	var err error
	p.tiffStream, err = f.chunk(ctx, i, len(p.bytes))
	return p, err
}

func (p *tiffPlane) next() ([]byte, error) {
	if _, err := p.fill(p.bytes); err != nil {
		return nil, tiffError(err)
	}
	if p.f.predictor > 1 && p.f.compression != tiffNone {
		return p.bytes, p.f.unpredict(p.bytes, p.samples)
	}
	return p.bytes, nil
}

// plainRows are samples side by side.
type plainRows struct {
	*tiffPlane
	unpack func(out, row []byte, n int)
}

func (r *plainRows) row(out []uint8, n int) error {
	b, err := r.next()
	if err == nil {
		r.unpack(out, b, n)
	}
	return err
}

// planeRows are the samples of a pixel from as many planes. They are unpacked as if they lay together; a nil plane is
// 0.
type planeRows struct {
	planes     []*tiffPlane
	samples    int
	size, high int // bytes of a sample, and the one of them that counts
	whole      []byte
	unpack     func(out, row []byte, n int)
}

// planeOpener reads planes that belong together at the same time.
func (f *tiffFile) planeOpener() (func(ctx context.Context, i int) (tiffRows, error), error) {
	size, high := f.bits/8, 0
	if size == 0 || f.bits == 12 {
		return nil, errors.New("planes of samples below 8 bits are not supported")
	}
	alike := &tiffFile{dir: f.dir, photometric: f.photometric, bits: 8, format: 1, extra: f.extra, palette: f.palette}
	alike.samples = min(f.samples, 4) // beyond are planes that nothing is made of
	if f.photometric == photoPalette || f.photometric <= photoBlackIsZero {
		alike.bits, alike.format, alike.samples = f.bits, f.format, 1
		unpack := alike.unpacker()
		return func(ctx context.Context, i int) (tiffRows, error) {
			p, err := f.openPlane(ctx, i, 1)
			return &plainRows{tiffPlane: p, unpack: unpack}, err
		}, nil
	}
	if size == 2 && f.dir.mark == "II" {
		high = 1
	}
	unpack := alike.unpacker()
	if f.photometric == photoYCbCr {
		c, err := f.newYCbCr()
		if err != nil {
			return nil, err
		}
		if c.across != 1 || c.down != 1 {
			return nil, errors.New("planes of YCbCr with reduced chroma are not supported")
		}
		unpack = c.unpack
	}
	down := (f.h + f.ch - 1) / f.ch
	return func(ctx context.Context, i int) (tiffRows, error) {
		whole := make([]byte, alike.samples*f.cw)
		r := &planeRows{samples: alike.samples, size: size, high: high, unpack: unpack, whole: whole}
		for plane := range alike.samples {
			if (plane+1)*f.across*down > len(f.offsets) {
				break
			}
			p, err := f.openPlane(ctx, plane*f.across*down+i, 1)
			if err != nil {
				r.Close()
				return nil, err
			}
			r.planes = append(r.planes, p)
		}
		return r, nil
	}, nil
}

func (r *planeRows) row(out []uint8, n int) error {
	for i, p := range r.planes {
		b, err := p.next()
		if err != nil {
			return err
		}
		for x := range n {
			r.whole[r.samples*x+i] = b[r.size*x+r.high]
		}
	}
	r.unpack(out, r.whole, n)
	return nil
}

func (r *planeRows) Close() error {
	for _, p := range r.planes {
		p.Close()
	}
	return nil
}

func tiffError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return io.ErrUnexpectedEOF
	}
	if errors.Is(err, errNoPixels) {
		return err
	}
	return errors.New("a strip or tile is damaged")
}
