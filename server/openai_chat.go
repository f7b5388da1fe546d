package server

import (
	"errors"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// maxHTTPAnswer bounds an answer that is sent as one, in bytes of the contract's message; JSON takes about four times
// as much.
const maxHTTPAnswer = 4 << 20

// chatCompletions answers POST /v1/chat/completions.
func (x *exchange) chatCompletions() error {
	return x.answer(completions{
		parse: func(body []byte) (*openai.Request, *serving.Request, error) {
			in, err := openai.ParseChat(x.r.Context(), body)
			if err != nil {
				return nil, nil, err
			}
			return &in.Request, x.chatRequest(in), nil
		},
		whole: func(asked *openai.Request, c *serving.Collector) any {
			out := x.chatCompletion(c)
			out.Extras = openaiExtras(asked.Timings, c.Timings, c.ChoiceScores)
			return out
		},
		chunks: func(e *serving.Start, usage bool) *openai.Chunks {
			return openai.NewChunks(openai.ChatPrefix+e.ID, e.Model, e.Fingerprint, time.Now().Unix(), usage)
		},
		roles: true,
		logprobs: func(_ int, list []serving.Logprobs) any {
			if len(list) == 0 {
				return nil
			}
			return chatLogprobs(list)
		},
	})
}

// completions is an endpoint that answers with text: how it reads a body, and writes an answer.
type completions struct {
	parse  func(body []byte) (*openai.Request, *serving.Request, error)
	whole  func(*openai.Request, *serving.Collector) any
	chunks func(e *serving.Start, usage bool) *openai.Chunks
	roles  bool // an answer begins with its role
	// logprobs are those of the next tokens of an answer as JSON; nil for none.
	logprobs func(index int, list []serving.Logprobs) any
}

// answer has a request answered as one message, or as it comes.
func (x *exchange) answer(c completions) error {
	return x.ask(c.parse, func(asked *openai.Request, req *serving.Request) error {
		if asked.Stream {
			to := &completionStream{sse: sse{x: x}, completions: c, usage: asked.IncludeUsage, timings: asked.Timings}
			req.Streams = true
			if err := x.generate(x.r.Context(), req, to); err != nil {
				return err
			}
			return to.end()
		}
		req.MaxAnswerBytes = maxHTTPAnswer
		var collected serving.Collector
		if err := x.generate(x.r.Context(), req, collected.Sink()); err != nil {
			return err
		}
		return x.write(c.whole(asked, &collected))
	})
}

// ask reads a request within the budgets, and has do answer it.
func (x *exchange) ask(
	parse func(body []byte) (*openai.Request, *serving.Request, error), do func(*openai.Request, *serving.Request) error,
) error {
	if err := x.requireModel(); err != nil {
		return err
	}
	ctx, release, err := x.service.Admit(x.r.Context())
	if err != nil {
		return x.refuse(err)
	}
	defer release()
	x.r = x.r.WithContext(ctx)
	return x.receiveRequest(parse, do)
}

// receiveRequest is ask for what takes no place in the engine.
func (x *exchange) receiveRequest(
	parse func(body []byte) (*openai.Request, *serving.Request, error), do func(*openai.Request, *serving.Request) error,
) error {
	defer x.claim()()
	var asked openai.Request // not the body: the images are the request's to let go
	var req *serving.Request
	err := x.readJSON(func(body []byte) error {
		in, r, err := parse(body)
		if err == nil {
			asked, req = *in, r
		}
		return err
	})
	if err != nil {
		return x.refuse(err)
	}
	x.tellIgnored(&asked)
	return do(&asked, req)
}

// refuse has serving write the line of a request that is refused before it is one.
func (x *exchange) refuse(err error) error {
	var known *serving.Error
	if errors.As(err, &known) {
		return x.service.Refuse(x.r.Context(), x.newRequest(), known)
	}
	e := toHTTP(err, x.param)
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
	x.named, x.limit = in.StopTokenIDs, in.MaxTokensParam
	r.Stop, r.StopTokenIDs, r.IncludeStop, r.IgnoreEOS = in.Stop, in.StopTokenIDs, in.IncludeStop, in.IgnoreEOS
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
		x.constraint = c.Param
		r.Constraint = &serving.Constraint{Kind: constraintKinds[c.Kind], Text: c.Text, Choices: c.Choices, Scores: c.Scores}
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
func (x *exchange) chatRequest(in *openai.ChatRequest) *serving.Request {
	r := x.request(&in.Request)
	r.Chat = &serving.Chat{Continue: in.Continue, Tools: in.Tools, Messages: make([]serving.Message, len(in.Messages))}
	for i, m := range in.Messages {
		to := serving.Message{
			Role: m.Role, Parts: make([]serving.Part, len(m.Parts)), ToolCalls: m.ToolCalls, ToolCallID: m.ToolCallID,
			ToolName: m.Name,
		}
		for j, p := range m.Parts {
			to.Parts[j].Text = p.Text
			if p.Image != nil {
				to.Parts[j].Image = &serving.Image{Data: p.Image.Data, URL: p.Image.URL, Detail: imageDetails[p.Image.Detail]}
			}
		}
		r.Chat.Messages[i] = to
	}
	return r
}

// chatCompletion is a whole answer.
func (x *exchange) chatCompletion(c *serving.Collector) *openai.ChatCompletion {
	out := &openai.ChatCompletion{
		ID: openai.ChatPrefix + c.ID, Object: openai.ChatObject, Created: time.Now().Unix(), Model: c.Model,
		SystemFingerprint: c.Fingerprint, Usage: openaiUsage(c.Usage),
	}
	for i := range c.Choices {
		a := &c.Choices[i]
		out.Choices = append(out.Choices, openai.ChatChoice{
			Index: i, Message: openai.AnswerMessage{Role: "assistant", Content: a.Text, Reasoning: a.Reasoning},
			Logprobs: chatLogprobs(a.Logprobs), FinishReason: a.Reason.String(),
			StopReason: openai.NewStopReason(a.Stop, a.StopTokenID, x.named),
		})
	}
	return out
}

func openaiUsage(u serving.Usage) openai.Usage {
	return openai.NewUsage(u.Prompt, u.Image, u.Cached, u.Completion).WithReasoning(u.Reasoning)
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
			out.Content[i].Top = append(out.Content[i].Top, openai.NewTopLogprob(l.Top[j].Text, l.Top[j].Logprob))
		}
	}
	return out
}

