package vision

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/gif"
	"image/png"
	"io"
	"strings"

	"golang.org/x/image/bmp"
)

// Limits bound what one encoded image may cost. They are checked before any pixel memory is allocated.
type Limits struct {
	// MaxBytes bounds the encoded file. Zero stands for 64 MiB.
	MaxBytes int64
	// MaxPixels bounds width × height as the header gives them. Zero stands for 64,000,000, room for the 48 and
	// 50 megapixels of today's phones; Pillow warns from 89,478,485 and refuses twice that. Decoding holds up
	// to 11 bytes for each pixel, 15 for a progressive JPEG, 35 for a compressed TIFF that was made to.
	MaxPixels int64
}

// DefaultLimits gives what zero Limits stand for.
func DefaultLimits() Limits { return Limits{MaxBytes: 64 << 20, MaxPixels: 64_000_000} }

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	if l.MaxBytes == 0 {
		l.MaxBytes = d.MaxBytes
	}
	if l.MaxPixels == 0 {
		l.MaxPixels = d.MaxPixels
	}
	return l
}

// format is one kind of encoded image.
type format struct {
	name  string
	sniff func(data []byte) bool
	// config gives the stored size. It asks the parser that decode uses: were they two, a file could show them
	// different sizes and slip past the pixel limit.
	config func(data []byte) (image.Config, error)
	// orientation is 1 to 8 as in EXIF, 0 when the file does not say.
	orientation func(data []byte) int
	decode      func(data []byte) (*RGB, error)
}

var formats = []format{
	{"jpeg", prefix("\xff\xd8\xff"), jpegConfig, jpegOrientation, decodeJPEG},
	{"png", prefix("\x89PNG\r\n\x1a\n"), readConfig(png.DecodeConfig), pngOrientation, decodePNG},
	{"gif", isGIF, readConfig(gif.DecodeConfig), upright, decodeGIF},
	{"bmp", isBMP, readConfig(bmp.DecodeConfig), upright, decodeBMP},
	{"tiff", isTIFF, tiffConfig, exifOrientation, decodeTIFF},
	{"webp", isWebP, webpConfig, webpOrientation, decodeWebP},
}

func prefix(p string) func([]byte) bool {
	return func(data []byte) bool { return bytes.HasPrefix(data, []byte(p)) }
}

func readConfig(f func(io.Reader) (image.Config, error)) func([]byte) (image.Config, error) {
	return func(data []byte) (image.Config, error) { return f(bytes.NewReader(data)) }
}

func upright([]byte) int { return 0 }

func isGIF(data []byte) bool {
	return bytes.HasPrefix(data, []byte("GIF87a")) || bytes.HasPrefix(data, []byte("GIF89a"))
}

// isBMP also looks at the size of the second header, since two letters can begin any text.
func isBMP(data []byte) bool {
	if len(data) < 18 || string(data[:2]) != "BM" {
		return false
	}
	switch binary.LittleEndian.Uint32(data[14:]) {
	case 12, 40, 52, 56, 64, 108, 124:
		return true
	}
	return false
}

func isWebP(data []byte) bool {
	return len(data) >= 12 && string(data[:4]) == "RIFF" && string(data[8:12]) == "WEBP"
}

// maxScans bounds the scans of a JPEG. Encoders write about ten; a hostile file of a few hundred bytes a scan could
// make the decoder pass over all its blocks thousands of times.
const maxScans = 100

func find(data []byte) *format {
	for i := range formats {
		if formats[i].sniff(data) {
			return &formats[i]
		}
	}
	return nil
}

// Sniff tells the format of an encoded image by its first bytes: "jpeg", "png", "gif", "bmp", "tiff" or "webp".
func Sniff(data []byte) (format string, ok bool) {
	if f := find(data); f != nil {
		return f.name, true
	}
	return "", false
}

// header is what is known of an image before decoding. Width and height are as stored, before orientation.
type header struct {
	*format
	size int // bytes
	w, h int
	exif int // orientation, 0 to 8
}

func readHeader(data []byte, l Limits) (header, error) {
	l = l.orDefault()
	switch {
	case len(data) == 0:
		return header{}, fmt.Errorf("%w: it is empty", ErrImage)
	case int64(len(data)) > l.MaxBytes:
		return header{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrImage, len(data), l.MaxBytes)
	}
	h := header{format: find(data), size: len(data)}
	if h.format == nil {
		var names []string
		for _, f := range formats {
			names = append(names, f.name)
		}
		return header{}, fmt.Errorf("%w: %d bytes of unknown format, want one of %s", ErrImage, len(data), strings.Join(names, ", "))
	}
	c, err := h.config(data)
	if err != nil {
		return header{}, h.failed(err)
	}
	if c.Width <= 0 || c.Height <= 0 {
		return header{}, h.failed(fmt.Errorf("%d×%d pixels, want at least 1×1", c.Width, c.Height))
	}
	// Both sides fit 32 bits in every format, so that the product cannot overflow.
	if n := int64(c.Width) * int64(c.Height); n > l.MaxPixels {
		return header{}, h.failed(fmt.Errorf("%d×%d = %d pixels, at most %d are allowed", c.Width, c.Height, n, l.MaxPixels))
	}
	h.w, h.h = c.Width, c.Height
	h.exif = h.orientation(data)
	return h, nil
}

// failed wraps what a decoder said into ErrImage.
func (h header) failed(err error) error {
	why := strings.TrimPrefix(err.Error(), h.name+": ")
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		why = "truncated"
	}
	return fmt.Errorf("%w: %s of %d bytes: %s", ErrImage, h.name, h.size, why)
}

// CheckHeader reads the format and size of an encoded image and holds them against the limits, without decoding.
// Width and height are those after orientation, as Decode will give them. Errors wrap ErrImage.
func CheckHeader(data []byte, l Limits) (format string, w, h int, err error) {
	hd, err := readHeader(data, l)
	if err != nil {
		return "", 0, 0, err
	}
	if hd.exif >= 5 { // turned by a quarter
		return hd.name, hd.h, hd.w, nil
	}
	return hd.name, hd.w, hd.h, nil
}
