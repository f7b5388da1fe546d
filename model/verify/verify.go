package verify

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

// Check is one comparison of a case with its gold value.
type Check struct {
	// Name is what was compared: "image_features", "logits", "prompt_ids", "pixel_values", "generated_ids", ….
	Name string
	// Value is the largest absolute difference of numbers, or the share of ids that agree; Exact says which.
	Value float64
	// Exact is set for ids and texts, where only full agreement passes.
	Exact bool
	OK    bool
}

// Case is one gold case and what came of it.
type Case struct {
	ID     string
	Checks []Check
	// Err is set when the case could not be run.
	Err error
}

// OK tells whether every check of the case passed.
func (c Case) OK() bool {
	return c.Err == nil && !slices.ContainsFunc(c.Checks, func(k Check) bool { return !k.OK })
}

// Verifier runs gold cases through an opened model, outside any engine.
type Verifier struct {
	model     *model.Model
	tower     vision.Tower
	runner    decoder.Runner
	precision graph.Precision
	tolerance float64
}

// New opens the model's sessions with one KV slot. tolerance bounds the absolute difference of image
// features and logits; where weights are quantised the model's LoadQuantized comes first.
func New(m *model.Model, tolerance float64, p graph.Precision, o ort.Options) (*Verifier, error) {
	v := &Verifier{model: m, precision: p, tolerance: tolerance}
	var err error
	if v.tower, err = m.OpenTower(p.Vision(), o); err != nil {
		return nil, err
	}
	if v.runner, err = m.OpenDecoder(decoder.OpenOptions{Slots: 1, Precision: p, Session: o}); err != nil {
		return nil, errors.Join(err, v.tower.Close())
	}
	return v, nil
}

// Close frees the sessions.
func (v *Verifier) Close() error { return errors.Join(v.tower.Close(), v.runner.Close()) }

// File runs the cases of a gold file: gold.safetensors (one case: pixel_values, input_ids, image_features, logits,
// generated) or gold.jsonl (a case a line: images, messages, prompt_text, prompt_ids, pixel_sha256_f32, …). Each
// result is given to report as it comes.
func (v *Verifier) File(path string, report func(Case)) error {
	if strings.HasSuffix(path, ".safetensors") {
		gold, err := safetensors.OpenFile(path)
		if err != nil {
			return err
		}
		defer gold.Close()
		c := Case{ID: filepath.Base(path)}
		c.Checks, c.Err = v.tensors(gold)
		report(c)
		return nil
	}
	text, err := v.model.OpenProcessor()
	if err != nil {
		return err
	}
	return v.lines(text, folder.Dir(filepath.Dir(path)), filepath.Base(path), report)
}

// lines runs the cases of a gold.jsonl, whose images are in files.
func (v *Verifier) lines(text *model.Processor, files fs.FS, name string, report func(Case)) error {
	cases, err := readGold(files, name)
	if err != nil {
		return err
	}
	for _, g := range cases {
		c := Case{ID: g.ID}
		c.Checks, c.Err = v.conversation(text, files, g)
		report(c)
	}
	return nil
}

// tensors compares stage by stage, each fed with gold input: features from gold pixels, logits and ids from the
// features computed here.
func (v *Verifier) tensors(gold *safetensors.Checkpoint) ([]Check, error) {
	get := func(name string) (safetensors.Tensor, error) {
		t, ok := gold.Tensor(name)
		if !ok {
			return t, fmt.Errorf("the gold file has no tensor %q", name)
		}
		return t, nil
	}
	pixels, err := get("pixel_values")
	if err != nil {
		return nil, err
	}
	values, err := pixels.Floats()
	if err != nil {
		return nil, err
	}
	if v.model.NativeResolution != nil {
		return nil, errors.New("images of any size: supported are gold files of conversations, gold.jsonl")
	}
	tile := 3 * v.model.Tower.ImageSize * v.model.Tower.ImageSize
	if len(values) == 0 || len(values)%tile != 0 {
		return nil, fmt.Errorf("pixel_values has shape %v, want tiles of %d values", pixels.Shape, tile)
	}
	img := &vision.Image{Grid: vision.Grid{Rows: len(values)/tile - 1, Cols: 1}, Pixels: make([]uint8, len(values))}
	if t, ok := gold.Tensor("image_sizes"); ok {
		size, err := t.Ints()
		if err != nil || len(size) != 2 {
			return nil, fmt.Errorf("image_sizes has shape %v, want the height and width of one image", t.Shape)
		}
		img.Grid = v.model.Connector.Grid(v.model.Tower, int(size[1]), int(size[0]))
	}
	if img.Grid.Tiles()*tile != len(values) {
		return nil, fmt.Errorf("pixel_values has shape %v, want %d tiles of %d values", pixels.Shape, img.Grid.Tiles(), tile)
	}
	patches, err := vision.Encode(v.tower, img, func(dst []float32, _ []uint8) { values = values[copy(dst, values):] })
	if err != nil {
		return nil, err
	}
	features := "image_features"
	if v.model.Decoder.EncoderStates > 0 {
		features = "encoder_last_hidden_state"
	}
	checks, err := v.compare(nil, features, patches, get)
	if err != nil {
		return nil, err
	}
	t, err := get("input_ids")
	if err != nil {
		return nil, err
	}
	wide, err := t.Ints()
	if err != nil {
		return nil, err
	}
	// An encoder-decoder's reference counts the text only.
	ids := slices.Repeat([]int32{v.model.Layout.ImageTokenID}, v.model.Decoder.EncoderStates)
	text := narrow(wide)
	in, err := v.model.Layout.Locate(append(ids, text...), []*vision.Image{img})
	if err != nil {
		return nil, err
	}
	if err := in.Attach(0, patches, v.model.Decoder.Hidden); err != nil {
		return nil, err
	}
	logits, err := v.runner.Logits(in)
	if err != nil {
		return nil, err
	}
	logits = logits[len(ids)*v.model.Decoder.Vocab:]
	if checks, err = v.compare(checks, "logits", logits, get); err != nil {
		return nil, err
	}
	if t, err = get("generated"); err != nil {
		return nil, err
	}
	if wide, err = t.Ints(); err != nil {
		return nil, err
	}
	want := narrow(wide)
	if len(ids) > 0 {
		in.IDs, want = append(ids, want[0]), want[1:]
	}
	got, err := v.greedy(in, len(want))
	return append(checks, sameIDs("generated_ids", got, want)), err
}

