package vision

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/png"
	"io"

	"golang.org/x/image/bmp"
)

// RGB is a decoded picture: W×H pixels, row-major, three interleaved bytes each.
type RGB struct {
	Pix  []uint8
	W, H int
}

func newRGB(w, h int) *RGB { return &RGB{Pix: make([]uint8, 3*w*h), W: w, H: h} }

func (p *RGB) row(y int) []uint8 { return p.Pix[3*p.W*y:][:3*p.W] }

// Decode decodes an image and turns it upright by its EXIF or XMP orientation. Alpha is dropped, not composited,
// as Pillow's convert("RGB") does; of an animated GIF or PNG only the first picture is read. Grey of 16 bits keeps
// its high byte, where Pillow clips everything above 255 to white. Errors wrap ErrImage.
func Decode(data []byte, l Limits) (p *RGB, err error) {
	h, err := readHeader(data, l)
	if err != nil {
		return nil, err
	}
	// A decoder that panics on hostile bytes must cost its request, not the process. What it says may hold
	// content, so it is left out.
	defer func() {
		if recover() != nil {
			p, err = nil, h.failed(errors.New("the decoder gave up"))
		}
	}()
	p, err = h.decode(data)
	if err != nil {
		return nil, h.failed(err)
	}
	if p.W != h.w || p.H != h.h {
		return nil, h.failed(fmt.Errorf("%d×%d pixels where the header says %d×%d", p.W, p.H, h.w, h.h))
	}
	return orient(p, h.exif), nil
}

func decodePNG(data []byte) (*RGB, error) {
	m, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return fromImage(m)
}

func decodeBMP(data []byte) (*RGB, error) {
	m, err := bmp.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return fromImage(m)
}

// decodeGIF reads the first frame and places it on the canvas. Around it goes the transparent colour or, without
// one, colour 0, as in Pillow.
func decodeGIF(data []byte) (*RGB, error) {
	frame, transparent, err := gifFirstFrame(data)
	if err != nil {
		return nil, err
	}
	// Extensions are left out: image/gif would replace the transparent colour by black.
	m, err := gif.Decode(io.MultiReader(bytes.NewReader(data[:gifTables(data)]), bytes.NewReader(data[frame:])))
	if err != nil {
		return nil, err
	}
	c, err := gif.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	canvas := image.NewPaletted(image.Rect(0, 0, c.Width, c.Height), nil)
	p := m.(*image.Paletted)
	canvas.Palette = p.Palette
	if transparent < len(p.Palette) {
		for i := range canvas.Pix {
			canvas.Pix[i] = uint8(transparent)
		}
	}
	for y := p.Rect.Min.Y; y < p.Rect.Max.Y; y++ {
		copy(canvas.Pix[canvas.PixOffset(p.Rect.Min.X, y):], p.Pix[(y-p.Rect.Min.Y)*p.Stride:][:p.Rect.Dx()])
	}
	return fromImage(canvas)
}

// gifTables is the length of the header with the global colour table.
func gifTables(data []byte) int {
	n := 13
	if len(data) >= n && data[10]&0x80 != 0 {
		n += 3 << (data[10]&7 + 1)
	}
	return min(n, len(data))
}

// gifFirstFrame gives the offset of the first image descriptor and the transparent index that is in force there,
// 0 when there is none. Reference: GIF89a specification, sections 20 to 26.
func gifFirstFrame(data []byte) (offset, transparent int, err error) {
	const extension, descriptor, graphicControl = 0x21, 0x2c, 0xf9
	i := gifTables(data)
	for i+1 < len(data) {
		switch data[i] {
		case descriptor:
			return i, transparent, nil
		case extension:
			if data[i+1] == graphicControl && i+7 < len(data) && data[i+3]&1 != 0 {
				transparent = int(data[i+6])
			}
			for i += 2; i < len(data) && data[i] != 0; i += 1 + int(data[i]) {
			}
			i++
		default:
			return 0, 0, errors.New("neither a frame nor an extension follows the header")
		}
	}
	return 0, 0, io.ErrUnexpectedEOF
}

// fromImage drops alpha and the low bytes of 16-bit samples.
func fromImage(m image.Image) (*RGB, error) {
	r := m.Bounds()
	p := scratchRGB(r.Dx(), r.Dy())
	// interleaved reads pixels of n bytes of which r, g, b are at the given places.
	interleaved := func(pix []uint8, stride, n, r, g, b int) (*RGB, error) {
		eachBand(p.H, 3*p.W, func(lo, hi int) {
			for y := lo; y < hi; y++ {
				in, out := pix[y*stride:][:n*p.W], p.row(y)
				for i, o := 0, 0; o < len(out); i, o = i+n, o+3 {
					out[o], out[o+1], out[o+2] = in[i+r], in[i+g], in[i+b]
				}
			}
		})
		return p, nil
	}
	switch m := m.(type) {
	case *image.Gray:
		return interleaved(m.Pix, m.Stride, 1, 0, 0, 0)
	case *image.Gray16:
		return interleaved(m.Pix, m.Stride, 2, 0, 0, 0)
	case *image.RGBA: // of opaque pictures only: nothing has been multiplied by alpha
		return interleaved(m.Pix, m.Stride, 4, 0, 1, 2)
	case *image.NRGBA:
		return interleaved(m.Pix, m.Stride, 4, 0, 1, 2)
	case *image.RGBA64: // opaque, as RGBA
		return interleaved(m.Pix, m.Stride, 8, 0, 2, 4)
	case *image.NRGBA64:
		return interleaved(m.Pix, m.Stride, 8, 0, 2, 4)
	case *image.Paletted:
		var table [256][3]uint8
		for i, c := range m.Palette[:min(len(m.Palette), 256)] {
			switch c := c.(type) {
			case color.RGBA:
				table[i] = [3]uint8{c.R, c.G, c.B}
			case color.NRGBA:
				table[i] = [3]uint8{c.R, c.G, c.B}
			default:
				return nil, fmt.Errorf("palette of %T is not supported", c)
			}
		}
		for y := range p.H {
			out := p.row(y)
			for x, i := range m.Pix[y*m.Stride:][:p.W] {
				copy(out[3*x:3*x+3], table[i][:])
			}
		}
		return p, nil
	}
	return nil, fmt.Errorf("pixels of %T are not supported", m)
}
