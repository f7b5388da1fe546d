package openai

import (
	"context"
	"fmt"
	"math"
	"strings"
)

// OllamaTag is what Ollama's clients end a name with that has no tag.
const OllamaTag = ":latest"

// ParseOllamaChat reads the body of Ollama's POST /api/chat. Its error is an *Error,
// or says why ctx is done.
func ParseOllamaChat(ctx context.Context, body []byte) (*ChatRequest, error) {
	top, err := parse(ctx, body)
	if err != nil {
		return nil, err
	}
	r := &reading{}
	o := r.object("", top)
	stream := o.optionalBool("stream")
	c := &ChatRequest{Named: o.str("model"), Request: Request{Stream: stream == nil || *stream}}
	c.Model = strings.TrimSuffix(c.Named, OllamaTag)
	o.tools()
	switch n := o.get("format"); {
	case n == nil, n.kind == kindText && n.text() == "":
	case n.kind == kindText && n.text() == "json":
		c.Constraint = &Constraint{Kind: JSONObject, Param: "format"}
	case n.kind == kindText:
		r.fault("format", CodeInvalidValue, "not known; want json or a schema")
	case n.kind == kindObject:
		c.Constraint = o.schema("format", n)
	default:
		o.wrongType("format", n, "json or a schema")
	}
	if options := o.sub("options"); options != nil {
		options.ollamaOptions(&c.Request)
		options.done()
	}
	if n := o.get("messages"); n == nil || n.kind != kindList || len(n.list) > 0 {
		c.Messages = o.messages("messages", object.ollamaMessage)
	}
	if n := len(c.Messages); n > 0 {
		c.Continue = c.Messages[n-1].Role == "assistant"
	}
	o.known("keep_alive")
	o.done()
	if r.err != nil {
		return nil, r.err
	}
	c.Ignored = r.ignored
	return c, nil
}

// ollamaOptions reads the options that say how to sample; what only loads a model is ignored.
func (o object) ollamaOptions(r *Request) {
	o.sampling(r)
	r.RepetitionPenalty = o.float("repeat_penalty")
	r.Stop = o.stop()
	if n := o.integer("num_predict", -2, math.MaxInt32); n != nil && *n > 0 { // else: until the model ends
		most := uint32(*n)
		r.MaxTokens = &most
	}
}

// ollamaMessage reads a message, whose images come before its text.
func (o object) ollamaMessage() (m Message) {
	defer o.done()
	m.Role = o.role()
	for i, n := range o.list("images") {
		param := fmt.Sprintf("%simages[%d]", o.path, i)
		if n.kind != kindText {
			o.wrongType(param, &n, "a string")
			return m
		}
		m.Parts = append(m.Parts, Part{Image: &Image{Data: o.reading.base64(param, n.bytes()), Param: param}})
	}
	m.Parts = append(m.Parts, Part{Text: o.str("content")})
	return m
}
