package vision

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"iter"

	"golang.org/x/image/vp8"
	"golang.org/x/image/vp8l"
)

// webpChunk is one chunk of a WebP file, or what is left of it.
type webpChunk struct {
	id      string
	payload []byte
}

// webpChunks gives the chunks in the order of the file.
func webpChunks(data []byte) iter.Seq[webpChunk] {
	return func(yield func(webpChunk) bool) {
		for data = data[12:]; len(data) >= 8; {
			id, n := string(data[:4]), uint64(binary.LittleEndian.Uint32(data[4:]))
			data = data[8:]
			n = min(n, uint64(len(data)))
			if !yield(webpChunk{id, data[:n]}) {
				return
			}
			data = data[min(n+n&1, uint64(len(data))):]
		}
	}
}

// webpBitstream finds the chunk that holds the picture. The chunks around it are ours to read and not x/image/webp's
// because that one also decodes alpha, which is dropped here, and refuses files whose alpha flag lacks its chunk.
func webpBitstream(data []byte) (webpChunk, image.Config, error) {
	canvas := image.Config{}
	for c := range webpChunks(data) {
		switch c.id {
		case "VP8X":
			if len(c.payload) < 10 {
				return c, canvas, io.ErrUnexpectedEOF
			}
			const animation = 1 << 1
			if c.payload[0]&animation != 0 {
				return c, canvas, errors.New("animated WebP is not supported, want a still picture")
			}
			canvas.Width, canvas.Height = 1+uint24(c.payload[4:]), 1+uint24(c.payload[7:])
		case "ANIM", "ANMF":
			return c, canvas, errors.New("animated WebP is not supported, want a still picture")
		case "VP8 ", "VP8L":
			config, err := c.config()
			if err == nil && canvas.Width > 0 && (canvas.Width != config.Width || canvas.Height != config.Height) {
				err = fmt.Errorf("a picture of %d×%d on a canvas of %d×%d", config.Width, config.Height, canvas.Width, canvas.Height)
			}
			return c, config, err
		}
	}
	return webpChunk{}, canvas, errors.New("it holds no picture")
}

func uint24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

func (c webpChunk) config() (image.Config, error) {
	if c.id == "VP8L" {
		return vp8l.DecodeConfig(bytes.NewReader(c.payload))
	}
	d := vp8.NewDecoder()
	d.Init(bytes.NewReader(c.payload), len(c.payload))
	h, err := d.DecodeFrameHeader()
	return image.Config{Width: h.Width, Height: h.Height}, err
}

func webpConfig(data []byte) (image.Config, error) {
	_, config, err := webpBitstream(data)
	return config, err
}

func decodeWebP(data []byte) (*RGB, error) {
	c, _, err := webpBitstream(data)
	if err != nil {
		return nil, err
	}
	if c.id == "VP8L" {
		m, err := vp8l.Decode(bytes.NewReader(c.payload))
		if err != nil {
			return nil, err
		}
		return fromImage(m)
	}
	d := vp8.NewDecoder()
	d.Init(bytes.NewReader(c.payload), len(c.payload))
	if _, err := d.DecodeFrameHeader(); err != nil {
		return nil, err
	}
	m, err := d.DecodeFrame()
	if err != nil {
		return nil, err
	}
	return fromVP8(m), nil
}

// fromVP8 converts the planes of a lossy WebP as libwebp does: its fancy upsampling (upsampling.c) and Y'CbCr of
// range 16 to 235 in 14-bit fixed point (yuv.h). Go's image.YCbCr means full range and would give washed-out colours.
func fromVP8(m *image.YCbCr) *RGB {
	p := scratchRGB(m.Rect.Dx(), m.Rect.Dy())
	chromaRows := (p.H + 1) / 2
	eachBand(p.H, 8*p.W, func(lo, hi int) {
		u, v := make([]uint8, p.W), make([]uint8, p.W)
		for y := lo; y < hi; y++ {
			near := y / 2
			far := min(max(near-1+2*(y&1), 0), chromaRows-1)
			vp8Upsample(u, m.Cb[near*m.CStride:], m.Cb[far*m.CStride:])
			vp8Upsample(v, m.Cr[near*m.CStride:], m.Cr[far*m.CStride:])
			vp8Row(p.row(y), m.Y[y*m.YStride:][:p.W], u, v)
		}
	})
	return p
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