func (v *Verifier) compare(checks []Check, name string, got []float32, get func(string) (safetensors.Tensor, error)) ([]Check, error) {
	t, err := get(name)
	if err != nil {
		return nil, err
	}
	want, err := t.Floats()
	if err != nil {
		return nil, err
	}
	if len(got) != len(want) {
		return nil, fmt.Errorf("%s: the model gives %d values, the gold file has shape %v", name, len(got), t.Shape)
	}
	worst := 0.0
	for i := range got {
		if d := math.Abs(float64(got[i]) - float64(want[i])); d > worst || math.IsNaN(d) {
			worst = d
		}
	}
	return append(checks, Check{Name: name, Value: worst, OK: worst <= v.tolerance}), nil
}

// greedy continues a prompt by n tokens, or up to an id of stop.
func (v *Verifier) greedy(in fusion.Input, n int, stop ...int32) ([]int32, error) {
	steps, err := v.steps(in, n, stop...)
	got := make([]int32, len(steps))
	for i, s := range steps {
		got[i] = s.id
	}
	return got, err
}

// step is a token of a greedy answer, the log of its probability, and how far that of the next likely is below it.
type step struct {
	id              int32
	logprob, margin float64
}

func (v *Verifier) steps(in fusion.Input, n int, stop ...int32) ([]step, error) {
	row := decoder.Row{IDs: in.IDs, Spans: in.Spans, Sampler: decoder.NewSampler(decoder.Sampling{Logprobs: true, TopLogprobs: 2})}
	var got []step
	for len(got) < n {
		out, err := v.runner.Run(context.Background(), &decoder.Batch{Rows: []decoder.Row{row}})
		if err != nil {
			return got, err
		}
		s := step{id: out[0].ID, logprob: float64(out[0].Logprobs.Picked), margin: math.Inf(1)}
		if top := out[0].Logprobs.Top; len(top) > 1 {
			s.margin = float64(top[0].Logprob - top[1].Logprob)
		}
		got = append(got, s)
		if slices.Contains(stop, s.id) {
			break
		}
		row.Past += len(row.IDs)
		row.IDs = []int32{s.id}
	}
	return got, nil
}

func narrow(wide []int64) []int32 {
	list := make([]int32, len(wide))
	for i, id := range wide {
		list[i] = int32(id)
	}
	return list
}

// sameIDs compares id by id; the value is the share of the longer list that agrees.
func sameIDs(name string, got, want []int32) Check {
	same := 0
	for i := range min(len(got), len(want)) {
		if got[i] == want[i] {
			same++
		}
	}
	n := max(len(got), len(want), 1)
	return Check{Name: name, Value: float64(same) / float64(n), Exact: true, OK: slices.Equal(got, want)}
}

