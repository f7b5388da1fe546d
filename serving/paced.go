package serving

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

// openPaced is open without ONNX Runtime: the model's tokenizer, template and preprocessor over a decoder that only
// takes its time.
func (d *Deployment) openPaced(context.Context) error {
	token, step, err := parsePace(d.config.Pace)
	if err != nil {
		return err
	}
	if d.model, err = model.Open(d.config.Dir); err != nil {
		return err
	}
	if d.config.Name != "" {
		d.model.Name = d.config.Name
	}
	if d.text, err = d.model.OpenProcessor(); err != nil {
		return err
	}
	slots := d.config.Slots
	d.config.Batching.Drafts = 0 // a step takes the same time whatever is guessed
	maxLen, err := contextLen(d.model, d.config.MaxLen)
	if err != nil {
		return err
	}
	words := d.text.Tokenizer.Encode(" the a of and to in is on with one two red blue", false)
	layout := d.model.Layout
	runner := paced{decodertest.NewPaced(decodertest.NewHash(slots, maxLen, d.model.Decoder.Vocab), token, step), words}
	err = d.start(runner, func(_ context.Context, img *vision.Image) ([]float32, bool, error) {
		return make([]float32, layout.Patches(img.Grid)*d.model.Decoder.PatchWidth()), false, nil
	})
	if err != nil {
		return err
	}
	d.config.Logger.Warn("no model runs: answers are drawn by lot", "token", token, "step", step, "slots", slots, "context", maxLen)
	return nil
}

// paced answers with ids of whole words, so that each token is text as soon as it is there.
type paced struct {
	*decodertest.Paced
	words []int32
}

func (p paced) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	tokens, err := p.Paced.Run(ctx, b)
	for i := range tokens {
		tokens[i].ID = p.words[int(tokens[i].ID)%len(p.words)]
	}
	return tokens, err
}

func parsePace(s string) (token, step time.Duration, err error) {
	first, second, _ := strings.Cut(s, ",")
	if token, err = time.ParseDuration(first); err == nil {
		step, err = time.ParseDuration(second)
	}
	if err != nil || token < 0 || step < 0 || max(token, step) > time.Minute {
		return 0, 0, fmt.Errorf("--pace %q: want a time for each prompt token and one for each step, as 1ms,20ms", s)
	}
	return token, step, nil
}
