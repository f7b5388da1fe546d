package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

// openPaced is openApp without ONNX Runtime: the model's tokenizer, template and preprocessor over a decoder that only
// takes its time.
func openPaced(f modelFlags, steps func(batching.Step), log *slog.Logger) (*app, error) {
	token, step, err := parsePace(f.Pace)
	if err != nil {
		return nil, err
	}
	a := &app{}
	if a.model, err = model.Open(f.Model); err != nil {
		return nil, err
	}
	if a.text, err = a.model.OpenProcessor(); err != nil {
		return nil, errors.Join(err, a.close())
	}
	slots := f.Slots
	f.Drafts = 0 // a step takes the same time whatever is guessed
	maxLen, err := contextLen(a.model, f.MaxLen)
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	words := a.text.Tokenizer.Encode(" the a of and to in is on with one two red blue", false)
	layout := a.model.Layout
	runner := paced{decodertest.NewPaced(decodertest.NewHash(slots, maxLen, a.model.Decoder.Vocab), token, step), words}
	err = a.start(runner, func(_ context.Context, img *vision.Image) ([]float32, bool, error) {
		return make([]float32, layout.Patches(img.Grid)*a.model.Decoder.Hidden), false, nil
	}, f, 0, steps)
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	log.Warn("no model runs: answers are drawn by lot", "token", token, "step", step, "slots", slots, "context", maxLen)
	return a, nil
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
