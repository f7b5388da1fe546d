package serving

import (
	"context"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/vision"
)

// ImageBudget bounds what the images of one request may cost together. A zero field sets no bound.
type ImageBudget struct {
	// Tiles are inputs of the vision tower, Tokens positions of the prompt.
	Tiles, Tokens int
	// Downscale has the model see images at a smaller size where they cost more, instead of refusing the request.
	Downscale bool
}

// prompter makes what the model sees of a part, at the size that withinBudget has settled.
func (l *life) prompter(p *imagePart) *fusion.Prompter {
	if p.smaller == nil {
		return l.model.Prompter
	}
	own := *l.model.Prompter
	own.Preprocessor = p.smaller
	return &own
}

// withinBudget holds images to the request's budget, by their headers. Where they cost more, the one that costs most is
// seen at its next smaller size, and so on, or the request is refused.
func (l *life) withinBudget(ctx context.Context, parts []imagePart) error {
	b := l.options.ImageBudget
	if b.Tiles == 0 && b.Tokens == 0 || len(parts) == 0 {
		return nil
	}
	layouts, _, err := l.measure(ctx, parts)
	if err != nil {
		return err
	}
	settled := make([]bool, len(parts)) // there is no smaller size
	for {
		tiles, tokens, largest := 0, 0, -1
		for i, at := range layouts {
			tiles, tokens = tiles+at.Grid.Tiles(), tokens+at.Tokens
			if !settled[i] && (largest < 0 || at.Tokens > layouts[largest].Tokens) {
				largest = i
			}
		}
		over := imagesOver(b, tiles, tokens)
		if over == nil {
			return nil
		}
		if !b.Downscale || largest < 0 {
			return over
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		settled[largest] = !l.shrink(&parts[largest], &layouts[largest], len(parts))
	}
}

func imagesOver(b ImageBudget, tiles, tokens int) error {
	switch {
	case b.Tiles > 0 && tiles > b.Tiles:
		return InvalidField("input", "images of %d tiles; this server takes at most %d in a request: send fewer or smaller "+
			"ones, or some with low detail", tiles, b.Tiles)
	case b.Tokens > 0 && tokens > b.Tokens:
		return InvalidField("input", "images of %d tokens; this server takes at most %d in a request: send fewer or smaller "+
			"ones, or some with low detail", tokens, b.Tokens)
	}
	return nil
}

// shrink has the model see one of so many images at the next size at which it costs less, false where there is none:
// the image stays as it is then.
func (l *life) shrink(p *imagePart, at *ImageLayout, of int) bool {
	before := *p
	for {
		s, ok := l.prompter(p).Preprocessor.(vision.Shrinker)
		var next vision.Preprocessor
		if ok {
			next, ok = s.Smaller()
		}
		switch {
		case ok:
			p.smaller = next
		case p.detail.Split():
			p.detail = vision.DetailLow
		default:
			*p = before
			return false
		}
		m, err := l.prompter(p).MeasureSize(at.Width, at.Height, p.detail, of)
		if err != nil {
			*p = before
			return false
		}
		if tokens := l.model.Prompter.Layout.Patches(m.Grid); tokens < at.Tokens {
			at.Measured, at.Tokens = m, tokens
			return true
		}
	}
}
