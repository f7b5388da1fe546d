package jpeg

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the samples are to the bit is checked where they become colours, by the goldens of package vision. Its images
// serve here too.
const images = "../../vision/testdata/decode/gojpeg/"

func readImage(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(images + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// encoded is an image of noise upon a slope, as JPEG of 4:2:0 or grey.
func encoded(t testing.TB, w, h, quality int, gray bool) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, uint64(w*h)))
	var m image.Image
	if gray {
		g := image.NewGray(image.Rect(0, 0, w, h))
		for i := range g.Pix {
			g.Pix[i] = uint8(i%w/2 + rng.IntN(100))
		}
		m = g
	} else {
		c := image.NewRGBA(image.Rect(0, 0, w, h))
		for y := range h {
			for x := range w {
				c.SetRGBA(x, y, color.RGBA{uint8(x + rng.IntN(60)), uint8(y + rng.IntN(60)), uint8(rng.IntN(256)), 255})
			}
		}
		m = c
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, m, &jpeg.Options{Quality: quality}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// checkPlane holds a plane against image/jpeg's, which rounds otherwise.
func checkPlane(t *testing.T, p Plane, pix []uint8, stride int) {
	t.Helper()
	for y := range p.Height {
		for x := range p.Width {
			if d := int(p.Row(y)[x]) - int(pix[y*stride+x]); d < -2 || d > 2 {
				t.Fatalf("sample %d,%d is %d, want %d", x, y, p.Row(y)[x], pix[y*stride+x])
			}
		}
	}
}

func TestDecodeAsImageJPEG(t *testing.T) {
	files := map[string][]byte{}
	for _, size := range [][2]int{{1, 1}, {8, 8}, {17, 9}, {16, 33}, {300, 200}} {
		for _, quality := range []int{5, 75, 100} {
			name := fmt.Sprint(size[0], "x", size[1], " q", quality)
			files[name+" gray"] = encoded(t, size[0], size[1], quality, true)
			files[name+" 420"] = encoded(t, size[0], size[1], quality, false)
		}
	}
	names, _ := filepath.Glob(images + "*.jpeg")
	for _, name := range names {
		files[filepath.Base(name)] = readImage(t, filepath.Base(name))
	}
	for name, data := range files {
		t.Run(name, func(t *testing.T) {
			want, err := jpeg.Decode(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(context.Background(), data)
			if err != nil {
				t.Fatal(err)
			}
			c, err := DecodeConfig(data)
			if err != nil || c != got.Config || image.Pt(c.Width, c.Height) != want.Bounds().Size() {
				t.Errorf("%+v of %v: %v", c, want.Bounds(), err)
			}
			switch want := want.(type) {
			case *image.Gray:
				checkPlane(t, got.Planes[0], want.Pix, want.Stride)
			case *image.YCbCr:
				checkPlane(t, got.Planes[0], want.Y, want.YStride)
				checkPlane(t, got.Planes[1], want.Cb, want.CStride)
				checkPlane(t, got.Planes[2], want.Cr, want.CStride)
			}
		})
	}
}

// The blocks of a component that has a scan alone are its own, whatever its sampling factors.
func TestLoneComponent(t *testing.T) {
	data := readImage(t, "video-005.gray.jpeg")
	want, err := Decode(context.Background(), data)
	if err != nil {
		t.Fatal(err)
	}
	factors := &data[bytes.Index(data, []byte{0xff, markerSOF0})+11]
	for _, *factors = range []byte{0x22, 0x41, 0x14, 0x44} {
		got, err := Decode(context.Background(), data)
		if err != nil {
			t.Fatal(err)
		}
		a, b := want.Planes[0], got.Planes[0]
		if a.Width != b.Width || a.Height != b.Height || b.StepX != 1 || b.StepY != 1 {
			t.Errorf("factors %#x: a plane of %d×%d, steps %d×%d", *factors, b.Width, b.Height, b.StepX, b.StepY)
			continue
		}
		for y := range a.Height {
			if !bytes.Equal(a.Row(y)[:a.Width], b.Row(y)[:b.Width]) {
				t.Errorf("factors %#x: other samples in row %d", *factors, y)
				break
			}
		}
	}
}

// The transform is within one level of the exact one.
func TestInverseDCT(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var b [64]int16
		var q [64]int32
		for i := range b {
			q[i] = 1 + rng.Int32N(20)
			if rng.IntN(4) == 0 {
				b[i] = int16(rng.IntN(21) - 10)
			}
		}
		got := make([]uint8, 64)
		inverseDCT(got, 8, &b, &q)
		for y := range 8 {
			for x := range 8 {
				sum := 0.0
				for v := range 8 {
					for u := range 8 {
						w := 0.25
						if u == 0 {
							w /= math.Sqrt2
						}
						if v == 0 {
							w /= math.Sqrt2
						}
						sum += w * float64(int32(b[8*v+u])*q[8*v+u]) *
							math.Cos(float64((2*x+1)*u)*math.Pi/16) * math.Cos(float64((2*y+1)*v)*math.Pi/16)
					}
				}
				if want := min(max(sum+128, 0), 255); math.Abs(float64(got[8*y+x])-want) > 1 {
					t.Fatalf("sample %d,%d is %d, want %.2f", x, y, got[8*y+x], want)
				}
			}
		}
	}
}

func TestModel(t *testing.T) {
	for _, c := range []struct {
		ids   string
		jfif  bool
		adobe int
		want  Model
	}{
		{"\x01", false, -1, Gray},
		{"\x01\x02\x03", false, -1, YCbCr},
		{"RGB", false, -1, RGB},
		{"RGB", true, -1, YCbCr},
		{"RGB", false, 1, YCbCr},
		{"\x01\x02\x03", false, 0, RGB},
		{"\x01\x02\x03", true, 0, YCbCr},
		{"abcd", false, -1, CMYK},
		{"abcd", true, 0, CMYK},
		{"abcd", false, 2, YCCK},
	} {
		d := decoder{jfif: c.jfif, adobe: c.adobe}
		for _, id := range []byte(c.ids) {
			d.list = append(d.list, component{id: id})
		}
		if got := d.guessModel(); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// A sequential image whose end marker is cut off is whole; anything less is not.
func TestTruncated(t *testing.T) {
	for name, end := range map[string]int{"video-005.gray.jpeg": 2, "video-001.restart2.jpeg": 2, "video-001.progressive.jpeg": 0} {
		data := readImage(t, name)
		for _, cut := range []int{0, 1, 2, 3, 4, 5, 10, 50, 200} {
			if _, err := Decode(context.Background(), data[:len(data)-cut]); (err == nil) != (cut <= end) {
				t.Errorf("%s without the last %d bytes: %v", name, cut, err)
				break
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	gray := readImage(t, "video-005.gray.jpeg")
	segment := func(marker byte) int { return bytes.Index(gray, []byte{0xff, marker}) }
	sos := segment(markerSOS)
	// with changes bytes that begin some way after a marker.
	with := func(marker byte, after int, b ...byte) []byte {
		data := bytes.Clone(gray)
		copy(data[segment(marker)+after:], b)
		return data
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":              {nil, "no SOI"},
		"start only":         {gray[:2], "truncated"},
		"no scan":            {[]byte("\xff\xd8\xff\xd9"), "no scan"},
		"scan first":         {[]byte("\xff\xd8\xff\xda\x00\x02"), "a scan before the frame"},
		"differential":       {with(markerSOF0, 1, markerSOF0+5), "frames of type 5"},
		"lossless":           {with(markerSOF0, 1, markerSOF0+3), "frames of type 3"},
		"conditioning":       {[]byte("\xff\xd8\xff\xcc\x00\x04\x20\x00"), "bad DAC table"},
		"12 bits":            {with(markerSOF0, 4, 12), "samples of 12 bits"},
		"no height":          {with(markerSOF0, 5, 0, 0), "×0 pixels"},
		"5 components":       {with(markerSOF0, 9, 5), "5 components"},
		"factor 0":           {with(markerSOF0, 11, 0x10), "sampling factors 1×0"},
		"factor 5":           {with(markerSOF0, 11, 0x51), "sampling factors 5×1"},
		"quantisation table": {with(markerSOF0, 12, 4), "quantisation table 4"},
		"table not there":    {with(markerSOF0, 12, 3), "no quantisation table"},
		"DQT":                {with(markerDQT, 4, 9), "bad quantisation table"},
		"DHT":                {with(markerDHT, 4, 0x44), "bad Huffman table"},
		"DHT, codes":         {with(markerDHT, 5, 3), "bad Huffman table"},
		"SOS, name":          {with(markerSOS, 5, 77), "not in the frame"},
		"SOS, tables":        {with(markerSOS, 6, 0x22), "no Huffman table"},
		"SOS, count":         {with(markerSOS, 4, 2), "bad SOS length"},
		"large for so few":   {with(markerSOF0, 5, 0xff, 0xff, 0xff, 0xff), "truncated"},
		"two frames":         {slices.Concat(gray[:sos], gray[segment(markerSOF0):sos]), "two frames"},
	} {
		if _, err := Decode(context.Background(), c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, name := range []string{"video-005.gray.jpeg", "video-001.cmyk.jpeg", "video-001.q50.410.progressive.jpeg", "video-001.restart2.jpeg"} {
		f.Add(readImage(f, name))
	}
	f.Add(encoded(f, 9, 17, 50, false))
	f.Add(encoded(f, 3, 2, 50, true))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeConfig(data)
		if err != nil || c.Width*c.Height > 1<<15 {
			return
		}
		m, err := Decode(context.Background(), data)
		if err != nil {
			return
		}
		if m.Config != c || len(m.Planes) != c.Components {
			t.Fatalf("%+v, the header says %+v", m.Config, c)
		}
		for _, p := range m.Planes {
			if len(p.Row(p.Height-1)) < p.Width || p.Width*p.StepX < c.Width || p.Height*p.StepY < c.Height {
				t.Errorf("a plane of %d×%d", p.Width, p.Height)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	data := encoded(b, 4000, 3000, 85, false)
	b.Run("jpeg", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(context.Background(), data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("image-jpeg", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := jpeg.Decode(bytes.NewReader(data)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