// completionStream is a sink that sends what comes as chunks.
type completionStream struct {
	sse
	completions
	usage, timings bool // asked for
	writer         *openai.Chunks
	sum            serving.Usage  // of the answers that have ended
	latest         serving.Finish // of them
}

// Start implements serving.Sink.
func (s *completionStream) Start(e *serving.Start) error {
	s.writer = s.chunks(e, s.usage)
	s.begin()
	for i := range e.Answers {
		if s.roles {
			s.add(s.writer.Role(i))
		}
	}
	return s.flush()
}

// Delta implements serving.Sink.
func (s *completionStream) Delta(d *serving.Delta) error {
	s.add(s.writer.Text(d.Index, d.Reasoning, d.Text, s.logprobs(d.Index, d.Logprobs)))
	return s.flush()
}

// Finish implements serving.Sink.
func (s *completionStream) Finish(f *serving.Finish) error {
	s.latest.Timings, s.latest.ChoiceScores = f.Timings, append(s.latest.ChoiceScores, f.ChoiceScores...)
	completion, reasoning := s.sum.Completion+f.Usage.Completion, s.sum.Reasoning+f.Usage.Reasoning
	if f.Index == 0 {
		s.sum = f.Usage
	}
	s.sum.Completion, s.sum.Reasoning = completion, reasoning
	stop := openai.NewStopReason(f.Stop, f.StopTokenID, s.x.named)
	s.add(s.writer.Finish(f.Index, f.Reason.String(), stop, s.logprobs(f.Index, f.Logprobs)))
	return s.flush()
}

// end tells the usage and what else is asked for, and that nothing more comes.
func (s *completionStream) end() error {
	extras := openaiExtras(s.timings, s.latest.Timings, s.latest.ChoiceScores)
	if s.usage {
		usage := openaiUsage(s.sum)
		s.add(s.writer.Last(&usage, extras))
	} else if extras.Timings != nil || extras.ChoiceScores != nil {
		s.add(s.writer.Last(nil, extras))
	}
	s.add([]byte("[DONE]"))
	return s.flush()
}

var _ serving.Sink = (*completionStream)(nil)
