package imaging

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/mmserve/mmserve/internal/jpeg"
)

// imageStrips reads strips or tiles that are image files of their own.
func (f *tiffFile) imageStrips(ctx context.Context, yield func(*RGB) error) error {
	switch {
	case f.bits != 8 || f.planar && f.samples > 1:
		return fmt.Errorf("JPEG or WebP of %d bits, in planes %v, is not supported", f.bits, f.planar)
	case f.compression == tiffWebP && f.photometric != photoRGB:
		return fmt.Errorf("WebP of photometric %d is not supported, want RGB", f.photometric)
	}
	b := &rowBand{p: scratchRGB(f.w, f.bandHeight()), h: f.h, yield: yield}
	defer Release(b.p)
	for i := range f.across * ((f.h + f.ch - 1) / f.ch) {
		x, y := i%f.across*f.cw, i/f.across*f.ch
		w, end := min(f.cw, f.w-x), min(y+f.ch, f.h)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := f.part(ctx, i, func(strip *RGB) error {
			if strip.W < w {
				return fmt.Errorf("a strip or tile %d wide where it should be %d", strip.W, w)
			}
			for r := 0; r < strip.H && y < end; r++ {
				copy(b.row(y)[3*x:], strip.Row(r)[:3*w])
				y++
				if f.across > 1 {
					continue
				}
				if err := b.full(y); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil && y < end {
			err = fmt.Errorf("a strip or tile that lacks %d rows", end-y)
		}
		if err == nil && f.across > 1 && i%f.across == f.across-1 {
			err = b.full(end)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// part decodes strip or tile i.
func (f *tiffFile) part(ctx context.Context, i int, yield func(*RGB) error) error {
	b, err := f.stored(i)
	if err != nil {
		return err
	}
	if f.compression == tiffJPEG {
		return f.jpegPart(ctx, b, yield)
	}
	if !isWebP(b) {
		return errors.New("a strip or tile is no WebP")
	}
	s, err := openWebP(ctx, b)
	if err != nil {
		return err
	}
	if err := f.fits(s.w, s.h); err != nil {
		return err
	}
	if s.stripped > f.inner {
		return f.tooMuch(s.w, s.h, s.stripped)
	}
	return s.strips(ctx, yield)
}

func (f *tiffFile) tooMuch(w, h int, n int64) error {
	return fmt.Errorf("an image of %d×%d within that takes %d bytes, at most %d are allowed", w, h, n, f.inner)
}

// fits refuses an inner image that is larger than its strip or tile.
func (f *tiffFile) fits(w, h int) error {
	if w > f.cw || h > max(f.ch, 16) {
		return fmt.Errorf("an image of %d×%d in a strip or tile of %d×%d", w, h, f.cw, f.ch)
	}
	return nil
}

// jpegPart reads an abbreviated JPEG with the tables of the directory. What its components are the directory says.
func (f *tiffFile) jpegPart(ctx context.Context, b []byte, yield func(*RGB) error) error {
	b, err := f.withTables(b)
	if err != nil {
		return err
	}
	c, err := jpeg.DecodeConfig(b)
	if err != nil {
		return err
	}
	if err := f.fits(c.Width, c.Height); err != nil {
		return err
	}
	if c.Components != f.samples {
		return fmt.Errorf("a JPEG of %d components for %d samples", c.Components, f.samples)
	}
	if c.DecodeBytes > f.inner {
		return f.tooMuch(c.Width, c.Height, c.DecodeBytes)
	}
	m, err := jpeg.Decode(ctx, b)
	if err != nil {
		return err
	}
	defer m.Release()
	return f.jpegSamples(ctx, m, yield)
}

// maxJPEGTables bounds the tables that strips or tiles share, as all of them are read again for each: eight Huffman
// tables and four of 16-bit quantisation take 3 KiB.
const maxJPEGTables = 8 << 10

// withTables puts the directory's tables before the segments of a strip or tile.
func (f *tiffFile) withTables(b []byte) ([]byte, error) {
	tables := f.dir.fields[tagJPEGTables].raw
	if len(tables) <= 4 || len(b) <= 2 {
		return b, nil
	}
	if len(tables) > maxJPEGTables {
		return nil, fmt.Errorf("JPEG tables of %d bytes, at most %d are allowed", len(tables), maxJPEGTables)
	}
	if end := len(tables) - 2; tables[end] == 0xff && tables[end+1] == markerEOI {
		tables = tables[:end]
	}
	return append(append([]byte(nil), tables...), b[2:]...), nil
}

// jpegSamples makes colours of a JPEG's samples by what the directory says that they are.
func (f *tiffFile) jpegSamples(ctx context.Context, m *jpeg.Image, yield func(*RGB) error) error {
	m.Model = jpeg.Gray
	switch {
	case f.photometric == photoYCbCr && f.samples > 1:
		m.Model = jpeg.YCbCr
	case f.photometric == photoRGB:
		m.Model = jpeg.RGB
	case f.photometric == photoCMYK:
		m.Model = jpeg.CMYK
		for i := range m.Planes { // inks are 255 here, where Adobe's JPEG files have 0
			for y := range m.Planes[i].Height {
				row := m.Planes[i].Row(y)
				for x, v := range row {
					row[x] = 255 - v
				}
			}
		}
	}
	if n := map[jpeg.Model]int{jpeg.YCbCr: 3, jpeg.RGB: 3, jpeg.CMYK: 4}[m.Model]; len(m.Planes) < n {
		return fmt.Errorf("a JPEG of %d components, want %d", len(m.Planes), n)
	}
	return eachStrip(m.Width, m.Height, func(y int, p *RGB) error {
		if err := jpegRows(ctx, m, p, y); err != nil {
			return err
		}
		switch f.photometric {
		case photoWhiteIsZero:
			for i, v := range p.Pix {
				p.Pix[i] = 255 - v
			}
		case photoPalette:
			for i := 0; i < len(p.Pix); i += 3 {
				copy(p.Pix[i:i+3], f.palette[p.Pix[i]][:])
			}
		}
		return yield(p)
	})
}

// oldJPEGStrips reads compression 6, which TIFF 6.0 had before JPEG files could be strips: one JPEG over all strips,
// whose tables lie in the file on their own or within a stream that may be the whole. Colours are libtiff's, without
// smoothing. Reference: TIFF 6.0, section 22.
func (f *tiffFile) oldJPEGStrips(ctx context.Context, yield func(*RGB) error) error {
	b, err := f.oldJPEG()
	if err != nil {
		return err
	}
	c, err := jpeg.DecodeConfig(b)
	if err != nil {
		return err
	}
	if c.Width != f.w || c.Height < f.h || c.Height >= f.h+64 || c.Components != 3 {
		return fmt.Errorf("a JPEG of %d×%d and %d components where it should be %d×%d and 3", c.Width, c.Height, c.Components, f.w, f.h)
	}
	if c.DecodeBytes > f.inner {
		return f.tooMuch(c.Width, c.Height, c.DecodeBytes)
	}
	colors, err := f.newYCbCr()
	if err != nil {
		return err
	}
	m, err := jpeg.Decode(ctx, b)
	if err != nil {
		return err
	}
	defer m.Release()
	return eachStrip(f.w, f.h, func(y int, p *RGB) error {
		if err := colors.planes(ctx, m, p, y); err != nil {
			return err
		}
		return yield(p)
	})
}

// oldJPEG puts the stream together.
func (f *tiffFile) oldJPEG() ([]byte, error) {
	var b []byte
	if at := f.dir.or(tagJPEGInterchange, 0); at > 0 {
		if at >= int64(len(f.data)) {
			return nil, io.ErrUnexpectedEOF
		}
		b = f.data[at:]
		if n := f.dir.or(tagJPEGLength, 0); n > 0 {
			b = b[:min(n, int64(len(b)))]
		}
		for marker, payload := range jpegSegments(b) {
			if marker == markerSOS {
				if begin := cap(b) - cap(payload) + len(payload); begin < len(b) { // the scan's data follow in b
					return b, nil
				}
			}
		}
		b = slices.Clip(b)
	} else {
		var err error
		if b, err = f.oldTables(); err != nil {
			return nil, err
		}
	}
	for i := range f.offsets {
		scan, err := f.stored(i)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b = append(b, 0xff, markerRST0+byte(i-1)%8)
		}
		b = append(b, scan...)
	}
	return append(b, 0xff, markerEOI), nil
}

// oldTables writes the segments before a scan that has the directory's tables.
func (f *tiffFile) oldTables() ([]byte, error) {
	color, err := f.newYCbCr()
	if err != nil {
		return nil, err
	}
	b := []byte{0xff, markerSOI}
	segment := func(marker byte, payload ...byte) {
		b = append(b, 0xff, marker)
		b = append(binary.BigEndian.AppendUint16(b, uint16(2+len(payload))), payload...)
	}
	const dqt, dht, dri, sof0 = 0xdb, 0xc4, 0xdd, 0xc0
	for _, tag := range []uint16{tagJPEGQuant, tagJPEGDC, tagJPEGAC} {
		at, err := f.dir.list(tag, 16)
		if err != nil {
			return nil, err
		}
		if len(at) < 3 {
			return nil, fmt.Errorf("%d tables of tag %d, want 3", len(at), tag)
		}
		for i, from := range at[:3] {
			if from > int64(len(f.data)) {
				return nil, io.ErrUnexpectedEOF
			}
			table, n, marker, class := f.data[from:], 64, byte(dqt), byte(0)
			if tag == tagJPEGAC {
				class = 0x10
			}
			if tag != tagJPEGQuant {
				marker, n = dht, 16
				for _, count := range table[:min(16, len(table))] {
					n += int(count)
				}
			}
			if len(table) < n {
				return nil, io.ErrUnexpectedEOF
			}
			segment(marker, append([]byte{class | byte(i)}, table[:n]...)...)
		}
	}
	mcus := (f.w + 8*color.across - 1) / (8 * color.across) * ((f.ch + 8*color.down - 1) / (8 * color.down))
	if restart := f.dir.or(tagJPEGRestart, 0); restart > 0 {
		mcus = int(min(restart, 1<<16))
	} else if len(f.offsets) < 2 {
		mcus = 0
	}
	if mcus >= 1<<16 {
		return nil, fmt.Errorf("strips of %d blocks", mcus)
	}
	segment(dri, byte(mcus>>8), byte(mcus))
	segment(sof0, 8, byte(f.h>>8), byte(f.h), byte(f.w>>8), byte(f.w), 3,
		0, byte(color.across<<4|color.down), 0, 1, 0x11, 1, 2, 0x11, 2)
	segment(markerSOS, 3, 0, 0, 1, 0x11, 2, 0x22, 0, 63, 0)
	return b, nil
}
