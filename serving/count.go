package serving

import (
	"context"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/vision"
)

// TokenCount is what a request costs.
type TokenCount struct {
	ID, Model, ModelDigest, Fingerprint string
	// Prompt are the positions of the prompt, Text and Image those of each kind.
	Prompt, Text, Image int
	// Context is the most tokens of prompt and answer together, MaxTokens the most that the answer may have: 0 where the
	// request does not fit.
	Context, MaxTokens int
	// Fits says whether prompt and answer fit the context.
	Fits bool
	// Images are in the order of the prompt.
	Images []ImageLayout
	// IDs are the prompt's tokens if the request asks for them.
	IDs []int32
}

// ImageLayout is what a model makes of an image file.
type ImageLayout struct {
	// Plan is what the file's header and the model's preprocessing say.
	vision.Plan
	// Tokens are the positions of its patch embeddings in a prompt.
	Tokens int
}

// Count says what Generate would report of a request's prompt, and what it would refuse of its fields. Of images it
// reads the headers alone. It takes no place in the engine; as many counts run at once as the process has cores. Its
// error is an *Error.
func (s *Service) Count(ctx context.Context, in *Request) (c *TokenCount, err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	ctx, l, release, err := s.beginAs(ctx, in, operationCount)
	if err != nil {
		return nil, err
	}
	defer release()
	defer context.AfterFunc(s.options.Shutdown, func() { end(ErrCut) })()
	defer func() { err = l.rec.close(ctx, recover(), err) }()
	return l.count(ctx, in)
}

func (l *life) count(ctx context.Context, in *Request) (*TokenCount, error) {
	if err := l.enter(ctx, in.Peer); err != nil {
		return nil, err
	}
	defer l.leave()
	req, err := l.validate(in)
	if err != nil {
		return nil, err
	}
	closeMedia, err := l.files(ctx, req)
	if err != nil {
		return nil, err
	}
	defer closeMedia()
	select {
	case l.counting <- struct{}{}:
		defer func() { <-l.counting }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := l.withinBudget(ctx, req.images); err != nil {
		return nil, err
	}
	layouts, images, err := l.measure(ctx, req.images)
	if err != nil {
		return nil, err
	}
	l.rec.lap(&l.rec.preprocess)
	input, err := l.tokenize(ctx, req, images)
	if err != nil {
		return nil, err
	}
	if err := idsFit(req, input); err != nil {
		return nil, err
	}
	l.rec.lap(&l.rec.tokenize)
	l.rec.prompt(input)
	c := &TokenCount{
		ID: l.rec.id, Model: l.model.Name, ModelDigest: l.model.Digest, Fingerprint: l.model.Fingerprint,
		Prompt: len(input.IDs), Image: input.ImageTokens(), Context: l.model.MaxLen, Images: layouts,
	}
	c.Text = c.Prompt - c.Image
	if n, err := l.fit(req, input); err == nil {
		c.MaxTokens, c.Fits = n, true
	}
	if req.tokenIDs {
		c.IDs = input.IDs
	}
	return c, nil
}

// measure reads the headers of images. What it gives in place of prepared images has no pixels.
func (l *life) measure(ctx context.Context, parts []imagePart) ([]ImageLayout, []*vision.Image, error) {
	layouts, images := make([]ImageLayout, len(parts)), make([]*vision.Image, len(parts))
	for i := range parts {
		p := &parts[i]
		plan, err := l.prompter(p).MeasureImage(ctx, p.data, p.detail, len(parts))
		if err != nil {
			return nil, nil, imageError(ctx, p.field, err)
		}
		layouts[i] = l.layout(plan)
		images[i] = &vision.Image{Width: plan.Width, Height: plan.Height, Grid: plan.Grid}
	}
	return layouts, images, nil
}

func (l *life) layout(plan vision.Plan) ImageLayout {
	return ImageLayout{Plan: plan, Tokens: l.model.Prompter.Layout.Patches(plan.Grid)}
}

// imageError is what was said of the image in a field.
func imageError(ctx context.Context, field string, err error) error {
	switch {
	case errors.Is(err, vision.ErrImage):
		return InvalidField(field, "%v", err)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s: %w", field, err)
}
