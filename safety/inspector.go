package safety

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/ocr"
)

// Inspector looks into images, with the models that a policy names. It is safe for concurrent use; images take turns,
// so that one decoded image at a time is held.
type Inspector struct {
	turn        chan struct{}
	limits      imaging.Limits
	text        *ocr.Reader
	classifiers []*imageClassifier
	texts       []*textClassifier
	reading     chan struct{} // places for texts
}

// textsAtOnce are classified at the same time: each takes a core.
const textsAtOnce = 2

// InspectorOptions bound what an inspector spends.
type InspectorOptions struct {
	// MaxPixels is the most that an image may have.
	MaxPixels int64
	// Threads is the number of threads of a model's run.
	Threads int
}

// OpenInspector opens the models for images that a policy names; nil if it names none. ONNX Runtime has to be loaded.
func OpenInspector(p *Policy, o InspectorOptions) (_ *Inspector, err error) {
	in := &Inspector{turn: make(chan struct{}, 1), reading: make(chan struct{}, textsAtOnce),
		limits: imaging.Limits{MaxPixels: o.MaxPixels}}
	if p.TextInImages != "" {
		if in.text, err = ocr.Open(p.TextInImages, o.Threads); err != nil {
			return nil, fmt.Errorf("text_in_images: %w", err)
		}
	}
	for i, c := range p.Classifiers {
		if err := in.open(c, o.Threads); err != nil {
			return nil, errors.Join(fmt.Errorf("classifiers[%d]: %w", i, err), in.Close())
		}
	}
	if in.text == nil && len(in.classifiers)+len(in.texts) == 0 {
		return nil, nil
	}
	return in, nil
}

// open opens a classifier.
func (in *Inspector) open(c ClassifierConfig, threads int) error {
	if c.Kind == "text" {
		one, err := openTextClassifier(c, threads)
		if err == nil {
			in.texts = append(in.texts, one)
		}
		return err
	}
	one, err := openImageClassifier(c, threads)
	if err == nil {
		in.classifiers = append(in.classifiers, one)
	}
	return err
}

// ReadsTexts says whether a classifier looks at texts of a place for what the rules act on, and whether what it finds
// may have to be held back.
func (in *Inspector) ReadsTexts(r *Rules, place Place) (reads, holds bool) {
	for _, c := range in.texts {
		for i, category := range c.categories {
			if c.known[i] {
				reads, holds = reads || r.Acts(category, place), holds || r.holds(category, place)
			}
		}
	}
	return reads, holds
}

// InspectText says what classifiers find in a text, as a whole. Errors wrap ErrLongText, or are of the models or ctx.
func (in *Inspector) InspectText(ctx context.Context, r *Rules, place Place, text string) (list []Finding, err error) {
	if reads, _ := in.ReadsTexts(r, place); !reads || strings.TrimSpace(text) == "" {
		return nil, nil
	}
	select {
	case in.reading <- struct{}{}:
		defer func() { <-in.reading }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for _, c := range in.texts {
		found, err := c.classify(ctx, text)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			if f.Action = r.Action(f.Category, place, f.Score); f.Action != Allow {
				list = append(list, f)
			}
		}
	}
	return list, nil
}

// Close frees the models. No Inspect may be under way.
func (in *Inspector) Close() (err error) {
	if in.text != nil {
		err = in.text.Close()
	}
	for _, c := range in.classifiers {
		err = errors.Join(err, c.close())
	}
	for _, c := range in.texts {
		err = errors.Join(err, c.close())
	}
	return err
}

