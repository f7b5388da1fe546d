package server

import (
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// tokenize answers POST /tokenize. It takes no place in the engine, and of images it reads the headers alone.
func (x *exchange) tokenize() error {
	if err := x.requireModel(); err != nil {
		return err
	}
	ctx, release, err := x.service.AdmitPlaceless(x.r.Context())
	if err != nil {
		return x.service.RefuseCount(x.r.Context(), x.newRequest(), err)
	}
	defer release()
	x.r = x.r.WithContext(ctx)
	return x.receiveRequest(func(body []byte) (*openai.Request, *serving.Request, error) {
		in, err := openai.ParseTokenize(x.r.Context(), body)
		if err != nil {
			return nil, nil, err
		}
		r := x.chatRequest(&openai.ChatRequest{Request: in.Request, Messages: in.Messages, Continue: in.Continue})
		if r.TokenIDs = true; in.Messages == nil {
			x.input = "prompt"
			r.Chat, r.Prompt = nil, &serving.Prompt{Parts: []serving.Part{{Text: in.Prompt}}}
		}
		return &in.Request, r, nil
	}, func(_ *openai.Request, req *serving.Request) error {
		c, err := x.service.Count(x.r.Context(), req)
		if err != nil {
			return err
		}
		return x.write(openai.Tokenized{Count: c.Prompt, MaxModelLen: c.Context, Tokens: c.IDs})
	})
}
