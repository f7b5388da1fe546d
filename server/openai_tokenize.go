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
		return x.write(tokenized(c))
	})
}

func tokenized(c *serving.TokenCount) openai.Tokenized {
	out := openai.Tokenized{
		Count: c.Prompt, MaxModelLen: c.Context, Tokens: c.IDs, TextTokens: c.Text, ImageTokens: c.Image,
		MaxTokens: c.MaxTokens, Fits: c.Fits, Images: []openai.ImageLayout{},
	}
	for _, l := range c.Images {
		out.Images = append(out.Images, openai.ImageLayout{
			Format: l.Format, Width: l.Width, Height: l.Height, EffectiveWidth: l.ScaledWidth,
			EffectiveHeight: l.ScaledHeight, Rows: l.Grid.Rows, Cols: l.Grid.Cols, Tiles: l.Grid.Tiles(), Tokens: l.Tokens,
		})
	}
	return out
}
