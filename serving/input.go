package serving

import (
	"context"
	"errors"
	"time"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/crew"
	"github.com/mmserve/mmserve/vision"
)

// prepare decodes the images one after the other, each when the budget of all decodes has room. From here on the
// request's tenant pays for it.
func (l *life) prepare(ctx context.Context, parts []imagePart) ([]*vision.Image, error) {
	if err := l.withinBudget(ctx, parts); err != nil {
		return nil, err
	}
	l.used.work()
	images := make([]*vision.Image, len(parts))
	for i := range parts {
		p, began := &parts[i], time.Now()
		img, err := l.prompter(p).PrepareImage(ctx, p.data, p.detail, len(parts))
		if img != nil && !img.Started.IsZero() {
			began = img.Started
		}
		l.rec.images = append(l.rec.images, preparation{began, time.Now(), len(p.data), img})
		if err != nil || ctx.Err() != nil {
			return nil, imageError(ctx, p.field, err)
		}
		images[i] = img
	}
	return images, nil
}

// lay makes the input and the constraint of its answers, settles how long they may be, and has the tenant pay for them.
// An answer that is one message of at most maxBytes has to fit it; 0 sets no bound.
func (l *life) lay(ctx context.Context, req *checked, images []*vision.Image,
	maxBytes int) (fusion.Input, *constrain.Grammar, error) {
	in, err := l.tokenize(ctx, req, images)
	if err != nil {
		return in, nil, err
	}
	if err := idsFit(req, in); err != nil {
		return in, nil, err
	}
	grammar, err := l.constrain(ctx, req.constraint, l.leadingSpace(in))
	if err != nil {
		return in, nil, err
	}
	if req.maxTokens, err = l.fit(req, in); err != nil {
		return in, nil, err
	}
	if size := l.answerBytes(req, in); maxBytes > 0 && size > float64(maxBytes) {
		return in, nil, TooLarge(int(size), maxBytes)
	}
	l.rec.prompt(in)
	return in, grammar, l.charge(req, len(in.IDs), len(images))
}

// tokenize makes the input that the prompter gives for the request's prompt and its images.
func (l *life) tokenize(ctx context.Context, req *checked, images []*vision.Image) (in fusion.Input, err error) {
	rendered, err := l.model.Prompter.Render(ctx, req.prompt)
	if err == nil {
		in, err = l.model.Prompter.Input(rendered, images)
	}
	req.thinks = rendered.Thinks
	field := "prompt.parts"
	if req.prompt.Messages != nil {
		field = "chat.messages"
	}
	return in, promptError(field, err)
}

// promptError is what the prompter says of a field.
func promptError(field string, err error) error {
	if errors.As(err, new(*fusion.PromptError)) {
		return InvalidField(field, "%v", err)
	}
	return err
}

// ErrContextLength is the cause of errors of requests that do not fit the model's context: one with a longer context,
// or a shorter request, would do.
var ErrContextLength = errors.New("the request does not fit the context")

// ErrNoTools is the cause of the error of a request with tools that the model's chat template does not show.
var ErrNoTools = errors.New("the chat template shows no tools")

// invalidFor is an Invalid error of a single field with a cause.
func invalidFor(cause error, field, format string, args ...any) error {
	err := InvalidField(field, format, args...)
	var e *Error
	if errors.As(err, &e) {
		e.cause = cause
	}
	return err
}

// tooLong is an Invalid error of a single field, whose cause is ErrContextLength.
func tooLong(field, format string, args ...any) error {
	return invalidFor(ErrContextLength, field, format, args...)
}

// fit gives the most tokens to generate, or says why the request does not fit the context.
func (l *life) fit(req *checked, in fusion.Input) (maxTokens int, err error) {
	prompt, room := len(in.IDs), l.model.MaxLen-len(in.IDs)
	if room < 1 {
		return 0, tooLong("input", "%d tokens, %d of them of images; want at most %d, to leave one for the answer in a context of %d",
			prompt, in.ImageTokens(), l.model.MaxLen-1, l.model.MaxLen)
	}
	if req.maxTokens == 0 {
		return min(max(defaultMaxTokens, req.sampling.MinTokens), room), nil
	}
	if req.maxTokens > room {
		return 0, tooLong("max_tokens", "%d; want at most %d: the prompt has %d tokens, %d of them of images, in a context of %d",
			req.maxTokens, room, prompt, in.ImageTokens(), l.model.MaxLen)
	}
	return req.maxTokens, nil
}

// idsFit refuses to tell more ids of a prompt than one message takes.
func idsFit(req *checked, in fusion.Input) error {
	if n := len(in.IDs); req.tokenIDs && n > MaxPromptIDs {
		return InvalidField("return_token_ids", "true; want false with a prompt of %d tokens: at most %d are told", n, MaxPromptIDs)
	}
	return nil
}

// tokenOverhead is what a log-probability takes beside the token's own bytes.
const tokenOverhead = 18

// answerBytes is about what all answers take as one message. What cannot be known yet, the tokens of the answer and the
// likeliest ones, is taken at twice the vocabulary's mean length.
func (l *life) answerBytes(req *checked, in fusion.Input) float64 {
	mean := l.deployment.meanToken()
	place := (2*mean + tokenOverhead) * float64(1+req.sampling.TopLogprobs)
	size := float64((req.n+1)*req.maxTokens) * mean
	if req.sampling.Logprobs {
		size += float64(req.n*req.maxTokens) * place
	}
	if req.promptLogprobs {
		size += float64(len(in.IDs)) * place
	}
	if req.tokenIDs {
		size += maxIDBytes * float64(len(in.IDs)+(req.n+1)*req.maxTokens)
	}
	return size
}

// TooLarge is the error of an answer of about size bytes where one message takes most.
func TooLarge(size, most int) error {
	return InvalidField("input", "the answer would take about %d bytes with the log-probabilities and answers that are asked for; want at most %d in one message: "+
		"have it streamed, or ask for less (max_tokens, n, top_logprobs, prompt_logprobs)", size, most)
}

// keepFor has the patch embeddings of an image be found again for the same tenant only.
func (l *life) keepFor(img *vision.Image, tenant string) {
	if !l.options.SharePrefixes {
		img.Tenant = tenant
	}
}

// encode attaches the patch embeddings of all images, which the encoder is asked for together, and counts the
// positions whose embeddings had been made before.
func (l *life) encode(ctx context.Context, in *fusion.Input, images []*vision.Image,
	tenant string) (cachedTokens int, err error) {
	l.ran = in.ImageTokens()
	patches, cached := make([][]float32, len(images)), make([]bool, len(images))
	g, gctx := crew.New(ctx)
	for i, img := range images {
		l.keepFor(img, tenant)
		l.use(img)
		g.Go(func() (err error) {
			patches[i], cached[i], err = l.model.Encode(gctx, img)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	for i := range images {
		if err := in.Attach(i, patches[i], l.model.PatchWidth()); err != nil {
			return 0, err
		}
		if cached[i] {
			cachedTokens += len(patches[i]) / l.model.PatchWidth()
		}
	}
	return cachedTokens, nil
}
