package imaging

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"iter"

	"golang.org/x/image/vp8"
	"golang.org/x/image/vp8l"
)

func isWebP(data []byte) bool {
	return len(data) >= 12 && string(data[:4]) == "RIFF" && string(data[8:12]) == "WEBP"
}

// webpChunk is one chunk of a WebP file, or what is left of it.
type webpChunk struct {
	id, payload []byte
}

// webpChunks gives the chunks in the order of the file.
func webpChunks(data []byte) iter.Seq[webpChunk] {
	return webpFrames(data[12:])
}

// webpFrames gives chunks that nothing stands before.
func webpFrames(data []byte) iter.Seq[webpChunk] {
	return func(yield func(webpChunk) bool) {
		for len(data) >= 8 {
			id, n := data[:4], uint64(binary.LittleEndian.Uint32(data[4:]))
			data = data[8:]
			n = min(n, uint64(len(data)))
			if !yield(webpChunk{id, data[:n]}) {
				return
			}
			data = data[min(n+n&1, uint64(len(data))):]
		}
	}
}

// webpImage is the first image of a WebP file: the chunk of its pixels and where on the canvas they lie.
type webpImage struct {
	pixels webpChunk
	w, h   int // of the canvas
	x, y   int
	pw, ph int // of the pixels
}

func uint24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// readWebP finds the first image. The chunks around it are ours to read and not x/image/webp's because that one also
// decodes alpha, which is dropped here, refuses files whose alpha flag lacks its chunk, and all animations.
func readWebP(data []byte) (m webpImage, err error) {
	for c := range webpChunks(data) {
		switch string(c.id) {
		case "VP8X":
			if len(c.payload) < 10 {
				return m, io.ErrUnexpectedEOF
			}
			m.w, m.h = 1+uint24(c.payload[4:]), 1+uint24(c.payload[7:])
		case "ANMF":
			if len(c.payload) < 16 {
				return m, io.ErrUnexpectedEOF
			}
			m.x, m.y = 2*uint24(c.payload), 2*uint24(c.payload[3:])
			w, h := 1+uint24(c.payload[6:]), 1+uint24(c.payload[9:])
			for inner := range webpFrames(c.payload[16:]) {
				if id := string(inner.id); id == "VP8 " || id == "VP8L" {
					if err := m.read(inner); err != nil {
						return m, err
					}
					if m.pw != w || m.ph != h || m.x+w > m.w || m.y+h > m.h {
						return m, fmt.Errorf("a frame of %d×%d at %d,%d on a canvas of %d×%d", m.pw, m.ph, m.x, m.y, m.w, m.h)
					}
					return m, nil
				}
			}
			return m, errors.New("its first frame holds no pixels")
		case "VP8 ", "VP8L":
			if err := m.read(c); err != nil {
				return m, err
			}
			if m.w > 0 && (m.w != m.pw || m.h != m.ph) {
				return m, fmt.Errorf("an image of %d×%d on a canvas of %d×%d", m.pw, m.ph, m.w, m.h)
			}
			m.w, m.h = m.pw, m.ph
			return m, nil
		}
	}
	return m, errors.New("it holds no pixels")
}

// read reads the header of a chunk of pixels.
func (m *webpImage) read(c webpChunk) error {
	m.pixels = c
	if string(c.id) == "VP8L" {
		config, err := vp8l.DecodeConfig(bytes.NewReader(c.payload))
		m.pw, m.ph = config.Width, config.Height
		return err
	}
	d := vp8.NewDecoder()
	d.Init(bytes.NewReader(c.payload), len(c.payload))
	h, err := d.DecodeFrameHeader()
	m.pw, m.ph = h.Width, h.Height
	return err
}

