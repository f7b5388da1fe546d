package vision

import (
	"bytes"
	"context"
	"encoding/json"
	"image"
	"image/jpeg"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/imaging"
)

func readGolden[T any](t testing.TB, name string) (g T) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata/goldens", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// readImage reads a file of this folder or, under elsewhere/, of the folder that MMSERVE_TEST_IMAGES names, if it does:
// images that goldens are kept of but that are too many for this repository.
func readImage(t testing.TB, name string) (data []byte, ok bool) {
	t.Helper()
	name, elsewhere := strings.CutPrefix(name, "elsewhere/")
	if !elsewhere {
		return readFile(t, name), true
	}
	folder := os.Getenv("MMSERVE_TEST_IMAGES")
	if folder == "" {
		return nil, false
	}
	data, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return data, true
}

// photo is an image of w×h made from a real one, as JPEG of 4:2:0.
func photo(b *testing.B, w, h int) []byte {
	b.Helper()
	p, err := imaging.Decode(context.Background(), readFile(b, "photos/astronaut.png"), Limits{})
	if err != nil {
		b.Fatal(err)
	}
	if p, err = imaging.Filters[3].Resize(context.Background(), p, w, h); err != nil {
		b.Fatal(err)
	}
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	for i := range w * h {
		m.Pix[4*i], m.Pix[4*i+1], m.Pix[4*i+2], m.Pix[4*i+3] = p.Pix[3*i], p.Pix[3*i+1], p.Pix[3*i+2], 255
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, m, &jpeg.Options{Quality: 85}); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}
