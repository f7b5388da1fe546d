package server

import (
	"errors"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// maxHTTPAnswer bounds an answer that is sent as one, in bytes of the contract's message; JSON takes about four times as much.
const maxHTTPAnswer = 4 << 20

// chatCompletions answers POST /v1/chat/completions.
func (x *exchange) chatCompletions() error {
	if err := x.requireModel(); err != nil {
		return err
	}
	defer x.claim()()
	var in *openai.ChatRequest
	var req *serving.Request
	err := x.readJSON(func(body []byte) (err error) {
		if in, err = openai.ParseChat(body); err == nil {
			req, err = x.chatRequest(in)
		}
		return err
	})
	if err != nil {
		return x.refuse(err)
	}
	x.tellIgnored(&in.Request)
	ctx := x.r.Context()
	in.Messages = nil // the images are req's to let go
	if in.Stream {
		to := &chatStream{sse: sse{x: x}, usage: in.IncludeUsage}
		req.Streams = true
		if err := x.generate(ctx, req, to); err != nil {
			return err
		}
		return to.end()
	}
	req.MaxAnswerBytes = maxHTTPAnswer
	var c serving.Collector
	if err := x.generate(ctx, req, c.Sink()); err != nil {
		return err
	}
	return x.write(chatCompletion(&c))
}

// refuse has serving write the line of a request that is refused before it is one.
func (x *exchange) refuse(err error) error {
	var known *serving.Error
	if errors.As(err, &known) {
		return x.service.Refuse(x.r.Context(), x.newRequest(), known)
	}
	e := toHTTP(err, chatParam)
	_ = x.service.Refuse(x.r.Context(), x.newRequest(), &serving.Error{Kind: refusalKind(e.status), Message: e.Error()})
	return e
}

// newRequest is one that says who asks, and no more.
func (x *exchange) newRequest() *serving.Request {
	return &serving.Request{ID: x.id, Peer: x.r.RemoteAddr}
}

// request is what all requests for text have.
func (x *exchange) request(in *openai.Request) *serving.Request {
	r := x.newRequest()
	r.Model, r.MaxTokens, r.MinTokens = in.Model, in.MaxTokens, in.MinTokens
	r.Stop, r.StopTokenIDs, r.IgnoreEOS = in.Stop, in.StopTokenIDs, in.IgnoreEOS
	r.N, r.Logprobs, r.TopLogprobs = in.N, in.Logprobs, in.TopLogprobs
	r.Sampling = serving.Sampling{
		Temperature: in.Temperature, TopP: in.TopP, MinP: in.MinP, TypicalP: in.TypicalP, TopK: in.TopK,
		RepetitionPenalty: in.RepetitionPenalty, PresencePenalty: in.PresencePenalty,
		FrequencyPenalty: in.FrequencyPenalty, LogitBias: in.LogitBias, Seed: in.Seed,
	}
	switch {
	case in.Priority < 0:
		r.Priority = batching.PriorityInteractive
	case in.Priority == 0:
		r.Priority = batching.PriorityDefault
	default:
		r.Priority = batching.PriorityBatch
	}
	if c := in.Constraint; c != nil {
		r.Constraint = &serving.Constraint{Kind: constraintKinds[c.Kind], Text: c.Text, Choices: c.Choices}
	}
	return r
}

var constraintKinds = map[openai.ConstraintKind]serving.ConstraintKind{
	openai.JSONObject: serving.JSONObject, openai.JSONSchema: serving.JSONSchema,
	openai.Regex: serving.Regex, openai.Choices: serving.Choices,
}

var imageDetails = map[openai.Detail]vision.Detail{
	openai.DetailAuto: vision.DetailAuto, openai.DetailLow: vision.DetailLow, openai.DetailHigh: vision.DetailHigh,
}

// chatRequest is what a chat asks for.
func (x *exchange) chatRequest(in *openai.ChatRequest) (*serving.Request, error) {
	r := x.request(&in.Request)
	r.Chat = &serving.Chat{Continue: in.Continue, Messages: make([]serving.Message, len(in.Messages))}
	for i, m := range in.Messages {
		to := serving.Message{Role: m.Role, Parts: make([]serving.Part, len(m.Parts))}
		for j, p := range m.Parts {
			to.Parts[j].Text = p.Text
			if p.Image == nil {
				continue
			}
			if p.Image.URL != "" {
				return nil, openai.Unsupported(p.Image.Param,
					"images by URL are off on this server: send the image itself, as data:image/png;base64,…")
			}
			to.Parts[j].Image = &serving.Image{Data: p.Image.Data, Detail: imageDetails[p.Image.Detail]}
		}
		r.Chat.Messages[i] = to
	}
	return r, nil
}

// chatCompletion is a whole answer.
func chatCompletion(c *serving.Collector) *openai.ChatCompletion {
	out := &openai.ChatCompletion{
		ID: openai.ChatPrefix + c.ID, Object: openai.ChatObject, Created: time.Now().Unix(), Model: c.Model,
		SystemFingerprint: fingerprint(&c.Start), Usage: openaiUsage(c.Usage),
	}
	for i := range c.Choices {
		a := &c.Choices[i]
		out.Choices = append(out.Choices, openai.ChatChoice{
			Index: i, Message: openai.AnswerMessage{Role: "assistant", Content: a.Text}, Logprobs: chatLogprobs(a.Logprobs),
			FinishReason: a.Reason.String(), StopReason: a.Stop,
		})
	}
	return out
}

// fingerprint names what answers, for callers who want the same answer twice.
func fingerprint(*serving.Start) string { return "" }

func openaiUsage(u serving.Usage) openai.Usage {
	return openai.NewUsage(u.Prompt, u.Image, u.Cached, u.Completion)
}

func chatLogprobs(list []serving.Logprobs) *openai.Logprobs {
	if len(list) == 0 {
		return nil
	}
	out := &openai.Logprobs{Content: make([]openai.TokenLogprob, len(list))}
	for i := range list {
		l := &list[i]
		out.Content[i] = openai.NewTokenLogprob(l.Token.Text, l.Token.Logprob)
		for j := range l.Top {
			out.Content[i].Top = append(out.Content[i].Top, openai.NewTokenLogprob(l.Top[j].Text, l.Top[j].Logprob))
		}
	}
	return out
}

// chatStream is a sink that sends what comes as chunks.
type chatStream struct {
	sse
	usage  bool // asked for
	chunks *openai.Chunks
	sum    serving.Usage // of the answers that have ended
}

// Start implements serving.Sink.
func (s *chatStream) Start(e *serving.Start) error {
	s.chunks = openai.NewChunks(openai.ChatPrefix+e.ID, e.Model, fingerprint(e), time.Now().Unix(), s.usage)
	s.begin()
	for i := range e.Answers {
		s.add(s.chunks.Role(i))
	}
	return s.flush()
}

// Delta implements serving.Sink.
func (s *chatStream) Delta(d *serving.Delta) error {
	s.add(s.chunks.Text(d.Index, d.Text, chatLogprobs(d.Logprobs)))
	return s.flush()
}

// Finish implements serving.Sink.
func (s *chatStream) Finish(f *serving.Finish) error {
	completion := s.sum.Completion + f.Usage.Completion
	if f.Index == 0 {
		s.sum = f.Usage
	}
	s.sum.Completion = completion
	s.add(s.chunks.Finish(f.Index, f.Reason.String(), f.Stop, chatLogprobs(f.Logprobs)))
	return s.flush()
}

// end tells the usage, if that is asked for, and that nothing more comes.
func (s *chatStream) end() error {
	if s.usage {
		s.add(s.chunks.Usage(openaiUsage(s.sum)))
	}
	s.add([]byte("[DONE]"))
	return s.flush()
}

var _ serving.Sink = (*chatStream)(nil)
