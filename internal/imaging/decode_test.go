package imaging

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"image/jpeg"
	"image/png"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

// pillow is what goldens.py found in one file.
type pillow struct {
	Refused string
	W, H    int
	SHA256  string
	Means   []float64
}

func readGolden[T any](t testing.TB, name string) (g T) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../vision/testdata/goldens", name))
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
	data, err := os.ReadFile(filepath.Join("../../vision/testdata", name))
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

// refused are the files that Decode does not take, with a part of the reason it must give.
var refused = map[string]string{
	"decode/pillow/broken.png":             "truncated",
	"decode/pillow/decompression_bomb.gif": "codes of 143 bits",
	"decode/pillow/truncated_image.png":    "truncated",
	"decode/pillow/truncated_jpeg.jpg":     "truncated",
	"made/LAB.tif":                         "CIE Lab is not supported",
	"made/YCbCr.tif":                       "YCbCr that is not compressed is not supported",
}

// smoothed is a progressive JPEG whose last scans are missing: libjpeg smooths its blocks, which is not done here.
const smoothed = "decode/gojpeg/video-001.progressive.truncated.jpeg"

func TestDecodeAsPillow(t *testing.T) {
	seen := 0
	for name, want := range readGolden[map[string]pillow](t, "decode.json") {
		if !strings.HasPrefix(name, "elsewhere/") {
			seen++
		}
		t.Run(name, func(t *testing.T) {
			data, ok := readImage(t, name)
			if !ok {
				t.Skip("MMSERVE_TEST_IMAGES names no folder")
			}
			p, err := Decode(context.Background(), data, Limits{})
			if part, ok := refused[name]; ok {
				if !errors.Is(err, ErrImage) || !strings.Contains(fmt.Sprint(err), part) {
					t.Errorf("error %v, want one with %q", err, part)
				}
				return
			}
			if err != nil || want.Refused != "" {
				t.Fatalf("error %v, Pillow's %q", err, want.Refused)
			}
			if p.W != want.W || p.H != want.H {
				t.Fatalf("%d×%d pixels, want %d×%d", p.W, p.H, want.W, want.H)
			}
			if _, w, h, err := checkHeader(data, Limits{}); err != nil || w != p.W || h != p.H {
				t.Errorf("CheckHeader: %d×%d, %v", w, h, err)
			}
			sum := sha256.Sum256(p.Pix)
			if hex.EncodeToString(sum[:]) == want.SHA256 {
				return
			}
			if name != smoothed {
				t.Fatal("other pixels than Pillow's")
			}
			checkMeans(t, p, want.Means)
		})
	}
	files := 0
	for _, top := range []string{"photos", "pictures", "decode", "exif", "made"} {
		filepath.WalkDir(filepath.Join("../../vision/testdata", top), func(_ string, d fs.DirEntry, _ error) error {
			if !d.IsDir() {
				files++
			}
			return nil
		})
	}
	if seen != files {
		t.Errorf("goldens of %d files, there are %d", seen, files)
	}
}

// checkHeader reads the header only.
func checkHeader(data []byte, l Limits) (format string, w, h int, err error) {
	hd, err := ReadHeader(context.Background(), data, l)
	if err != nil {
		return "", 0, 0, err
	}
	return hd.Format, hd.Width, hd.Height, nil
}

// checkMeans holds means of an 8×8 grid of blocks against Pillow's.
func checkMeans(t *testing.T, p *RGB, want []float64) {
	t.Helper()
	for i := range want {
		y0, y1, x0, x1 := p.H*(i/8)/8, p.H*(i/8+1)/8, p.W*(i%8)/8, p.W*(i%8+1)/8
		sum := 0
		for y := y0; y < y1; y++ {
			for _, v := range p.Row(y)[3*x0 : 3*x1] {
				sum += int(v)
			}
		}
		if mean := float64(sum) / float64(3*(y1-y0)*(x1-x0)); math.Abs(mean-want[i]) > 0.5 {
			t.Errorf("block %d has a mean of %.2f, want %.2f", i, mean, want[i])
		}
	}
}

