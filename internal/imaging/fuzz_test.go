package imaging

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// fuzzFormat feeds one format's parser, also with what another format would take first.
func fuzzFormat(f *testing.F, name string, globs ...string) {
	var parser *format
	for i := range formats {
		if formats[i].name == name {
			parser = &formats[i]
		}
	}
	seeds := 0
	for _, glob := range append(globs, "testdata/cases/*") {
		names, err := filepath.Glob(glob)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range names {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			if found, ok := Sniff(data); ok && found == name && len(data) < 64<<10 {
				seeds++
				f.Add(data)
			}
		}
	}
	if name == "tga" { // 2×1 pixels: raw colours, and a run of a palette's
		f.Add([]byte("\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01\x00\x18\x00abcdef"))
		f.Add([]byte("\x00\x01\x09\x00\x00\x01\x00\x18\x00\x00\x00\x00\x02\x00\x01\x00\x08\x00abc\x81\x00"))
		seeds = 2
	}
	if seeds == 0 {
		f.Fatal("no seeds")
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !parser.sniff(data) {
			return // the header of some formats is judged there
		}
		s, err := parser.open(t.Context(), data)
		if err != nil {
			return
		}
		if s.w < 1 || s.h < 1 || s.w > 1<<16 || s.h > 1<<16 || s.w*s.h > 1<<16 || s.bytes > 64<<20 {
			return // refused, or too large for this
		}
		p, err := s.decode(t.Context())
		if err == nil && (p.W != s.w || p.H != s.h || len(p.Pix) != 3*s.w*s.h) {
			t.Errorf("%d×%d with %d bytes, the header says %d×%d", p.W, p.H, len(p.Pix), s.w, s.h)
		}
		if s.strips == nil {
			return
		}
		var rows []byte
		stripErr := s.strips(t.Context(), func(strip *RGB) error {
			rows = append(rows, strip.Pix...)
			return nil
		})
		if (err == nil) != (stripErr == nil) || err == nil && string(rows) != string(p.Pix) {
			t.Errorf("strips give %v, the whole %v, or other pixels", stripErr, err)
		}
		if err != nil && errors.Is(err, errPanic) {
			t.Error(err)
		}
	})
}

const files = "../../vision/testdata/"

func FuzzPNG(f *testing.F)  { fuzzFormat(f, "png", files+"decode/*/*.png", files+"made/*.png") }
func FuzzGIF(f *testing.F)  { fuzzFormat(f, "gif", files+"decode/*/*.gif", files+"made/*.gif") }
func FuzzBMP(f *testing.F)  { fuzzFormat(f, "bmp", files+"decode/*/*.bmp", files+"made/*.bmp") }
func FuzzICO(f *testing.F)  { fuzzFormat(f, "ico") }
func FuzzPPM(f *testing.F)  { fuzzFormat(f, "ppm") }
func FuzzTGA(f *testing.F)  { fuzzFormat(f, "tga") }
func FuzzTIFF(f *testing.F) { fuzzFormat(f, "tiff", files+"decode/*/*.tif", files+"made/*.tif") }
func FuzzWebP(f *testing.F) {
	fuzzFormat(f, "webp", files+"decode/*/*.webp", files+"decode/*.webp", files+"made/*.webp")
}
func FuzzJPEG(f *testing.F) {
	fuzzFormat(f, "jpeg", files+"decode/gojpeg/*q50*", files+"exif/*", files+"made/*.jpg")
}
