package openai

import (
	"context"
	"math"
)

// TextRequest is the body of POST /v1/completions.
type TextRequest struct {
	Request
	// Prompt is the text that the answer follows.
	Prompt string
	// PromptIDs are its tokens instead; nil where Prompt is given.
	PromptIDs []uint32
}

// defaultTextTokens is OpenAI's default of max_tokens, for completions alone.
const defaultTextTokens uint32 = 16

// ParseText reads the body of a request for a completion. Its error is an *Error,
// or says why ctx is done.
func ParseText(ctx context.Context, body []byte) (*TextRequest, error) {
	top, err := parse(ctx, body)
	if err != nil {
		return nil, err
	}
	r := &reading{}
	o := r.object("", top)
	t := &TextRequest{Request: o.request()}
	if t.MaxTokens == nil {
		n := max(defaultTextTokens, t.MinTokens)
		t.MaxTokens = &n
	}
	if n := o.count("logprobs"); n != nil {
		t.Logprobs, t.TopLogprobs = true, *n
	}
	o.prompt(t)
	o.refuseText(t)
	o.done()
	if r.err != nil {
		return nil, r.err
	}
	t.Ignored = r.ignored
	return t, nil
}

// prompt reads a text, one text in a list, or the ids of one.
func (o object) prompt(t *TextRequest) {
	n := o.get("prompt")
	switch {
	case n == nil:
		o.fault("prompt", CodeMissing, "none; want a string")
		return
	case n.kind == kindText:
		t.Prompt = n.text()
		return
	case n.kind != kindList:
		o.wrongType("prompt", n, "a string")
		return
	case len(n.list) == 0:
		o.fault("prompt", CodeMissing, "no prompts; want a string")
		return
	case n.list[0].kind == kindNumber:
		t.PromptIDs = o.ids("prompt", n)
		return
	case len(n.list) > 1:
		o.fault("prompt", CodeUnsupported, "%d prompts; want one in a request", len(n.list))
		return
	}
	switch first := &n.list[0]; {
	case first.kind == kindText:
		t.Prompt = first.text()
	case first.kind == kindList && len(first.list) > 0:
		t.PromptIDs = o.ids("prompt[0]", first)
	default:
		o.wrongType("prompt[0]", first, "a string, or token ids")
	}
}

// ids are the token ids of a list.
func (o object) ids(param string, n *node) []uint32 {
	out := make([]uint32, len(n.list))
	for i := range n.list {
		id := o.reading.integer(param, &n.list[i], 0, math.MaxInt32)
		if id == nil {
			return nil
		}
		out[i] = uint32(*id)
	}
	return out
}

// refuseText refuses what completions do not do here.
func (o object) refuseText(t *TextRequest) {
	if o.boolean("echo") {
		o.fault("echo", CodeUnsupported, "not supported: the answer has no prompt in it; want false")
	}
	if o.str("suffix") != "" {
		o.fault("suffix", CodeUnsupported, "not supported; want none")
	}
	if best := o.count("best_of"); best != nil && *best > max(t.N, 1) {
		o.fault("best_of", CodeUnsupported, "%d; want none, or at most n: all answers are sent", *best)
	}
}