func openWebP(ctx context.Context, data []byte) (*source, error) {
	m, err := readWebP(data)
	if err != nil {
		return nil, err
	}
	var meta metadata
	for c := range webpChunks(data) {
		switch {
		case string(c.id) == "EXIF" && meta.exif == nil:
			meta.exif = c.payload
		case string(c.id) == "XMP " && meta.xmp == nil:
			meta.xmp = c.payload
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	// x/image/vp8l makes up to two copies of 4 bytes; vp8 holds 1.5 and the coefficients of a row.
	held := Bytes(8, m.pw, m.ph)
	if string(m.pixels.id) == "VP8 " {
		held = Bytes(2, m.pw, m.ph)
	}
	s := &source{w: m.w, h: m.h, orientation: meta.orientation(), strips: m.strips, stripped: Sum(held, stripBytes)}
	s.bytes, s.decode = Sum(s.stripped, Bytes(3, m.w, m.h)), s.gather
	return s, nil
}

// strips decodes the pixels, which come as a whole, and converts them a strip at a time.
func (m webpImage) strips(ctx context.Context, yield func(*RGB) error) error {
	convert, err := m.decodePixels(ctx)
	if err != nil {
		return err
	}
	return eachStrip(m.w, m.h, func(y int, p *RGB) error {
		from, to := max(m.y-y, 0), min(m.y+m.ph-y, p.H) // the rows of p that have pixels
		if m.w == m.pw && m.h == m.ph {
			if err := convert(ctx, p, y); err != nil {
				return err
			}
			return yield(p)
		}
		clear(p.Pix)
		if from < to {
			part := scratchRGB(m.pw, to-from)
			defer Release(part)
			if err := convert(ctx, part, y+from-m.y); err != nil {
				return err
			}
			for r := range part.H {
				copy(p.Row(from + r)[3*m.x:], part.Row(r))
			}
		}
		return yield(p)
	})
}

// decodePixels gives what converts the rows from top on.
func (m webpImage) decodePixels(ctx context.Context) (func(ctx context.Context, p *RGB, top int) error, error) {
	if string(m.pixels.id) == "VP8L" {
		decoded, err := uninterrupted(ctx, bytes.NewReader(m.pixels.payload), func(r io.Reader) (image.Image, error) {
			return vp8l.Decode(contextReader{ctx, r})
		})
		if err != nil {
			return nil, err
		}
		n, ok := decoded.(*image.NRGBA)
		if !ok || n.Rect.Dx() != m.pw || n.Rect.Dy() != m.ph {
			return nil, fmt.Errorf("pixels of %T are not supported", decoded)
		}
		return func(ctx context.Context, p *RGB, top int) error { return fromNRGBA(ctx, n, p, top) }, nil
	}
	n, err := uninterrupted(ctx, bytes.NewReader(m.pixels.payload), func(r io.Reader) (*image.YCbCr, error) {
		d := vp8.NewDecoder()
		d.Init(r, len(m.pixels.payload))
		if _, err := d.DecodeFrameHeader(); err != nil {
			return nil, err
		}
		return d.DecodeFrame()
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, p *RGB, top int) error { return fromVP8(ctx, n, p, top) }, nil
}

// fromNRGBA drops alpha.
func fromNRGBA(ctx context.Context, n *image.NRGBA, p *RGB, top int) error {
	return eachBand(ctx, p.H, 3*p.W, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			in, out := n.Pix[(top+y)*n.Stride:][:4*p.W], p.Row(y)
			for i, o := 0, 0; o < len(out); i, o = i+4, o+3 {
				out[o], out[o+1], out[o+2] = in[i], in[i+1], in[i+2]
			}
		}
	})
}

// fromVP8 converts the planes of a lossy WebP as libwebp does: its fancy upsampling (upsampling.c) and Y'CbCr of
// range 16 to 235 in 14-bit fixed point (yuv.h). Go's image.YCbCr means full range and would give washed-out colours.
func fromVP8(ctx context.Context, m *image.YCbCr, p *RGB, top int) error {
	chromaRows := (m.Rect.Dy() + 1) / 2
	return eachBand(ctx, p.H, 8*p.W, func(lo, hi int) {
		u, v := make([]uint8, p.W), make([]uint8, p.W)
		for i := lo; i < hi; i++ {
			y := top + i
			near := y / 2
			far := min(max(near-1+2*(y&1), 0), chromaRows-1)
			vp8Upsample(u, m.Cb[near*m.CStride:], m.Cb[far*m.CStride:])
			vp8Upsample(v, m.Cr[near*m.CStride:], m.Cr[far*m.CStride:])
			vp8Row(p.Row(i), m.Y[y*m.YStride:][:p.W], u, v)
		}
	})
}

// vp8Upsample writes one full row of chroma from the chroma rows nearest to it. Blends are 9, 3, 3, 1 sixteenths,
// rounded in libwebp's two steps.
func vp8Upsample(dst, near, far []uint8) {
	n0, f0 := int32(near[0]), int32(far[0])
	dst[0] = uint8((3*n0 + f0 + 2) >> 2)
	last := (len(dst) - 1) / 2
	for i := 1; i <= last; i++ {
		n1, f1 := int32(near[i]), int32(far[i])
		sum := n0 + n1 + f0 + f1 + 8
		dst[2*i-1] = uint8(((sum+2*(n1+f0))>>3 + n0) >> 1)
		dst[2*i] = uint8(((sum+2*(n0+f1))>>3 + n1) >> 1)
		n0, f0 = n1, f1
	}
	if len(dst)%2 == 0 {
		dst[len(dst)-1] = uint8((3*n0 + f0 + 2) >> 2)
	}
}

func vp8Row(dst, luma, u, v []uint8) {
	u, v = u[:len(luma)], v[:len(luma)]
	for x, l := range luma {
		y, b, r := 19077*int32(l)>>8, int32(u[x]), int32(v[x])
		out := dst[3*x : 3*x+3]
		out[0] = clip8((y + 26149*r>>8 - 14234) >> 6)
		out[1] = clip8((y - 6419*b>>8 - 13320*r>>8 + 8708) >> 6)
		out[2] = clip8((y + 33050*b>>8 - 17685) >> 6)
	}
}
