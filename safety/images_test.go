package safety

import (
	"bytes"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/gomono"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"

	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/ort"
)

// models is where make test-safety has put the npm packages; without them the test is skipped.
func models(t *testing.T, path ...string) string {
	t.Helper()
	dir := os.Getenv("MMSERVE_SAFETY_MODELS")
	if dir == "" {
		t.Skip("the models are those of npm packages: make test-safety fetches them")
	}
	lib, err := ort.FindLibrary("")
	if err != nil {
		t.Fatal(err)
	}
	if err := ort.Start(lib); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(append([]string{dir}, path...)...)
}

// page draws lines of text as letters, notes and screens have them: several fonts, sizes, colours and places.
func page(rng *rand.Rand, lines []string) []byte {
	fonts := [][]byte{goregular.TTF, gobold.TTF, gomono.TTF}
	f, err := opentype.Parse(fonts[rng.IntN(len(fonts))])
	if err != nil {
		panic(err)
	}
	size := 18 + 14*rng.Float64()
	face, err := opentype.NewFace(f, &opentype.FaceOptions{Size: size, DPI: 72})
	if err != nil {
		panic(err)
	}
	paper, ink := color.RGBA{uint8(230 + rng.IntN(26)), uint8(230 + rng.IntN(26)), uint8(225 + rng.IntN(31)), 255},
		color.RGBA{uint8(rng.IntN(60)), uint8(rng.IntN(60)), uint8(rng.IntN(90)), 255}
	if rng.IntN(5) == 0 {
		paper, ink = ink, paper
	}
	img := image.NewRGBA(image.Rect(0, 0, 780, 120+int(2.2*size)*len(lines)))
	draw.Draw(img, img.Bounds(), image.NewUniform(paper), image.Point{}, draw.Src)
	for range 3 { // something that is no text
		x, y := rng.IntN(700), rng.IntN(img.Bounds().Dy())
		draw.Draw(img, image.Rect(x, y, x+rng.IntN(200), y+3), image.NewUniform(ink), image.Point{}, draw.Src)
	}
	d := font.Drawer{Dst: img, Src: image.NewUniform(ink), Face: face}
	y, x := 50+rng.IntN(30), 20+rng.IntN(40)
	draw.Draw(img, image.Rect(x, y-int(size), 780, y+int(2.2*size)*len(lines)), image.NewUniform(paper), image.Point{},
		draw.Src)
	for i, line := range lines {
		d.Dot = fixed.P(x, y+i*int(2.2*size))
		d.DrawString(line)
	}
	var b bytes.Buffer
	if rng.IntN(2) == 0 {
		err = jpeg.Encode(&b, img, &jpeg.Options{Quality: 70 + rng.IntN(30)})
	} else {
		err = png.Encode(&b, img)
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

// plain is what pages say that tell of nobody.
var plain = []string{
	"Meeting notes, Monday", "Please water the plants", "Invoice 2026-0815, total 45.90 EUR", "Opening hours 9:00 - 17:30",
	"Platform 7, departure 10:45", "Version 2.4.1 released", "Order 4711 was shipped on 2026-11-30",
	"Room 204, second floor",
	"Milk, eggs, 2 kg flour", "Chapter 3: The long road", "50 % off all shoes", "Bus lines 12, 48 and 107",
	"Speed limit 30",
	"ISBN 978-3-16-148410-0", "Page 12 of 48", "Population 83,190,556", "Score 3 : 2", "Batch A7-443, use by 12/2027",
}

// private is what pages say of somebody, with the kind.
var private = []struct{ kind, text string }{
	{"email", "Contact: $email"}, {"email", "$email"}, {"phone", "Tel. $phone"}, {"phone", "Call $phone"},
	{"card", "Card $card"}, {"iban", "IBAN $iban"}, {"national_id", "SSN $ssn"}, {"national_id", "NHS $nhs"},
	{"national_id", "CPF $cpf"}, {"national_id", "PESEL $pesel"},
}

// pages is how many are drawn of each.
var pages = flag.Int("pages", 200, "pages with personal data, and as many without")

// Personal data in an image of text is found, other text is not taken for it, and what is covered cannot be read any
// more.
func TestPersonalDataInImages(t *testing.T) {
	p, err := Parse([]byte(fmt.Sprintf("default: {personal_data: {images: redact}}\ntext_in_images: %s",
		models(t, "node_modules", "@gutenye", "ocr-models", "assets"))))
	if err != nil {
		t.Fatal(err)
	}
	in, err := OpenInspector(p, InspectorOptions{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}()
	rng := rand.New(rand.NewPCG(23, 200))
	found, looked, covered, alarms := 0, 0, 0, 0
	for i := range 2 * *pages {
		lines := make([]string, 2+rng.IntN(2))
		for j := range lines {
			lines[j] = plain[rng.IntN(len(plain))]
		}
		kind, secret := "", ""
		if i%2 == 0 {
			one := private[rng.IntN(len(private))]
			kind, secret = one.kind, fill(one.text[strings.IndexByte(one.text, '$'):], rng)
			lines[rng.IntN(len(lines))] = one.text[:strings.IndexByte(one.text, '$')] + secret
		}
		file := page(rng, lines)
		findings, out, err := in.Inspect(t.Context(), p.Of(""), file)
		if err != nil {
			t.Fatal(err)
		}
		if kind == "" {
			if len(findings) > 0 {
				alarms++
				t.Logf("page %d: a false alarm: %+v in %q", i, findings, lines)
			}
			continue
		}
		if !slices.ContainsFunc(findings, func(f Finding) bool { return f.Kind == kind }) {
			t.Logf("page %d: %s missed in %q: %+v", i, kind, lines, findings)
			continue
		}
		found++
		if i%20 == 0 {
			looked++
			if !readable(t, in, out, secret) {
				covered++
			}
		}
	}
	t.Logf("found in %d of %d: %s; covered in %d of %d looked at; false alarms in %d of %d: %s", found, *pages,
		percent(found, *pages), covered, looked,
		alarms, *pages, percent(alarms, *pages))
	if found < *pages*95/100 || covered < looked || alarms > *pages*2/100 {
		t.Error("want at least 95 % found, all that is looked at covered, and at most 2 % false alarms")
	}
}

// readable says whether a text, or half of it, can be read in an image file.
func readable(t *testing.T, in *Inspector, file []byte, text string) bool {
	t.Helper()
	p, err := imaging.Decode(t.Context(), file, imaging.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	lines, err := in.text.Read(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if strings.Contains(l.Text, text[:len(text)/2]) || strings.Contains(l.Text, text[len(text)/2:]) {
			return true
		}
	}
	return false
}
