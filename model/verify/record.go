package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mmserve/mmserve/internal/folder"
)

// SampleImage is an encoded image to record a case with. One whose Name is a path in the model's folder is referred to
// by it, others become part of the case.
type SampleImage struct {
	Name string
	Data []byte
}

// WriteReferences records cases in the folder's mmserve-gold.jsonl: of the images one by one with a question, of the
// first in all its tiles, of the first two together and of a text alone, as far as the model takes such prompts. Cases
// of another precision stay in the file. It returns the number of cases recorded.
func (v *Verifier) WriteReferences(dir string, samples []SampleImage, question string) (int, error) {
	if err := v.openProcessor(); err != nil {
		return 0, err
	}
	files := folder.Dir(dir)
	kept, err := readCases(files, referencesFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	var b bytes.Buffer
	w := json.NewEncoder(&b)
	w.SetEscapeHTML(false)
	for _, g := range kept {
		if g.Precision == v.Precision {
			continue
		}
		if err := w.Encode(g); err != nil {
			return 0, err
		}
	}
	n := 0
	for _, g := range v.samplePrompts(dir, samples, question) {
		keep, err := v.record(files, &g)
		if err != nil {
			return 0, fmt.Errorf("case %q: %w", g.ID, err)
		}
		if !keep {
			continue
		}
		n++
		if err := w.Encode(g); err != nil {
			return 0, err
		}
	}
	return n, os.WriteFile(filepath.Join(dir, referencesFile), b.Bytes(), 0o644)
}

// samplePrompts makes the cases without what comes of them.
func (v *Verifier) samplePrompts(dir string, samples []SampleImage, question string) []referenceCase {
	var list []referenceCase
	add := func(id, detail string, samples ...SampleImage) {
		g := referenceCase{ID: fmt.Sprintf("%s, %s", id, v.Precision), Detail: detail, Precision: v.Precision}
		var content []referencePart
		for _, p := range samples {
			g.Images = append(g.Images, reference(dir, p))
			content = append(content, referencePart{Type: "image"})
		}
		content = append(content, referencePart{Type: "text", Text: question})
		if v.Processor.Template != nil {
			g.Messages = []referenceMessage{{Role: "user", Content: content}}
		} else {
			g.Prompt = content
		}
		list = append(list, g)
	}
	for i, p := range samples {
		add(fmt.Sprintf("image %d", i+1), "low", p)
	}
	if len(samples) > 0 {
		add("image 1 in tiles", "", samples[0])
	}
	if f := v.Model.Layout.Frame; f == nil || !f.OneImage {
		if f == nil && len(samples) > 1 {
			add("two images", "low", samples[:2]...)
		}
		add("text", "")
	}
	return list
}

// reference is an image as a case names it.
func reference(dir string, p SampleImage) string {
	if rel, err := filepath.Rel(dir, p.Name); err == nil && p.Name != "" && filepath.IsLocal(rel) {
		return filepath.ToSlash(rel)
	}
	return "data:image;base64," + base64.StdEncoding.EncodeToString(p.Data)
}

// record computes what a case gives, up to the first token that another machine might pick otherwise. Many tiles would
// make every start slow: of them the prompt and the pixels are recorded. keep is false for an image that should be in
// tiles and is in one.
func (v *Verifier) record(files fs.FS, g *referenceCase) (keep bool, err error) {
	p, err := v.prepare(files, *g)
	if err != nil {
		return false, err
	}
	g.PromptText, g.PromptIDs, g.Generated = p.prompt.Text(), p.input.IDs, []int32{}
	if len(p.pixels) > 0 {
		g.PixelSHA, g.PixelMean, g.PixelStd = pixelSummary(p.pixels)
	}
	if len(p.images) > 0 && g.Detail == "" {
		return p.images[0].Grid.Tiles() > 1, nil
	}
	if err := v.attach(p); err != nil {
		return false, err
	}
	const most = 16
	steps, err := v.steps(p.input, min(most, v.Runner.Capacity().MaxLen-len(p.input.IDs)), v.Processor.EOS...)
	if err != nil {
		return false, err
	}
	for _, s := range steps {
		if s.margin < 4*v.tolerance {
			break
		}
		g.Generated, g.Logprobs = append(g.Generated, s.id), append(g.Logprobs, s.logprob)
	}
	return true, nil
}
