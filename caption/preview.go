package caption

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"html/template"
	"image"
	"image/jpeg"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/disintegration/imaging"

	decoding "github.com/mmserve/mmserve/internal/imaging"
)

const (
	previewImages = 200
	thumbnailSide = 240
)

// Preview keeps thumbnails of a sample of a run's images, for a page to look at. Each row has the same chance to be in
// it.
type Preview struct {
	random *rand.Rand
	seen   int
	shown  []previewed
}

type previewed struct {
	Row
	// Thumbnail is a data URL; empty where the image cannot be shown.
	Thumbnail template.URL
}

// NewPreview makes an empty one. The same rows in the same order give the same sample.
func NewPreview() *Preview { return &Preview{random: rand.New(rand.NewPCG(1, 2))} }

// Add takes a row and its image, in reservoir sampling (Vitter 1985, algorithm R).
func (p *Preview) Add(r *Row, image []byte) {
	p.seen++
	at := len(p.shown)
	if at >= previewImages {
		if at = p.random.IntN(p.seen); at >= previewImages {
			return
		}
		p.shown[at] = previewed{*r, thumbnail(image)}
		return
	}
	p.shown = append(p.shown, previewed{*r, thumbnail(image)})
}

// thumbnail is a small JPEG file as a data URL.
func thumbnail(data []byte) template.URL {
	rgb, err := decoding.Decode(context.Background(), data, decoding.DefaultLimits())
	if err != nil {
		return ""
	}
	var b bytes.Buffer
	small := imaging.Fit(nrgba(rgb), thumbnailSide, thumbnailSide, imaging.Box)
	if jpeg.Encode(&b, small, &jpeg.Options{Quality: 80}) != nil {
		return ""
	}
	return template.URL(
		"data:image/jpeg;base64," + base64.StdEncoding.EncodeToString(b.Bytes()),
	) // bytes of our own encoder
}

func nrgba(rgb *decoding.RGB) *image.NRGBA {
	m := image.NewNRGBA(image.Rect(0, 0, rgb.W, rgb.H))
	for i := range rgb.W * rgb.H {
		copy(m.Pix[4*i:], rgb.Pix[3*i:3*i+3])
		m.Pix[4*i+3] = 255
	}
	return m
}

// WriteHTML writes the page. It needs nothing from anywhere else.
func (p *Preview) WriteHTML(w io.Writer) error {
	shown := slices.Clone(p.shown)
	slices.SortStableFunc(shown, func(a, b previewed) int { return int(a.Index - b.Index) })
	return previewPage.Execute(
		w,
		map[string]any{"Title": fmt.Sprintf("%d of %d captions", len(shown), p.seen), "Shown": shown},
	)
}

var previewPage = template.Must(template.New("preview").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{.Title}}</title>
<style>
body{font:14px/1.4 system-ui,sans-serif;margin:1.5rem;background:#fff;color:#222}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:1.2rem}
figure{margin:0}img{max-width:100%;display:block}figcaption{margin-top:.3rem;overflow-wrap:anywhere}
small{color:#666;display:block}.bad{color:#a00}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}small{color:#999}.bad{color:#f77}}
</style>
<h1>{{.Title}}</h1>
<main>{{range .Shown}}
<figure>{{if .Thumbnail}}<img loading="lazy" src="{{.Thumbnail}}" alt="">{{end}}
<figcaption>{{if .ErrorCode}}<span class="bad">{{.ErrorCode}}: {{.Error}}</span>{{else}}{{.Text}}{{end}}
<small>{{.ID}}{{if ne .Question "caption"}} · {{.Question}}{{end}}{{if eq .FinishReason "length"}} · cut by max_tokens{{end}}{{if .DuplicateOf}} · copy of {{.DuplicateOf}}{{end}}</small></figcaption></figure>{{end}}
</main></html>
`))
