package openai

import "context"

// TokenizeRequest is the body of vLLM's POST /tokenize: a prompt or a conversation.
type TokenizeRequest struct {
	// Request has a model, and the fields that nothing reads.
	Request
	// Prompt is a text; it counts where Messages are nil.
	Prompt   string
	Messages []Message
	// Continue leaves the last message open, as in a ChatRequest.
	Continue bool
}

// Tokenized is the answer to a TokenizeRequest.
type Tokenized struct {
	Count       int     `json:"count"`
	MaxModelLen int     `json:"max_model_len"`
	Tokens      []int32 `json:"tokens"`
	// TokenStrings are null: nobody is told them.
	TokenStrings []string `json:"token_strs"`
	// TextTokens and ImageTokens are those of each kind, MaxTokens the most that an answer may have: 0 where the prompt
	// does not fit.
	TextTokens  int           `json:"text_tokens"`
	ImageTokens int           `json:"image_tokens"`
	MaxTokens   int           `json:"max_tokens"`
	Fits        bool          `json:"fits"`
	Images      []ImageLayout `json:"images"`
}

// ImageLayout is what a model makes of an image file. Sizes are in pixels, after orientation; the effective one is that
// in which the model sees the image.
type ImageLayout struct {
	Format          string `json:"format"`
	Width           int    `json:"width"`
	Height          int    `json:"height"`
	EffectiveWidth  int    `json:"effective_width"`
	EffectiveHeight int    `json:"effective_height"`
	// Rows and Cols are those of the tiles that it is cut into, 0 where it is not. Tiles has one more, of the whole.
	Rows  int `json:"rows"`
	Cols  int `json:"cols"`
	Tiles int `json:"tiles"`
	// Tokens are the positions of a prompt that it takes.
	Tokens int `json:"tokens"`
}

// ParseTokenize reads the body of a request for tokens. Its error is an *Error,
// or says why ctx is done.
func ParseTokenize(ctx context.Context, body []byte) (*TokenizeRequest, error) {
	top, err := parse(ctx, body)
	if err != nil {
		return nil, err
	}
	r := &reading{}
	o := r.object("", top)
	t := &TokenizeRequest{Request: Request{Model: o.str("model")}}
	prompt, messages := o.get("prompt"), o.get("messages")
	switch {
	case prompt != nil && messages != nil:
		r.fault("prompt", CodeInvalidValue, "given beside messages; want one of them")
	case messages != nil:
		t.Messages, t.Continue = o.messages("messages", object.message), o.continues()
	case prompt != nil:
		t.Prompt = o.str("prompt")
	default:
		r.fault("prompt", CodeMissing, "none; want a string, or messages")
	}
	// vLLM's defaults: a template writes its special tokens itself.
	if add := o.optionalBool("add_special_tokens"); add != nil && *add == (messages != nil) {
		r.fault("add_special_tokens", CodeUnsupported, "%v; want none: tokens are counted as an answer's prompt has them", *add)
	}
	if o.boolean("return_token_strs") {
		r.fault("return_token_strs", CodeUnsupported, "not supported; want false")
	}
	o.done()
	if r.err != nil {
		return nil, r.err
	}
	t.Ignored = r.ignored
	return t, nil
}
