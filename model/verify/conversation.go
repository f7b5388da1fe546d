package verify

import (
	"context"
	"fmt"
	"io/fs"
	"math"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/vision"
)

// conversation compares what comes of a case: prompt, pixels, first logits, the answer's ids and their probabilities.
func (v *Verifier) conversation(files fs.FS, want referenceCase) ([]Check, error) {
	p, err := v.prepare(files, want)
	if err != nil {
		return nil, err
	}
	checks := []Check{sameText(p.prompt.Text(), want.PromptText), sameIDs("prompt_ids", p.input.IDs, want.PromptIDs)}
	if len(p.pixels) > 0 {
		checks = append(checks, samePixels(p.pixels, want))
	}
	if want.Precision != "" && want.Precision != v.Precision || len(want.Top)+len(want.Generated) == 0 {
		return checks, nil // its numbers are another precision's, or it has none
	}
	if err := v.attach(p); err != nil {
		return checks, err
	}
	if len(want.Top) > 0 {
		k, err := v.firstLogits(p, want.Top)
		if err != nil {
			return checks, err
		}
		checks = append(checks, k)
	}
	answer, err := v.answer(p, want)
	return append(checks, answer...), err
}

// firstLogits compares the logits of the first step with those of a few ids, [id, logit].
func (v *Verifier) firstLogits(p prepared, top [][2]float64) (Check, error) {
	logits, err := v.Runner.Logits(p.input)
	if err != nil {
		return Check{}, err
	}
	last := logits[len(logits)-v.Model.Decoder.Vocab:]
	got, want := make([]float32, len(top)), make([]float64, len(top))
	for i, t := range top {
		if !(t[0] >= 0 && t[0] < float64(len(last))) {
			return Check{}, fmt.Errorf("first_step_top5: id %v; the model has %d", t[0], len(last))
		}
		got[i], want[i] = last[int(t[0])], t[1]
	}
	return v.near("logits", got, want), nil
}

// answer compares a greedy answer with a case's.
func (v *Verifier) answer(p prepared, want referenceCase) ([]Check, error) {
	got, err := v.steps(p.input, len(want.Generated), v.Processor.EOS...)
	if err != nil {
		return nil, err
	}
	ids := make([]int32, len(got))
	worst := 0.0
	for i, s := range got {
		ids[i] = s.id
		if i < len(want.Logprobs) && s.id == want.Generated[i] {
			worst = max(worst, math.Abs(s.logprob-want.Logprobs[i]))
		}
	}
	checks := []Check{sameIDs("generated_ids", ids, want.Generated)}
	if len(want.Logprobs) > 0 {
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
func (v *Verifier) prepare(files fs.FS, want referenceCase) (p prepared, err error) {
	prompt := fusion.Prompt{Raw: parts(want.Prompt)}
	if len(want.Prompt) == 0 {
		prompt.Messages = make([]chat.Message, len(want.Messages))
		for i, m := range want.Messages {
			prompt.Messages[i] = chat.Message{Role: m.Role, Parts: parts(m.Content)}
		}
	}
	detail := vision.DetailAuto
	if want.Detail == "low" {
		detail = vision.DetailLow
	}
	ctx := context.Background()
	if p.prompt, err = v.Processor.Render(ctx, prompt); err != nil {
		return p, err
	}
	for _, name := range want.Images {
		data, err := readImage(files, name)
		if err != nil {
			return p, err
		}
		img, err := v.Processor.PrepareImage(ctx, data, detail, len(want.Images))
		if err != nil {
			return p, fmt.Errorf("%.100s: %w", name, err)
		}
		p.images = append(p.images, img)
	}
	if p.input, err = v.Processor.Input(p.prompt, p.images); err != nil {
		return p, err
	}
	for _, img := range p.images {
		values, err := v.normalized(img, v.Processor.Preprocessor.Normalize)
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
	for i := range v.Tower.Parts(img) {
		if err := v.Tower.Load(0, img, i, keep); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// attach runs the images through the tower.
func (v *Verifier) attach(p prepared) error {
	for i, img := range p.images {
		patches, err := vision.Encode(v.Tower, img, v.Processor.Preprocessor.Normalize)
		if err != nil {
			return err
		}
		if err := p.input.Attach(i, patches, v.Model.Decoder.PatchWidth()); err != nil {
			return err
		}
	}
	return nil
}
