package fusion

import (
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/vision"
)

// ErrCount says that the prompt and its images do not fit each other. It is never papered over: patches that
// slide by one position give fluent nonsense.
type ErrCount struct {
	What       string
	Have, Want int
}

func (e *ErrCount) Error() string {
	return fmt.Sprintf("the prompt has %d %s for %d", e.Have, e.What, e.Want)
}

// ExpandPrompt replaces every placeholder of the rendered prompt by the text that stands for its image, in
// order. Text a user typed carries a guard rune inside anything that looks like a placeholder and never matches.
func (l Layout) ExpandPrompt(text string, grids []vision.Grid) (string, error) {
	if l.Frame != nil && l.Frame.OneImage {
		if len(grids) != 1 {
			return "", &PromptError{&ErrCount{"images, places", len(grids), 1}}
		}
		text = l.Placeholder + l.Frame.Start + l.Frame.End
	} else if l.Frame != nil {
		text = l.Frame.around(text, l.Placeholder, len(grids))
	}
	return l.expand(text, grids)
}

// expand is ExpandPrompt without the Frame.
func (l Layout) expand(text string, grids []vision.Grid) (string, error) {
	parts := []string{text}
	if l.Placeholder != "" {
		parts = strings.Split(text, l.Placeholder)
	}
	if n := len(parts) - 1; n != len(grids) {
		return "", &ErrCount{"image placeholders, images", n, len(grids)}
	}
	var b strings.Builder
	for i, p := range parts {
		b.WriteString(p)
		if i < len(grids) {
			b.WriteString(l.Expand(grids[i]))
		}
	}
	return b.String(), nil
}

// around frames a prompt. Reference: transformers PaliGemmaProcessor (build_string_from_input).
func (f *Frame) around(text, placeholder string, images int) string {
	at := strings.LastIndex(text, placeholder)
	head := strings.Repeat(placeholder, images)
	if at >= 0 {
		at += len(placeholder)
		head, text = text[:at], text[at:]
	}
	if f.Ask != nil {
		text = f.Ask(text)
	}
	return f.Before + head + f.Start + text + f.End
}

// Locate finds the positions that take patch embeddings and gives each run of them to its image: as many as the first
// image has patch embeddings to the first, and so on.
func (l Layout) Locate(ids []int32, images []*vision.Image) (Input, error) {
	in := Input{IDs: ids}
	want := 0
	for _, img := range images {
		want += l.Patches(img.Grid)
	}
	image, offset, have := 0, 0, 0
	for at := 0; at < len(ids); at++ {
		if ids[at] != l.ImageTokenID {
			continue
		}
		have++
		if image == len(images) {
			continue // counted, and refused below
		}
		last := len(in.Spans) - 1
		if last >= 0 && in.Spans[last].Image == image && in.Spans[last].Start+in.Spans[last].Len == at {
			in.Spans[last].Len++
		} else {
			img := images[image]
			s := Span{Start: at, Len: 1, Image: image, Offset: offset, File: img.File, Digest: img.Digest}
			if l.Map != nil {
				s.Rows, s.Cols = l.Map(images[image].Grid)
			}
			in.Spans = append(in.Spans, s)
		}
		if offset++; offset == l.Patches(images[image].Grid) {
			image, offset = image+1, 0
		}
	}
	if have != want {
		return Input{}, &ErrCount{"image positions, patch embeddings", have, want}
	}
	for _, s := range in.Spans {
		if l.Map != nil && s.Rows*s.Cols != s.Len {
			return Input{}, &ErrCount{fmt.Sprintf("positions side by side for image %d, patches in its map", s.Image), s.Len, s.Rows * s.Cols}
		}
	}
	return in, nil
}

// Patches is the number of patch embeddings of an image cut as g.
func (l Layout) Patches(g vision.Grid) int {
	if l.ImageTokens != nil {
		return l.ImageTokens(g)
	}
	return g.Tiles() * l.PatchTokens
}

// Attach gives image image what stands for its patches, [patches, width] row-major. The slice is shared, not copied.
func (in *Input) Attach(image int, patches []float32, width int) error {
	want := 0
	for _, s := range in.Spans {
		if s.Image == image {
			want += s.Len
		}
	}
	if len(patches) != want*width {
		return &ErrCount{fmt.Sprintf("positions for image %d, patch values per position %d, values", image, width), want, len(patches)}
	}
	for i, s := range in.Spans {
		if s.Image == image {
			in.Spans[i].Patches = patches[s.Offset*width : (s.Offset+s.Len)*width]
		}
	}
	return nil
}

// ImageTokens is the number of positions that hold patch embeddings.
func (in Input) ImageTokens() int {
	n := 0
	for _, s := range in.Spans {
		n += s.Len
	}
	return n
}
