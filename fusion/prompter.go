package fusion

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/vision"
)

// Prompter makes inputs of messages and images, as one model wants them. It is the only way from a request to an Input,
// for serving and for checks alike. Its methods may be called concurrently, once its fields are set.
type Prompter struct {
	Tokenizer *tokenizer.Tokenizer
	// Template is nil for a model without a chat template: it completes raw prompts only.
	Template *chat.Template
	// Guarded are the texts that a user's words must never form: special tokens and the image placeholder.
	Guarded []string
	// AddSpecial tells whether encoding adds the tokens of the tokenizer's post-processor. A prompt that its template
	// starts with BOS, where that is not empty, has got them. (transformers, ProcessorMixin.apply_chat_template)
	AddSpecial bool
	BOS        string
	Layout     Layout
	// Preprocessor is nil for a model that takes no images.
	Preprocessor vision.Preprocessor
	// Limits bound the work on one image; their budget is all images'.
	Limits vision.Limits
}

// Prompt is what a request says: messages for the chat template, or the parts of a raw prompt.
type Prompt struct {
	// Messages are nil for a raw prompt.
	Messages []chat.Message
	// Continue has the answer go on with the last message instead of beginning one of its own.
	Continue bool
	Raw      []chat.Part
}

// PromptError is what is wrong with a prompt that its author can mend. Its text is safe to show to that caller.
type PromptError struct{ Err error }

func (e *PromptError) Error() string { return e.Err.Error() }

// Unwrap gives the reason.
func (e *PromptError) Unwrap() error { return e.Err }

// PrepareImage decodes the bytes of an image file and cuts the image into tiles, on the caller's goroutine, once the
// budget has room. of is the number of images in the prompt. Errors wrap vision.ErrImage, or are the context's cause.
func (p *Prompter) PrepareImage(ctx context.Context, data []byte, detail vision.Detail, of int) (*vision.Image, error) {
	if p.Preprocessor == nil {
		return nil, errors.New("the model takes no images")
	}
	split := detail.Split() && (of <= 1 || !p.Layout.SplitAlone)
	return p.Preprocessor.Prepare(ctx, data, p.Limits, split)
}

// Rendered is the text of a prompt, with a placeholder for each image.
type Rendered struct {
	text    chat.Prompt
	special bool
}

// Text is the prompt as the template writes it, without marks.
func (r Rendered) Text() string {
	if r.text.Guard == 0 {
		return r.text.Text
	}
	return strings.ReplaceAll(r.text.Text, string(r.text.Guard), "")
}

// Render writes a prompt out. Its error is a *PromptError, or of ctx or the template itself.
func (p *Prompter) Render(ctx context.Context, in Prompt) (Rendered, error) {
	r := Rendered{special: p.AddSpecial}
	var err error
	switch {
	case in.Messages == nil:
		r.text, err = chat.Raw(in.Raw, p.Layout.Placeholder, p.Guarded)
	case p.Template == nil:
		err = errors.New("the model has no chat template")
	case in.Continue:
		r.text, err = p.Template.RenderContinue(ctx, in.Messages)
	default:
		r.text, err = p.Template.RenderContext(ctx, in.Messages)
	}
	if errors.Is(err, chat.ErrMessages) {
		return r, &PromptError{err}
	}
	if in.Messages != nil && p.BOS != "" && strings.HasPrefix(r.text.Text, p.BOS) {
		r.special = false
	}
	return r, err
}

// Input puts the images' tokens in the places of the placeholders, turns it all into ids and finds the positions of the
// patches among them. The embeddings are to be attached. Its error is a *PromptError, or the model's fault.
func (p *Prompter) Input(r Rendered, images []*vision.Image) (Input, error) {
	grids := make([]vision.Grid, len(images))
	for i, img := range images {
		grids[i] = img.Grid
	}
	text, err := p.Layout.ExpandPrompt(r.text.Text, grids)
	if err != nil {
		return Input{}, err
	}
	ids, err := p.encode(text, r.text.Guard, r.special)
	if err != nil {
		return Input{}, err
	}
	if len(ids) == 0 {
		return Input{}, &PromptError{errors.New("no tokens; want at least one")}
	}
	if len(images) == 0 {
		return Input{IDs: ids}, nil
	}
	return p.Layout.Locate(ids, images)
}

// Answer gives the ids of a text that a model is to say, without special tokens. Its error is a *PromptError.
func (p *Prompter) Answer(text string) ([]int32, error) {
	r, err := chat.Raw([]chat.Part{{Text: text}}, p.Layout.Placeholder, p.Guarded)
	if err != nil {
		return nil, &PromptError{err}
	}
	return p.encode(r.Text, r.Guard, false)
}

// encode marks a text as its author's fault where its tokens are too many.
func (p *Prompter) encode(text string, guard rune, special bool) ([]int32, error) {
	ids, err := p.Tokenizer.EncodeGuarded(text, guard, special)
	if errors.Is(err, tokenizer.ErrGrows) {
		err = &PromptError{fmt.Errorf("%w; want other text, or another model", err)}
	}
	return ids, err
}