// pngBytes is one chunk with its checksum.
func pngBytes(id string, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = append(append(b, id...), payload...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

func hugePNG() []byte {
	size := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 20000), 20000)
	return append([]byte("\x89PNG\r\n\x1a\n"), pngBytes("IHDR", append(size, 8, 2, 0, 0, 0))...)
}

func deflated(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// withPixels adds an empty chunk of pixels.
func withPixels(data []byte) []byte { return append(data, pngBytes("IDAT", nil)...) }

func hugeWebP() []byte {
	vp8l := []byte{0x2f, 0xff, 0xff, 0xff, 0x0f, 0} // 16384×16384
	b := append([]byte("VP8L"), binary.LittleEndian.AppendUint32(nil, uint32(len(vp8l)))...)
	b = append(b, vp8l...)
	return slices.Concat([]byte("RIFF"), binary.LittleEndian.AppendUint32(nil, uint32(4+len(b))), []byte("WEBP"), b)
}

// scanBomb is a JPEG whose first scan of coefficients comes many times.
func scanBomb(t testing.TB) []byte {
	data := readFile(t, "decode/gojpeg/video-001.progressive.jpeg")
	sos := []byte{0xff, markerSOS}
	at := bytes.LastIndex(data, sos)
	scan := data[at : len(data)-2]
	return slices.Concat(data[:at], bytes.Repeat(scan, 200), data[len(data)-2:])
}

func TestRefusedBeforeMemoryIsSpent(t *testing.T) {
	bigJPEG := bytes.Clone(readFile(t, "decode/gojpeg/video-001.jpeg"))
	sof := bytes.Index(bigJPEG, []byte{0xff, 0xc0})
	copy(bigJPEG[sof+5:], "\xff\xff\xff\xff")
	bigGIF := append([]byte("GIF89a\xff\xff\xff\xff\x00\x00\x00"), 0x2c, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 8)
	bigBMP := bytes.Clone(readFile(t, "made/rgb.bmp"))
	binary.LittleEndian.PutUint32(bigBMP[18:], 20000)
	binary.LittleEndian.PutUint32(bigBMP[22:], 20000)
	hugeTIFF := tiffBomb(20000, 20000, [4]uint32{273, 4, 1, 8}, [4]uint32{279, 4, 1, 8})
	oneTile := tiffBomb(30_000_000, 1, [4]uint32{322, 4, 1, 30_000_000}, [4]uint32{323, 4, 1, 17})
	sharedStrips := tiffBomb(64, 64,
		[4]uint32{259, 3, 1, 5}, [4]uint32{273, 1, 64, 60}, [4]uint32{278, 3, 1, 1}, [4]uint32{279, 1, 64, 60})
	for name, c := range map[string]struct {
		data   []byte
		limits Limits
		want   string
	}{
		"empty":        {nil, Limits{}, "unusable image: it is empty"},
		"text":         {[]byte("a text that somebody named photo.jpg\n"), Limits{}, "text of 37 bytes, which is no image"},
		"text, BM":     {[]byte("BMW is no header of a bitmap file"), Limits{}, "text of 33 bytes"},
		"unknown":      {[]byte("\x01\x02\x03\x04"), Limits{}, "4 bytes of unknown format, want one of jpeg, png, gif, bmp, tiff, webp, ico, ppm, tga"},
		"long file":    {make([]byte, 11), Limits{MaxBytes: 10}, "11 bytes, at most 10 are allowed"},
		"png":          {withPixels(hugePNG()), Limits{}, "20000×20000 = 400000000 pixels, at most 64000000 are allowed"},
		"png, own cap": {readFile(t, "photos/chelsea.png"), Limits{MaxPixels: 100}, "451×300 = 135300 pixels, at most 100 are allowed"},
		"jpeg":         {bigJPEG, Limits{}, "65535×65535 = 4294836225 pixels, at most"},
		"gif":          {bigGIF, Limits{}, "65535×65535 = 4294836225 pixels, at most"},
		"bmp":          {bigBMP, Limits{}, "20000×20000 = 400000000 pixels, at most"},
		"webp":         {hugeWebP(), Limits{}, "16384×16384 = 268435456 pixels, at most"},
		"tiff":         {hugeTIFF, Limits{}, "20000×20000 = 400000000 pixels, at most"},
		"tiff, vast":   {tiffBomb(1<<32-1, 1<<32-1), Limits{}, "4294967295×4294967295 pixels"},
		"tiff, tiles":  {oneTile, Limits{}, "strips or tiles, want"},
		"tiff, shared": {sharedStrips, Limits{}, "strips or tiles of"},
		"scan bomb":    {scanBomb(t), Limits{}, "scans, at most 100 are allowed"},
		"gif bomb":     {readFile(t, "decode/pillow/decompression_bomb.gif"), Limits{}, "gif of 44 bytes: codes of 143 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Decode(context.Background(), c.data, c.limits)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrImage) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}

// tiffBomb has one pixel and what entries say.
func tiffBomb(w, h uint32, entries ...[4]uint32) []byte {
	b := []byte("II*\x00\x08\x00\x00\x00")
	entries = append([][4]uint32{{256, 4, 1, w}, {257, 4, 1, h}, {258, 3, 1, 8}, {262, 3, 1, 1}}, entries...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(entries)))
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, uint16(e[0])), uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, e[2]), e[3])
	}
	return append(b, make([]byte, 64)...)
}