// conversation takes a case the whole way that a request takes.
func (v *Verifier) conversation(text *model.Processor, files fs.FS, g goldCase) ([]Check, error) {
	p, err := v.prepare(text, files, g)
	if err != nil {
		return nil, err
	}
	checks := []Check{sameText(p.prompt.Text(), g.PromptText), sameIDs("prompt_ids", p.input.IDs, g.PromptIDs)}
	if len(p.pixels) > 0 {
		checks = append(checks, samePixels(p.pixels, g))
	}
	if g.Precision != "" && g.Precision != v.precision || len(g.Top)+len(g.Generated) == 0 {
		return checks, nil // its numbers are another precision's, or it has none
	}
	if err := v.attach(text, p); err != nil {
		return checks, err
	}
	if len(g.Top) > 0 {
		logits, err := v.runner.Logits(p.input)
		if err != nil {
			return nil, err
		}
		last := logits[len(logits)-v.model.Decoder.Vocab:]
		worst := 0.0
		for _, t := range g.Top {
			if t[0] < 0 || int(t[0]) >= len(last) {
				return nil, fmt.Errorf("first_step_top5: id %v; the model has %d", t[0], len(last))
			}
			worst = max(worst, math.Abs(float64(last[int(t[0])])-t[1]))
		}
		checks = append(checks, Check{Name: "logits", Value: worst, OK: worst <= v.tolerance})
	}
	got, err := v.steps(p.input, len(g.Generated), text.EOS...)
	if err != nil {
		return checks, err
	}
	ids := make([]int32, len(got))
	worst := 0.0
	for i, s := range got {
		ids[i] = s.id
		if i < len(g.Logprobs) && s.id == g.Generated[i] {
			worst = max(worst, math.Abs(s.logprob-g.Logprobs[i]))
		}
	}
	checks = append(checks, sameIDs("generated_ids", ids, g.Generated))
	if len(g.Logprobs) > 0 {
		checks = append(checks, Check{Name: "logprobs", Value: worst, OK: worst <= v.tolerance})
	}
	return checks, nil
}

// prepared is a case on its way into the decoder.
type prepared struct {
	prompt fusion.Rendered
	input  fusion.Input
	images []*vision.Image
	pixels []float32 // normalised, of all images
}

// prepare makes a case's input as serving makes that of a request.
func (v *Verifier) prepare(text *model.Processor, files fs.FS, g goldCase) (p prepared, err error) {
	prompt := fusion.Prompt{Raw: parts(g.Prompt)}
	if len(g.Prompt) == 0 {
		prompt.Messages = make([]chat.Message, len(g.Messages))
		for i, m := range g.Messages {
			prompt.Messages[i] = chat.Message{Role: m.Role, Parts: parts(m.Content)}
		}
	}
	detail := vision.DetailAuto
	if g.Detail == "low" {
		detail = vision.DetailLow
	}
	ctx := context.Background()
	if p.prompt, err = text.Render(ctx, prompt); err != nil {
		return p, err
	}
	for _, name := range g.Images {
		data, err := readImage(files, name)
		if err != nil {
			return p, err
		}
		img, err := text.PrepareImage(ctx, data, detail, len(g.Images))
		if err != nil {
			return p, fmt.Errorf("%.100s: %w", name, err)
		}
		p.images = append(p.images, img)
	}
	if p.input, err = text.Input(p.prompt, p.images); err != nil {
		return p, err
	}
	for _, img := range p.images {
		values, err := v.normalized(img, text.Preprocessor.Normalize)
		if err != nil {
			return p, err
		}
		p.pixels = append(p.pixels, values...)
	}
	return p, nil
}

// normalized gives an image's pixel values as its tower takes them, part by part.
func (v *Verifier) normalized(img *vision.Image, normalize vision.Normalizer) (values []float32, err error) {
	keep := func(dst []float32, src []uint8) {
		normalize(dst, src)
		values = append(values, dst...)
	}
	for i := range v.tower.Parts(img) {
		if err := v.tower.Load(0, img, i, keep); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// attach runs the images through the tower.
func (v *Verifier) attach(text *model.Processor, p prepared) error {
	for i, img := range p.images {
		patches, err := vision.Encode(v.tower, img, text.Preprocessor.Normalize)
		if err != nil {
			return err
		}
		if err := p.input.Attach(i, patches, v.model.Decoder.Hidden); err != nil {
			return err
		}
	}
	return nil
}

// pixelTolerance is the difference of an image's mean or deviation, in normalised units, that passes where the
// values are not bit-identical: a tenth of one eight-bit level.
const pixelTolerance = 0.1 * 2 / 255

// samePixels compares by digest, and where that differs by mean and standard deviation.
func samePixels(values []float32, g goldCase) Check {
	sum, mean, std := pixelSummary(values)
	if sum == g.PixelSHA {
		return Check{Name: "pixel_values", OK: true}
	}
	d := max(math.Abs(mean-g.PixelMean), math.Abs(std-g.PixelStd))
	return Check{Name: "pixel_values", Value: d, OK: d <= pixelTolerance}
}

// pixelSummary is the SHA-256 of the values as little-endian float32, their mean and standard deviation.
func pixelSummary(values []float32) (sha string, mean, std float64) {
	h := sha256.New()
	var sum, square float64
	var word [4]byte
	for _, x := range values {
		binary.LittleEndian.PutUint32(word[:], math.Float32bits(x))
		h.Write(word[:])
		sum += float64(x)
		square += float64(x) * float64(x)
	}
	n := float64(len(values))
	mean = sum / n
	return hex.EncodeToString(h.Sum(nil)), mean, math.Sqrt(square/n - mean*mean)
}

func sameText(got, want string) Check {
	if got != want {
		return Check{Name: "prompt_text", Exact: true}
	}
	return Check{Name: "prompt_text", Value: 1, Exact: true, OK: true}
}
