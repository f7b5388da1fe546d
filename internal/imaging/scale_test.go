package imaging

import (
	"bytes"
	"context"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

// noise is an image of w×h whose neighbours differ.
func noise(rng *rand.Rand, w, h int) *image.NRGBA {
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range m.Pix {
		m.Pix[i] = uint8(rng.IntN(256))
	}
	return m
}

// strewn gives the rows of p in strips of n.
func strewn(p *RGB, n int) func(context.Context, func(*RGB) error) error {
	return func(_ context.Context, yield func(*RGB) error) error {
		for y := 0; y < p.H; y += n {
			rows := min(n, p.H-y)
			if err := yield(&RGB{Pix: bytes.Clone(p.Pix[3*p.W*y:][:3*p.W*rows]), W: p.W, H: rows}); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestScaleAsWhole: strips of any height give the pixels that the whole image, turned and then scaled, gives, for every
// orientation, both orders of the passes, canvases and parts.
func TestScaleAsWhole(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range racetest.Part(600) {
		p := NewRGB(1+rng.IntN(60), 1+rng.IntN(60))
		for i := range p.Pix {
			p.Pix[i] = uint8(rng.IntN(256))
		}
		s := &source{w: p.W, h: p.H, orientation: i % 10, strips: strewn(p, 1+rng.IntN(20))}
		s.decode = func(context.Context) (*RGB, error) { return &RGB{Pix: bytes.Clone(p.Pix), W: p.W, H: p.H}, nil }
		if rng.IntN(4) == 0 {
			s.strips = nil
		}
		h := &Header{Format: "png", Width: p.W, Height: p.H, source: s}
		if s.orientation >= 5 && s.orientation <= 8 {
			h.Width, h.Height = p.H, p.W
		}
		whole, err := h.Decode(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f := Filters[1+rng.IntN(3)]
		side := max(h.Width, h.Height)
		square := Canvas{W: side, H: side, X: (side - h.Width) / 2, Y: (side - h.Height) / 2, Color: [3]uint8{1, 200, 30}}
		list := []Scaling{
			f.To(h.Width, h.Height, 1+rng.IntN(40), 1+rng.IntN(40)), f.To(h.Width, h.Height, h.Width, 1+rng.IntN(90)),
			{f, square, [2]int{30, 20}, [4]int{2, 1, 25, 19}},
		}
		if rng.IntN(8) == 0 {
			list = append(list, f.To(h.Width, h.Height, h.Width, h.Height))
		}
		got, err := h.Scale(t.Context(), list...)
		if err != nil {
			t.Fatal(err)
		}
		for j, scaling := range list {
			want, err := scaling.Of(t.Context(), whole)
			if err != nil {
				t.Fatal(err)
			}
			if got[j].W != want.W || got[j].H != want.H || !bytes.Equal(got[j].Pix, want.Pix) {
				t.Fatalf("%d×%d, orientation %d, scaling %d: other pixels", p.W, p.H, s.orientation, j)
			}
		}
	}
}

// TestStripsAsDecode: a file's strips are its rows.
func TestStripsAsDecode(t *testing.T) {
	if racetest.Enabled {
		t.Skip("one goroutine runs; make test runs this without the race detector, too")
	}
	rng := rand.New(rand.NewPCG(5, 6))
	m := noise(rng, 1400, 2100) // several strips
	var p, j, short bytes.Buffer
	fast := png.Encoder{CompressionLevel: png.BestSpeed}
	if fast.Encode(&p, m) != nil || jpeg.Encode(&j, m, nil) != nil {
		t.Fatal("the encoders fail")
	}
	short.Write(p.Bytes()[:33])
	row := append([]byte{1}, bytes.Repeat([]byte{9}, 4*1400)...)
	short.Write(pngBytes("IDAT", deflated(t, bytes.Repeat(row, 3000)[:8_000_000]))) // ends within the pixels
	short.Write(pngBytes("IEND", nil))
	for name, data := range map[string][]byte{"png": p.Bytes(), "jpeg": j.Bytes(), "short": short.Bytes()} {
		h, err := ReadHeader(t.Context(), data, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		want, err := h.Decode(t.Context())
		if err != nil {
			t.Fatal(name, err)
		}
		var got []byte
		err = h.Rows(t.Context(), func(strip *RGB) error {
			got = append(got, strip.Pix...)
			return nil
		})
		if err != nil || !bytes.Equal(got, want.Pix) {
			t.Errorf("%s: %v, other pixels", name, err)
		}
	}
}

// TestLargeImageIsNeverWhole: a large image becomes a small one within the memory that its header announced,
// less than its pixels would take.
func TestLargeImageIsNeverWhole(t *testing.T) {
	black := image.NewPaletted(image.Rect(0, 0, 5000, 5000), color.Palette{color.Black})
	var p bytes.Buffer
	if err := png.Encode(&p, black); err != nil {
		t.Fatal(err)
	}
	h, err := ReadHeader(t.Context(), p.Bytes(), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	made, err := h.Scale(t.Context(), Filters[1].To(5000, 5000, 1024, 1024))
	runtime.ReadMemStats(&after)
	if err != nil || made[0].W != 1024 || made[0].H != 1024 {
		t.Fatal(err)
	}
	n := int64(after.TotalAlloc - before.TotalAlloc)
	if announced := Sum(h.ScaleBytes, ResizeBytes(5000, 5000, 1024, 1024)); n > announced || announced > 3*5000*5000 {
		t.Errorf("%d bytes were allocated, %d announced, want less than 75 MB", n, announced)
	}
}