func TestTruncatedAnywhere(t *testing.T) {
	for _, name := range []string{"decode/gojpeg/video-005.gray.jpeg", "decode/pngsuite/basn2c08.png", "decode/pillow/hopper.gif",
		"decode/pillow/hopper.webp", "decode/gopher-doc.with-alpha.lossless.webp", "made/P.bmp", "made/lzw.tif"} {
		data := readFile(t, name)
		whole, err := Decode(context.Background(), data, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(data); n += 1 + len(data)/racetest.Part(150) {
			p, err := Decode(context.Background(), data[:n], Limits{})
			switch {
			case err == nil && !bytes.Equal(p.Pix, whole.Pix):
				t.Errorf("%s: %d of %d bytes gave another image", name, n, len(data))
			case err != nil && !errors.Is(err, ErrImage):
				t.Errorf("%s: %d of %d bytes: %v is no ErrImage", name, n, len(data), err)
			}
		}
	}
}

func TestDecoderPanicIsAnError(t *testing.T) {
	f := find(readFile(t, "made/rgb.bmp"))
	kept := f.open
	defer func() { f.open = kept }()
	for name, open := range map[string]func(context.Context, []byte) (*source, error){
		"open": func(context.Context, []byte) (*source, error) { panic("index out of range with some content") },
		"decode": func(context.Context, []byte) (*source, error) {
			return &source{w: 1, h: 1, decode: func(context.Context) (*RGB, error) { panic("some content") }}, nil
		},
	} {
		f.open = open
		_, err := Decode(context.Background(), readFile(t, "made/rgb.bmp"), Limits{})
		if !errors.Is(err, ErrImage) || strings.Contains(err.Error(), "content") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// exifBlock is a TIFF header with one directory of one entry.
func exifBlock(order binary.AppendByteOrder, kind uint16, orientation uint32) []byte {
	b := []byte("II*\x00")
	if order == binary.AppendByteOrder(binary.BigEndian) {
		b = []byte("MM\x00*")
	}
	b = order.AppendUint16(order.AppendUint32(b, 8), 1)
	b = order.AppendUint32(order.AppendUint16(order.AppendUint16(b, 0x112), kind), 1)
	if kind == 3 {
		return order.AppendUint16(order.AppendUint16(b, uint16(orientation)), 0)
	}
	return order.AppendUint32(b, orientation)
}

func TestEXIFOrientation(t *testing.T) {
	for _, c := range []struct {
		block []byte
		want  int
	}{
		{exifBlock(binary.LittleEndian, 3, 6), 6},
		{exifBlock(binary.BigEndian, 3, 8), 8},
		{append([]byte("Exif\x00\x00"), exifBlock(binary.BigEndian, 3, 5)...), 5},
		{exifBlock(binary.BigEndian, 4, 3), 3},
		{exifBlock(binary.LittleEndian, 2, 3), 0}, // text is no orientation
		{exifBlock(binary.LittleEndian, 3, 9), 0}, // out of range
		{exifBlock(binary.LittleEndian, 3, 0), 0}, //
		{exifBlock(binary.LittleEndian, 3, 6)[:17], 0},
		{[]byte("II*\x00\xff\xff\xff\xff\x01\x00"), 0}, // directory outside the block
		{nil, 0},
	} {
		if got, _ := exifOrientation(c.block); got != c.want {
			t.Errorf("%q: %d, want %d", c.block, got, c.want)
		}
	}
}

// TestOrientationPlaces: every place that can hold an orientation turns an image of 2×1 into 1×2.
func TestOrientationPlaces(t *testing.T) {
	m := image.NewNRGBA(image.Rect(0, 0, 2, 1))
	var p, j bytes.Buffer
	if err := errors.Join(png.Encode(&p, m), jpeg.Encode(&j, m, nil)); err != nil {
		t.Fatal(err)
	}
	exif := exifBlock(binary.BigEndian, 3, 6)
	xmp := []byte(`<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>`)
	deflate := func(b []byte) []byte {
		var out bytes.Buffer
		w := zlib.NewWriter(&out)
		w.Write(b)
		w.Close()
		return out.Bytes()
	}
	raw := fmt.Sprintf("\nexif\n  %d\n%x\n", len(exif), exif)
	withChunk := func(id string, payload string) []byte {
		end := p.Len() - 12 // before IEND
		return slices.Concat(p.Bytes()[:end], pngBytes(id, []byte(payload)), p.Bytes()[end:])
	}
	withSegment := func(payload string) []byte {
		n := binary.BigEndian.AppendUint16([]byte{0xff, markerAPP1}, uint16(2+len(payload)))
		return slices.Concat(j.Bytes()[:2], n, []byte(payload), j.Bytes()[2:])
	}
	lossless := readFile(t, "decode/gopher-doc.with-alpha.lossless.webp")
	withXMP := slices.Concat(lossless, []byte("XMP "), binary.LittleEndian.AppendUint32(nil, uint32(len(xmp))), xmp)
	for name, data := range map[string][]byte{
		"png eXIf":             withChunk("eXIf", string(exif)),
		"png tEXt":             withChunk("tEXt", "Raw profile type exif\x00"+raw),
		"png zTXt":             withChunk("zTXt", "Raw profile type exif\x00\x00"+string(deflate([]byte(raw)))),
		"png iTXt":             withChunk("iTXt", "XML:com.adobe.xmp\x00\x00\x00\x00\x00"+string(xmp)),
		"png iTXt, compressed": withChunk("iTXt", "XML:com.adobe.xmp\x00\x01\x00\x00\x00"+string(deflate(xmp))),
		"png, EXIF before XMP": slices.Concat(withChunk("eXIf", string(exif))[:p.Len()+len(exif)],
			pngBytes("iTXt", []byte("XML:com.adobe.xmp\x00\x00\x00\x00\x00tiff:Orientation=\"3\"")), p.Bytes()[p.Len()-12:]),
		"jpeg EXIF": withSegment("Exif\x00\x00" + string(exif)),
		"jpeg XMP":  withSegment("http://ns.adobe.com/xap/1.0/\x00" + string(xmp)),
		"webp XMP":  withXMP,
	} {
		source, err := find(data).open(context.Background(), data)
		if err != nil {
			t.Fatal(name, err)
		}
		if source.orientation != 6 {
			t.Errorf("%s: orientation %d, want 6", name, source.orientation)
		}
		got, err := Decode(context.Background(), data, Limits{})
		if err != nil || got.W != source.h || got.H != source.w {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func addSeeds(f *testing.F) {
	for _, glob := range []string{
		"made/*", "exif/orientation_[68].jpg", "decode/pngsuite/basn*", "decode/gojpeg/*q50.4*", "decode/pillow/*.gif",
		"decode/pillow/hopper.webp", "decode/pillow/xmp*",
	} {
		names, err := filepath.Glob(filepath.Join("../../vision/testdata", glob))
		if err != nil || len(names) == 0 {
			f.Fatal(glob, err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add(hugePNG())
	f.Add(hugeWebP())
}

func FuzzCheckHeader(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		format, w, h, err := checkHeader(data, Limits{})
		if err != nil {
			if !errors.Is(err, ErrImage) {
				t.Errorf("%v is no ErrImage", err)
			}
			return
		}
		if sniffed, ok := Sniff(data); !ok || sniffed != format {
			t.Errorf("%s, sniffed as %s", format, sniffed)
		}
		if w < 1 || h < 1 || int64(w)*int64(h) > DefaultLimits().MaxPixels {
			t.Errorf("%d×%d passed", w, h)
		}
	})
}

func FuzzDecode(f *testing.F) {
	addSeeds(f)
	limits := Limits{MaxBytes: 64 << 10, MaxPixels: 1 << 16}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(context.Background(), data, limits)
		if err != nil {
			if !errors.Is(err, ErrImage) {
				t.Errorf("%v is no ErrImage", err)
			}
			return
		}
		if _, w, h, err := checkHeader(data, limits); err != nil || w != p.W || h != p.H || len(p.Pix) != 3*w*h {
			t.Errorf("%d×%d with %d bytes, the header says %d×%d, %v", p.W, p.H, len(p.Pix), w, h, err)
		}
	})
}

// photo is an image of w×h made from a real one, as JPEG of 4:2:0.
func photo(b *testing.B, w, h int) []byte {
	b.Helper()
	p, err := Decode(context.Background(), readFile(b, "photos/astronaut.png"), Limits{})
	if err != nil {
		b.Fatal(err)
	}
	if p, err = Filters[3].Resize(b.Context(), p, w, h); err != nil {
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

func withOrientation(data []byte, o uint32) []byte {
	payload := append([]byte("Exif\x00\x00"), exifBlock(binary.BigEndian, 3, o)...)
	n := binary.BigEndian.AppendUint16([]byte{0xff, markerAPP1}, uint16(2+len(payload)))
	return slices.Concat(data[:2], n, payload, data[2:])
}

func BenchmarkDecode(b *testing.B) {
	large := photo(b, 4000, 3000)
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"jpeg-1300x876", photo(b, 1300, 876)},
		{"jpeg-12MP", large},
		{"jpeg-12MP-turned", withOrientation(large, 6)},
		{"png-512x512", readFile(b, "photos/astronaut.png")},
		{"webp-lossy-480x360", readFile(b, "decode/pillow/flower.webp")},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode(context.Background(), c.data, Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCheckHeader(b *testing.B) {
	data := hugePNG()
	for b.Loop() {
		if _, _, _, err := checkHeader(data, Limits{}); err == nil {
			b.Fatal("an image of 400 megapixels passed")
		}
	}
}

// A larger file is read where it is scaled down as it is decoded, and where the memory of smaller ones holds that.
func TestMaxFilePixels(t *testing.T) {
	data := readFile(t, "photos/chelsea.png") // 451×300 pixels
	for name, c := range map[string]struct {
		limits Limits
		ok     bool
	}{
		"no more than that": {Limits{MaxPixels: 451 * 300}, true},
		"more":              {Limits{MaxPixels: 451*300 - 1}, false},
		"more in files":     {Limits{MaxPixels: 100, MaxFilePixels: 451 * 300}, true},
		"more than those":   {Limits{MaxPixels: 100, MaxFilePixels: 451*300 - 1}, false},
	} {
		if _, err := ReadHeader(t.Context(), data, c.limits); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	large := bytes.Clone(readFile(t, "decode/gojpeg/video-001.progressive.jpeg")) // 1.5 coefficients of two bytes a pixel
	sof := bytes.Index(large, []byte{0xff, 0xc2})
	copy(large[sof+5:], "\x40\x00\x40\x00") // 16384×16384
	_, err := ReadHeader(t.Context(), large, Limits{MaxFilePixels: 1 << 30})
	if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), "decoding takes") {
		t.Errorf("a file whose decoding takes too much memory: %v", err)
	}
}
