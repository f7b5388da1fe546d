package imaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// format is one kind of encoded image.
type format struct {
	name  string
	sniff func(data []byte) bool
	// open reads the header. It and decode are one parser: were they two, a file could show them different sizes.
	open func(ctx context.Context, data []byte) (*source, error)
}

// source is an image file whose header has been read.
type source struct {
	// w and h are as stored, before orientation.
	w, h int
	// orientation is 1 to 8 as in EXIF, 0 when the file does not say.
	orientation int
	// bytes is what decode holds at once beside the file, the result among it.
	bytes int64
	// decode gives w×h pixels. It looks at ctx at least every few million operations.
	decode func(ctx context.Context) (*RGB, error)
	// strips decodes rows from the top on, holding stripped bytes at once. A strip is valid until yield returns. It is nil
	// where the pixels do not come in that order.
	strips   func(ctx context.Context, yield func(*RGB) error) error
	stripped int64
}

var formats = []format{
	{"jpeg", prefix("\xff\xd8\xff"), openJPEG},
	{"png", prefix(pngSignature), openPNG},
	{"gif", isGIF, openGIF},
	{"bmp", isBMP, openBMP},
	{"tiff", isTIFF, openTIFF},
	{"webp", isWebP, openWebP},
	{"ico", isICO, openICO},
	{"ppm", isPPM, openPPM},
	{"tga", isTGA, openTGA}, // the last: it has no signature
}

func prefix(p string) func([]byte) bool {
	return func(data []byte) bool { return bytes.HasPrefix(data, []byte(p)) }
}

func find(data []byte) *format {
	if _, named := refusedName(data); named {
		return nil
	}
	for i := range formats {
		if formats[i].sniff(data) {
			return &formats[i]
		}
	}
	return nil
}

// Sniff tells the format of an encoded image by its first bytes: "jpeg", "png", "gif", "bmp", "tiff", "webp", "ico",
// "ppm" or "tga".
func Sniff(data []byte) (format string, ok bool) {
	if f := find(data); f != nil {
		return f.name, true
	}
	return "", false
}

// Header is an image file whose header has been read and judged.
type Header struct {
	// Format is the file's kind, as Sniff tells it.
	Format string
	// Width and Height are those after orientation, as Decode will give them.
	Width, Height int
	// DecodeBytes is the most memory that Decode holds at once, the result among it and the file not.
	DecodeBytes int64
	// ScaleBytes is the same of Scale, but for what ResizeBytes counts.
	ScaleBytes int64

	size       int
	source     *source
	background background
}

// WhenOver calls f when no decoder works for h any more. That is at once, unless one that cannot be interrupted (of
// WebP) went on after the context of Decode or Scale had ended.
func (h *Header) WhenOver(f func()) { h.background.whenOver(f) }

// ReadHeader reads an image's header and holds it against the limits, without decoding. Errors wrap ErrImage, or are
// the context's cause.
func ReadHeader(ctx context.Context, data []byte, l Limits) (h *Header, err error) {
	l = l.orDefault()
	switch {
	case len(data) == 0:
		return nil, fmt.Errorf("%w: it is empty; send a whole image file", ErrImage)
	case int64(len(data)) > l.MaxBytes:
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrImage, len(data), l.MaxBytes)
	}
	f := find(data)
	if f == nil {
		return nil, unknown(data)
	}
	h = &Header{Format: f.name, size: len(data)}
	defer func() {
		if recover() != nil {
			h, err = nil, h.failed(ctx, errPanic)
		}
	}()
	if h.source, err = f.open(ctx, data); err != nil {
		return nil, h.failed(ctx, err)
	}
	w, height := h.source.w, h.source.h
	switch n := Bytes(max(w, 0), max(height, 0)); {
	case w <= 0 || height <= 0:
		return nil, h.failed(ctx, fmt.Errorf("%d×%d pixels, want at least 1×1", w, height))
	case n > l.MaxFilePixels:
		return nil, h.failed(ctx, fmt.Errorf("%d×%d = %d pixels, at most %d are allowed", w, height, n, l.MaxFilePixels))
	case max(w, height) > l.MaxSide:
		return nil, h.failed(ctx, fmt.Errorf("%d×%d pixels, a side may have at most %d", w, height, l.MaxSide))
	}
	h.Width, h.Height, h.DecodeBytes = w, height, h.source.bytes
	if h.ScaleBytes = h.source.bytes; h.source.strips != nil {
		h.ScaleBytes = h.source.stripped
	}
	if most := l.decodeBytes(); h.ScaleBytes > most {
		return nil, h.failed(ctx, fmt.Errorf("%d×%d pixels, decoding takes %d bytes, at most %d are allowed", w, height, h.ScaleBytes, most))
	}
	if o := h.source.orientation; o >= 2 {
		h.DecodeBytes = max(h.DecodeBytes, Bytes(6, w, height)) // the turned copy stands beside the first
		if o >= 5 {
			h.Width, h.Height = height, w // turned by a quarter
		}
	}
	return h, nil
}

// failed wraps what a decoder said into ErrImage, or gives the cause of the context that ended it.
func (h *Header) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	why := strings.TrimPrefix(err.Error(), h.Format+": ")
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		why = "truncated; send the whole file"
	}
	return fmt.Errorf("%w: %s of %d bytes: %s", ErrImage, h.Format, h.size, why)
}

// Decode decodes the image and turns it upright by its EXIF or XMP orientation. Alpha is dropped, not composited, as
// Pillow's convert("RGB") does; of several frames only the first is read. Errors wrap ErrImage, or are the context's
// cause.
func (h *Header) Decode(ctx context.Context) (p *RGB, err error) {
	// A decoder that panics on hostile bytes must cost its request, not the process.
	defer func() {
		if recover() != nil {
			p, err = nil, h.failed(ctx, errPanic)
		}
	}()
	p, err = h.source.decode(h.background.with(ctx))
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, h.failed(ctx, err)
	}
	if p.W != h.source.w || p.H != h.source.h {
		return nil, h.failed(ctx, fmt.Errorf("%d×%d pixels where the header says %d×%d", p.W, p.H, h.source.w, h.source.h))
	}
	return orient(ctx, p, h.source.orientation)
}

// Decode reads the header, waits for the budget and decodes.
func Decode(ctx context.Context, data []byte, l Limits) (*RGB, error) {
	h, err := ReadHeader(ctx, data, l)
	if err != nil {
		return nil, err
	}
	release, err := l.Budget.Acquire(ctx, h.DecodeBytes)
	if err != nil {
		return nil, err
	}
	defer h.WhenOver(release)
	ctx, cancel := l.Within(ctx)
	defer cancel()
	return h.Decode(ctx)
}
