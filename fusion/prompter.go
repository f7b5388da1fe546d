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
	// Thinking is how the model marks its thoughts.
	Thinking Thinking
	// Preprocessor is nil for a model that takes no images.
	Preprocessor vision.Preprocessor
	// Limits bound the work on one image; their budget is all images'.
	Limits vision.Limits
}

// Prompt is what a request says: messages for the chat template, or the parts of a raw prompt.
type Prompt struct {
	// Messages are nil for a raw prompt.
	Messages []chat.Message
	// Tools is a JSON list of what the model may call; nil for none. The template shows them.
	Tools []byte
	// Continue has the answer go on with the last message instead of beginning one of its own.
	Continue bool
	Raw      []chat.Part
	// Tokens are ids that stand in the places of parts of Raw, by their indexes, at least one for each. A prompt with any
	// of them is taken as it is: the tokenizer adds none of its own, and the layout no Frame.
	Tokens map[int][]int32
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
		return nil, errNoImages
	}
	return p.Preprocessor.Prepare(ctx, data, p.Limits, p.split(detail, of))
}

// MeasureImage says what PrepareImage makes of an image, from the file's header alone.
func (p *Prompter) MeasureImage(ctx context.Context, data []byte, detail vision.Detail, of int) (vision.Plan, error) {
	if p.Preprocessor == nil {
		return vision.Plan{}, errNoImages
	}
	return vision.Measure(ctx, p.Preprocessor, data, p.Limits, p.split(detail, of))
}

// MeasureSize is MeasureImage of an image of w×h pixels.
func (p *Prompter) MeasureSize(w, h int, detail vision.Detail, of int) (vision.Measured, error) {
	return p.Preprocessor.Measure(w, h, p.split(detail, of))
}

// split says whether one of so many images may be cut into tiles.
func (p *Prompter) split(detail vision.Detail, of int) bool {
	return detail.Split() && (of <= 1 || !p.Layout.SplitAlone)
}

var errNoImages = errors.New("the model takes no images")

// Rendered is the text of a prompt, with a placeholder for each image.
type Rendered struct {
	text    chat.Prompt
	special bool
	pieces  []piece // instead of text, of a prompt that has tokens
	// Thinks tells that the answer begins amid thoughts, whose mark the prompt ends with.
	Thinks bool
}

// piece is a text with the number of its images, or tokens.
type piece struct {
	text   chat.Prompt
	images int
	ids    []int32
}

// Text is the prompt as the template writes it, without marks. Tokens are left out.
func (r Rendered) Text() string {
	text := unmarked(r.text)
	for _, p := range r.pieces {
		text += unmarked(p.text)
	}
	return text
}

func unmarked(p chat.Prompt) string {
	if p.Guard == 0 {
		return p.Text
	}
	return strings.ReplaceAll(p.Text, string(p.Guard), "")
}

// Render writes a prompt out. Its error is a *PromptError, or of ctx or the template itself.
func (p *Prompter) Render(ctx context.Context, in Prompt) (Rendered, error) {
	r := Rendered{special: p.AddSpecial}
	var err error
	switch {
	case in.Messages == nil && len(in.Tokens) > 0:
		r.pieces, err = p.pieces(in)
	case in.Messages == nil:
		r.text, err = chat.Raw(in.Raw, p.Layout.Placeholder, p.Guarded)
	case p.Template == nil:
		err = errors.New("the model has no chat template")
	case len(in.Tools) > 0 && (in.Continue || !p.Template.Tools()):
		err = &PromptError{errors.New("tools; want none: the chat template shows none, or the answer goes on with a message")}
	case in.Continue:
		r.text, err = p.Template.RenderContinue(ctx, in.Messages)
	default:
		r.text, err = p.Template.RenderTools(ctx, in.Messages, in.Tools)
	}
	if errors.Is(err, chat.ErrMessages) {
		return r, &PromptError{err}
	}
	r.Thinks = p.Thinking.opened(in, r.text)
	if in.Messages != nil && p.BOS != "" && strings.HasPrefix(r.text.Text, p.BOS) {
		r.special = false
	}
	return r, err
}

// pieces cuts a raw prompt where its tokens are, so that no text is read across them.
func (p *Prompter) pieces(in Prompt) (list []piece, err error) {
	if f := p.Layout.Frame; f != nil && f.OneImage {
		return nil, &PromptError{errors.New("tokens; want none: a prompt of this model is one image and nothing else")}
	}
	for begin := 0; begin < len(in.Raw); {
		if ids := in.Tokens[begin]; ids != nil {
			list = append(list, piece{ids: ids})
			begin++
			continue
		}
		run, end := piece{}, begin
		for ; end < len(in.Raw) && in.Tokens[end] == nil; end++ {
			if in.Raw[end].Image {
				run.images++
			}
		}
		if run.text, err = chat.Raw(in.Raw[begin:end], p.Layout.Placeholder, p.Guarded); err != nil {
			return nil, err
		}
		list = append(list, run)
		begin = end
	}
	return list, nil
}

// Input puts the images' tokens in the places of the placeholders, turns it all into ids and finds the positions of the
// patches among them. The embeddings are to be attached. Its error is a *PromptError, or the model's fault.
func (p *Prompter) Input(r Rendered, images []*vision.Image) (Input, error) {
	grids := make([]vision.Grid, len(images))
	for i, img := range images {
		grids[i] = img.Grid
	}
	ids, err := p.ids(r, grids)
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

// ids are a prompt's, for images that are cut as grids.
func (p *Prompter) ids(r Rendered, grids []vision.Grid) (ids []int32, err error) {
	if r.pieces == nil {
		text, err := p.Layout.ExpandPrompt(r.text.Text, grids)
		if err != nil {
			return nil, err
		}
		return p.encode(text, r.text.Guard, r.special)
	}
	for _, piece := range r.pieces {
		if piece.ids != nil {
			ids = append(ids, piece.ids...)
			continue
		}
		text, err := p.Layout.expand(piece.text.Text, grids[:min(piece.images, len(grids))])
		if err != nil {
			return nil, err
		}
		more, err := p.encode(text, piece.text.Guard, false)
		if err != nil {
			return nil, err
		}
		ids, grids = append(ids, more...), grids[piece.images:]
	}
	if len(grids) > 0 {
		return nil, &ErrCount{"places for images, images too many", 0, len(grids)}
	}
	return ids, nil
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