// Inspect says what a tenant's rules have to do with an image file. What is to be redacted is covered with boxes in the
// file that it gives, a PNG, and is covered wholly where a classifier says so of the image; else it gives data. Errors
// wrap imaging.ErrImage, or are the context's cause.
func (in *Inspector) Inspect(ctx context.Context, r *Rules, data []byte) (findings []Finding, out []byte, err error) {
	if !r.acts(Images) {
		return nil, data, nil
	}
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	ctx, cancel := in.limits.Within(ctx)
	defer cancel()
	p, err := imaging.Decode(ctx, data, in.limits)
	if err != nil {
		return nil, nil, err
	}
	covered := false
	for _, c := range in.classifiers {
		list, err := c.classify(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range list {
			if f.Action = r.Action(f.Category, Images, f.Score); f.Action != Allow {
				findings = append(findings, f)
			}
			if f.Action == Redact {
				cover(p, image.Rect(0, 0, p.W, p.H))
				covered = true
			}
		}
	}
	if in.text != nil && !covered {
		list, boxes, err := in.read(ctx, r, p)
		if err != nil {
			return nil, nil, err
		}
		findings, covered = append(findings, list...), len(boxes) > 0
		for _, b := range boxes {
			cover(p, b)
		}
	}
	if !covered || slices.ContainsFunc(findings, func(f Finding) bool { return f.Action == Block }) {
		return findings, data, nil
	}
	out, err = encode(p)
	return findings, out, err
}

// read looks at the text in an image, and gives the boxes around what is to be redacted in it.
func (in *Inspector) read(ctx context.Context, r *Rules, p *imaging.RGB) (list []Finding, boxes []image.Rectangle,
	err error) {
	lines, err := in.text.Read(ctx, p)
	if err != nil || len(lines) == 0 {
		return nil, nil, err
	}
	for _, reading := range [][]ocr.Line{lines, apart(lines)} {
		more, where := r.readLines(reading)
		for i, f := range more {
			known := slices.ContainsFunc(list, func(o Finding) bool { return o.Category == f.Category && o.Kind == f.Kind })
			if !known || f.Action == Redact && !within(where[i], boxes) {
				list, boxes = append(list, f), append(boxes, where[i]...)
			}
		}
	}
	return list, boxes, nil
}

// within says whether boxes are covered by others.
func within(list, others []image.Rectangle) bool {
	return !slices.ContainsFunc(list, func(b image.Rectangle) bool {
		return !slices.ContainsFunc(others, func(o image.Rectangle) bool { return b.In(o) })
	})
}

// readLines looks at lines, and gives the boxes around each finding that is to be redacted.
func (r *Rules) readLines(lines []ocr.Line) (list []Finding, boxes [][]image.Rectangle) {
	var text strings.Builder
	starts := make([]int, len(lines)) // in text
	for i, l := range lines {
		if i > 0 && ocr.SameRow(lines[i-1].Box, l.Box) {
			text.WriteByte(' ')
		} else if i > 0 {
			text.WriteByte('\n')
		}
		starts[i] = text.Len()
		text.WriteString(l.Text)
	}
	list = r.Check(Images, text.String()).Findings
	boxes = make([][]image.Rectangle, len(list))
	for k, f := range list {
		if f.Action != Redact {
			continue
		}
		for i, l := range lines {
			from, to := max(f.Start-starts[i], 0), min(f.End-starts[i], len(l.Text))
			if from < to {
				boxes[k] = append(boxes[k], part(l, from, to))
			}
		}
	}
	return list, boxes
}

// glued is a word that a number follows at once, or an account's number with its country: the model often leaves the
// space between them out.
var glued = regexp.MustCompile(`([A-Za-z]{3,}[.:]?)([A-Z]{2}[0-9]{2}[ A-Z0-9]{8})|([A-Za-z]{2,}[.:]?)([+(]?[0-9])`)

// apart is lines with a space between such words and numbers.
func apart(lines []ocr.Line) []ocr.Line {
	out := slices.Clone(lines)
	for i, l := range lines {
		at := map[int]bool{}
		for _, m := range glued.FindAllStringSubmatchIndex(l.Text, -1) {
			switch {
			case m[4] < 0:
				at[m[8]] = true
			case ibanLengths[l.Text[m[4]:m[4]+2]] > 0:
				at[m[4]] = true
			default: // PESEL44…
				at[m[4]+2] = true
			}
		}
		if len(at) == 0 {
			continue
		}
		n := ocr.Line{Box: l.Box}
		for j := range len(l.Text) {
			if at[j] {
				n.Text, n.At = n.Text+" ", append(n.At, l.At[j])
			}
			n.Text, n.At = n.Text+l.Text[j:j+1], append(n.At, l.At[j])
		}
		out[i] = n
	}
	return out
}

// part is the box around some bytes of a line, with a margin: where the model places characters is not exact.
func part(l ocr.Line, from, to int) image.Rectangle {
	w, margin := float64(l.Box.Dx()), l.Box.Dy()/3
	return image.Rect(l.Box.Min.X+int(math.Floor(l.At[from].From*w))-margin, l.Box.Min.Y-2,
		l.Box.Min.X+int(math.Ceil(l.At[to-1].To*w))+margin, l.Box.Max.Y+2)
}

// cover blackens a box.
func cover(p *imaging.RGB, b image.Rectangle) {
	b = b.Intersect(image.Rect(0, 0, p.W, p.H))
	for y := b.Min.Y; y < b.Max.Y; y++ {
		clear(p.Row(y)[3*b.Min.X : 3*b.Max.X])
	}
}

// encode writes an image file.
func encode(p *imaging.RGB) ([]byte, error) {
	img := image.NewNRGBA(image.Rect(0, 0, p.W, p.H))
	for i := range p.W * p.H {
		copy(img.Pix[4*i:], p.Pix[3*i:3*i+3])
		img.Pix[4*i+3] = 0xFF
	}
	var b bytes.Buffer
	err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&b, img)
	return b.Bytes(), err
}
