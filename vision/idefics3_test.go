package vision

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// smolVLM is the configuration of SmolVLM.
const smolVLM = `{"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 2048},
	"max_image_size": {"longest_edge": 512}, "resample": 1, "rescale_factor": 0.00392156862745098,
	"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_image_splitting": true}`

func parse(t testing.TB, config string) Idefics3 {
	t.Helper()
	p, err := ParseIdefics3([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pixelValues gives what the tower would get for an image.
func pixelValues(p Preprocessor, img *Image) []float32 {
	if p, ok := p.(Qwen2VL); ok {
		values := make([]float32, len(img.Pixels)*p.TemporalPatchSize)
		p.Normalize(values, img.Pixels)
		return values
	}
	values := make([]float32, len(img.Pixels))
	for n, at := 3*img.Size*img.Size, 0; at < len(values); at += n {
		p.Normalize(values[at:at+n], img.Pixels[at:at+n])
	}
	return values
}

// sum is the SHA-256 of the values as little-endian float32.
func sum(images ...[]float32) string {
	h := sha256.New()
	for _, values := range images {
		binary.Write(h, binary.LittleEndian, values)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestScenes is every image of the gold cases of tiny-vlm, several of which have two.
func TestScenes(t *testing.T) {
	const gold = "../testdata/tiny-vlm-gold"
	f, err := os.Open(filepath.Join(gold, "gold.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := parse(t, `{"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}, "do_image_splitting": false}`)
	lines, cases := bufio.NewScanner(f), 0
	for lines.Scan() {
		var c struct {
			ID     string
			Images []string
			SHA256 string `json:"pixel_sha256_f32"`
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		if len(c.Images) == 0 {
			continue
		}
		cases++
		var images [][]float32
		for _, name := range c.Images {
			data, err := os.ReadFile(filepath.Join(gold, name))
			if err != nil {
				t.Fatal(err)
			}
			img, err := p.Prepare(context.Background(), data, Limits{}, true)
			if err != nil {
				t.Fatal(err)
			}
			images = append(images, pixelValues(p, img))
		}
		if sum(images...) != c.SHA256 {
			t.Errorf("%s: other pixel values than transformers", c.ID)
		}
	}
	if lines.Err() != nil || cases == 0 {
		t.Errorf("%d cases, %v", cases, lines.Err())
	}
}

func TestGrid(t *testing.T) {
	p := parse(t, smolVLM)
	for _, c := range []struct{ w, h, rows, cols int }{
		// Measured with transformers.
		{512, 512, 4, 4}, {1300, 876, 3, 4}, {467, 311, 3, 4}, {451, 300, 3, 4}, {1600, 1068, 3, 4}, {744, 850, 4, 4},
		{487, 206, 2, 4}, {1344, 1344, 4, 4},
		// By hand: a side never falls below one pixel, and that becomes one tile.
		{1, 1, 4, 4}, {10000, 1, 1, 4}, {1, 10000, 4, 1},
	} {
		if got := p.Grid(c.w, c.h); got != (Grid{Rows: c.rows, Cols: c.cols}) {
			t.Errorf("%d×%d: %+v, want %d rows, %d columns", c.w, c.h, got, c.rows, c.cols)
		}
	}
	// int(2048/(467/311)) is 1363: odd sides go up by one.
	for _, c := range []struct{ size, w, h, firstW, firstH int }{
		{2048, 467, 311, 2048, 1364}, {2048, 311, 467, 1364, 2048}, {64, 1000, 1, 64, 1},
	} {
		p.Size = c.size
		if w, h := p.first(c.w, c.h); w != c.firstW || h != c.firstH {
			t.Errorf("%d×%d becomes %d×%d first, want %d×%d", c.w, c.h, w, h, c.firstW, c.firstH)
		}
	}
	p.DoResize = false
	if got := p.Grid(1300, 876); got != (Grid{Rows: 3, Cols: 3}) {
		t.Errorf("without the first resize: %+v", got)
	}
	if got := p.Grid(512, 300); got != (Grid{}) || got.Tiles() != 1 {
		t.Errorf("an image of one tile: %+v", got)
	}
	p.Split = false
	if got := p.Grid(1300, 876); got != (Grid{}) {
		t.Errorf("unsplit: %+v", got)
	}
}

// TestGridIsWhatPrepareCuts over shapes at the edges of the rounding.
func TestGridIsWhatPrepareCuts(t *testing.T) {
	p := parse(t, `{"size": {"longest_edge": 40}, "max_image_size": {"longest_edge": 16}}`)
	for _, size := range [][2]int{{1, 1}, {40, 1}, {1, 40}, {33, 32}, {32, 33}, {100, 39}, {7, 90}, {17, 16}} {
		p.DoResize = !p.DoResize
		img, err := p.Prepare(context.Background(), bitmap(size[0], size[1]), Limits{}, true)
		if err != nil {
			t.Fatal(err)
		}
		if want := p.Grid(size[0], size[1]); img.Grid != want || len(img.Pixels) != want.Tiles()*3*16*16 {
			t.Errorf("%v: %+v with %d bytes, want %+v", size, img.Grid, len(img.Pixels), want)
		}
	}
}

// bitmap is a black BMP.
func bitmap(w, h int) []byte {
	b := make([]byte, 54+(3*w+3)/4*4*h)
	copy(b, "BM")
	b[10], b[14], b[26], b[28] = 54, 40, 1, 24
	binary.LittleEndian.PutUint32(b[18:], uint32(w))
	binary.LittleEndian.PutUint32(b[22:], uint32(h))
	return b
}

func TestPrepareRefuses(t *testing.T) {
	if img, err := parse(t, smolVLM).Prepare(context.Background(), []byte("text"), Limits{}, true); !errors.Is(err,
		ErrImage) || img != nil {
		t.Errorf("got %v, %v", img, err)
	}
}

func TestDigest(t *testing.T) {
	a := readFile(t, "exif/orientation_1.jpg")
	base := parse(t, `{"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}`)
	digest := func(p Idefics3, data []byte, split bool) [32]byte {
		img, err := p.Prepare(context.Background(), data, Limits{}, split)
		if err != nil {
			t.Fatal(err)
		}
		return img.Digest
	}
	first := digest(base, a, true)
	if digest(base, bytes.Clone(a), true) != first {
		t.Error("the same image has two digests")
	}
	unsplit := digest(base, a, false)
	whole := base
	whole.Split = false
	if digest(whole, a, true) != unsplit {
		t.Error("an image left whole by the request and by the configuration has two digests")
	}
	others := [][32]byte{first, unsplit, digest(base, readFile(t, "exif/orientation_2.jpg"), true)}
	for _, change := range []func(*Idefics3){
		func(p *Idefics3) { p.Size = 48 }, func(p *Idefics3) { p.MaxImageSize = 8 }, func(p *Idefics3) { p.Resample = 3 },
		func(p *Idefics3) { p.DoResize = false }, func(p *Idefics3) { p.DoRescale = false },
		func(p *Idefics3) { p.DoNormalize = false },
		func(p *Idefics3) { p.Rescale = 1 }, func(p *Idefics3) { p.Mean[2] = 0.4 }, func(p *Idefics3) { p.Std[0] = 0.4 },
	} {
		p := base
		change(&p)
		others = append(others, digest(p, a, true))
	}
	for i, d := range others {
		for j := range i {
			if d == others[j] {
				t.Errorf("%d and %d differ but have one digest", j, i)
			}
		}
	}
}

func TestParseIdefics3(t *testing.T) {
	got := parse(t, `{}`)
	want := Idefics3{Size: 1456, MaxImageSize: 364, Split: true, Resample: 1, DoResize: true, Normalization: Normalization{
		DoRescale: true, DoNormalize: true, Rescale: 1. / 255, Mean: [3]float32{0.5, 0.5, 0.5}, Std: [3]float32{0.5, 0.5,
			0.5}}}
	if got != want {
		t.Errorf("defaults %+v, want %+v", got, want)
	}
	got = parse(t, `{"do_resize": false, "do_rescale": false, "do_normalize": false, "do_image_splitting": false, "resample": 3,
		"size": {"longest_edge": 8}, "max_image_size": {"longest_edge": 4}, "rescale_factor": 0.5, "image_mean": 0.25, "image_std": [1, 2, 3]}`)
	want = Idefics3{Size: 8, MaxImageSize: 4, Resample: 3, Normalization: Normalization{
		Rescale: 0.5, Mean: [3]float32{0.25, 0.25, 0.25}, Std: [3]float32{1, 2, 3}}}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for config, part := range map[string]string{
		`[`:                           "unexpected end",
		`{"resample": 0}`:             "resample is 0, want 1 (Lanczos), 2 (bilinear) or 3 (bicubic)",
		`{"size": {"height": 3}}`:     "size has no longest_edge",
		`{"size":{"longest_edge":0}}`: "size.longest_edge is 0, want 1 to 4096",
		`{"max_image_size":{"longest_edge":5000}}`:       "max_image_size.longest_edge is 5000",
		`{"image_std": [1, 0, 1]}`:                       "image_std is [1 0 1], want no zero",
		`{"image_mean": [1, 0]}`:                         "image_mean: want a number or three",
		`{"image_processor_type": "CLIPImageProcessor"}`: `image_processor_type is "CLIPImageProcessor"`,
	} {
		if _, err := ParseIdefics3([]byte(config)); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v, want %q", config, err, part)
		}
	}
}

func FuzzParseIdefics3(f *testing.F) {
	f.Add([]byte(smolVLM))
	f.Add([]byte(`{"size": {"longest_edge": 1}, "image_mean": 0.5, "image_std": null}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		p, err := ParseIdefics3(config)
		if err != nil {
			return
		}
		if g := p.Grid(1300, 876); g.Rows < 0 || g.Cols < 0 || (g.Rows == 0) != (g.Cols == 0) {
			t.Errorf("%+v gives %+v", p, g)
		}
	})
}

func TestNormalizeParts(t *testing.T) {
	p := Normalization{Rescale: 1. / 255, Mean: [3]float32{1, 2, 3}, Std: [3]float32{1, 2, 4}}
	check := func(want ...float32) {
		t.Helper()
		got := make([]float32, 3)
		p.Normalize(got, []uint8{255, 255, 255})
		for c := range 3 {
			if got[c] != want[c] {
				t.Errorf("channel %d: %g, want %g", c, got[c], want[c])
			}
		}
	}
	check(255, 255, 255)
	p.DoRescale = true
	check(1, 1, 1)
	p.DoNormalize = true
	check(0, -0.5, -0.5)
	p.DoRescale = false
	check(254, 126.5, 63)
}

func BenchmarkPrepare(b *testing.B) {
	p := parse(b, smolVLM)
	for _, c := range []struct {
		name  string
		data  []byte
		split bool
	}{
		{"1300x876-13tiles", photo(b, 1300, 876), true},
		{"1300x876-1tile", photo(b, 1300, 876), false},
		{"12MP-13tiles", photo(b, 4000, 3000), true},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Prepare(context.Background(), c.data, Limits{}, c.split); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkNormalize(b *testing.B) {
	p := parse(b, smolVLM)
	src, dst := make([]uint8, 3*512*512), make([]float32, 3*512*512)
	for b.Loop() {
		p.Normalize(dst, src)
	}
}
