package verify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

// goldName is the file of a model folder with the cases that it is checked by when it is loaded.
const goldName = "mmserve-gold.jsonl"

// goldCase is a line of gold.jsonl: a prompt, and what another implementation or another machine made of it.
type goldCase struct {
	ID string `json:"id"`
	// Images are paths below the file's folder, or data: URLs.
	Images []string `json:"images,omitempty"`
	// Detail is that of the request: "low" or "".
	Detail   string        `json:"detail,omitempty"`
	Messages []goldMessage `json:"messages,omitempty"`
	// Prompt is given instead of Messages: the parts of a raw prompt.
	Prompt []goldPart `json:"prompt,omitempty"`

	PromptText string  `json:"prompt_text"`
	PromptIDs  []int32 `json:"prompt_ids"`
	PixelSHA   string  `json:"pixel_sha256_f32,omitempty"`
	PixelMean  float64 `json:"pixel_mean,omitempty"`
	PixelStd   float64 `json:"pixel_std,omitempty"`
	// Precision is what the numbers below were computed in; "" matches any.
	Precision graph.Precision `json:"precision,omitempty"`
	Top       [][2]float64    `json:"first_step_top5,omitempty"`
	Generated []int32         `json:"generated_ids"`
	// Logprobs are those of the generated ids.
	Logprobs []float64 `json:"logprobs,omitempty"`
}

type goldMessage struct {
	Role    string     `json:"role"`
	Content []goldPart `json:"content"`
}

type goldPart struct {
	Type string `json:"type"`
	Text string `json:"text,omitempty"`
}

func parts(list []goldPart) []chat.Part {
	out := make([]chat.Part, len(list))
	for i, p := range list {
		out[i] = chat.Part{Image: p.Type == "image", Text: p.Text}
	}
	return out
}

// readGold reads the cases of a file. One without an id is called by its line.
func readGold(files fs.FS, name string) ([]goldCase, error) {
	raw, err := folder.Read(files, name)
	if err != nil {
		return nil, err
	}
	var list []goldCase
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, len(raw)+1)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		g := goldCase{ID: fmt.Sprintf("line %d", n)}
		if err := json.Unmarshal(lines.Bytes(), &g); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, n, err)
		}
		list = append(list, g)
	}
	return list, lines.Err()
}

// image reads an image of a case.
func readImage(files fs.FS, name string) ([]byte, error) {
	if rest, ok := strings.CutPrefix(name, "data:"); ok {
		_, data, ok := strings.Cut(rest, ";base64,")
		if !ok {
			return nil, errors.New("images: a data: URL that is not base64")
		}
		return base64.StdEncoding.DecodeString(data)
	}
	return folder.Read(files, name)
}

// DriftTolerance is how far the log-probabilities of a model's own gold cases may be off on another machine.
func DriftTolerance(p graph.Precision) float64 {
	switch p {
	case graph.INT8:
		return 0.1
	case graph.INT4:
		return 0.2
	}
	return 2e-3
}

// SelfTest runs the cases that the model's folder carries in mmserve-gold.jsonl through sessions that are open and idle.
// Cases that need a longer context than the sessions have are left out. found is false where there is no such file, and for
// synthetic models.
func SelfTest(m *model.Model, text *model.Processor, tower vision.Tower, r decoder.Runner, p graph.Precision, report func(Case)) (found bool, err error) {
	if m.Synthetic() {
		return false, nil
	}
	cases, err := readGold(m.Files(), goldName)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	v := &Verifier{model: m, tower: tower, runner: r, precision: p, tolerance: DriftTolerance(p)}
	longest := 0
	for _, g := range cases {
		n := len(g.PromptIDs) + len(g.Generated)
		if n > r.Capacity().MaxLen {
			continue
		}
		longest = max(longest, n)
		c := Case{ID: g.ID}
		c.Checks, c.Err = v.conversation(text, m.Files(), g)
		report(c)
	}
	_, err = r.Run(context.Background(), &decoder.Batch{Releases: []decoder.Release{{From: 0, To: longest}}})
	return true, err
}

// Own runs the cases of the model's own mmserve-gold.jsonl, as SelfTest does.
func (v *Verifier) Own(report func(Case)) (found bool, err error) {
	text, err := v.model.OpenProcessor()
	if err != nil {
		return false, err
	}
	return SelfTest(v.model, text, v.tower, v.runner, v.precision, report)
}

// Image is an encoded image to record a case with. One whose Name is a path in the model's folder is referred to by
// it, others become part of the case.
type SampleImage struct {
	Name string
	Data []byte
}

// WriteGold records cases in the folder's mmserve-gold.jsonl: of the images one by one with a question, of the first in all
// its tiles, of the first two together and of a text alone, as far as the model takes such prompts. Cases of another precision stay in the file. It
// returns the number of cases recorded.
func (v *Verifier) WriteGold(dir string, samples []SampleImage, question string) (int, error) {
	text, err := v.model.OpenProcessor()
	if err != nil {
		return 0, err
	}
	files := folder.Dir(dir)
	kept, err := readGold(files, goldName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	var b bytes.Buffer
	w := json.NewEncoder(&b)
	w.SetEscapeHTML(false)
	for _, g := range kept {
		if g.Precision == v.precision {
			continue
		}
		if err := w.Encode(g); err != nil {
			return 0, err
		}
	}
	n := 0
	for _, g := range v.goldPrompts(text, dir, samples, question) {
		keep, err := v.record(text, files, &g)
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
	return n, os.WriteFile(filepath.Join(dir, goldName), b.Bytes(), 0o644)
}

// goldPrompts makes the cases without what comes of them.
func (v *Verifier) goldPrompts(text *model.Processor, dir string, samples []SampleImage, question string) []goldCase {
	var list []goldCase
	add := func(id, detail string, samples ...SampleImage) {
		g := goldCase{ID: fmt.Sprintf("%s, %s", id, v.precision), Detail: detail, Precision: v.precision}
		var content []goldPart
		for _, p := range samples {
			g.Images = append(g.Images, reference(dir, p))
			content = append(content, goldPart{Type: "image"})
		}
		content = append(content, goldPart{Type: "text", Text: question})
		if text.Template != nil {
			g.Messages = []goldMessage{{Role: "user", Content: content}}
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
	if f := v.model.Layout.Frame; f == nil || !f.OneImage {
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
func (v *Verifier) record(text *model.Processor, files fs.FS, g *goldCase) (keep bool, err error) {
	p, err := v.prepare(text, files, *g)
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
	if err := v.attach(text, p); err != nil {
		return false, err
	}
	const most = 16
	steps, err := v.steps(p.input, min(most, v.runner.Capacity().MaxLen-len(p.input.IDs)), text.EOS...)
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
