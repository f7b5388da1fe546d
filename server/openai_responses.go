package server

import (
	"cmp"
	"strings"
	"time"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// responses answers POST /v1/responses.
func (x *exchange) responses() error {
	var in *openai.ResponseRequest
	return x.ask(func(body []byte) (_ *openai.Request, _ *serving.Request, err error) {
		if in, err = openai.ParseResponse(x.r.Context(), body); err != nil {
			return nil, nil, err
		}
		if err = x.keeping(in); err != nil {
			return nil, nil, err
		}
		r := x.chatRequest(&openai.ChatRequest{Request: in.Request, Messages: in.Messages})
		if r.Turn = responseTurn(in); r.Turn != nil {
			r.Subject = in.Subject
		}
		in.Messages = nil // the images are r's to let go
		return &in.Request, r, nil
	}, func(_ *openai.Request, req *serving.Request) error {
		if err := x.respond(in, req); err != nil {
			return toHTTP(err, responseParam(in))
		}
		return nil
	})
}

// keeping settles whether a response is kept, and refuses what needs that where nothing is.
func (x *exchange) keeping(in *openai.ResponseRequest) error {
	if x.options.Conversations == nil {
		return in.Stateless()
	}
	if in.Store == nil {
		in.Store = &x.options.StoreResponses
	}
	return nil
}

// responseTurn says how a response goes on with another, and whether it is kept; nil where it stands for itself.
func responseTurn(in *openai.ResponseRequest) *serving.Turn {
	keep := in.Store != nil && *in.Store
	if in.Previous == "" && !keep {
		return nil
	}
	t := &serving.Turn{Previous: strings.TrimPrefix(in.Previous, openai.ResponsePrefix), Keep: keep}
	if in.Instructed { // instructions are for one response
		t.Unkept = 1
	}
	return t
}

// respond sends a response, whole or as it comes.
func (x *exchange) respond(in *openai.ResponseRequest, req *serving.Request) error {
	req.MaxAnswerBytes = maxHTTPAnswer
	if in.Stream { // which repeats the whole answer four times at its end
		req.MaxAnswerBytes /= 4
		to := &responseStream{sse: sse{x: x}, request: in}
		req.Streams, x.last = true, to.fail
		return x.generate(x.r.Context(), req, to)
	}
	var c serving.Collector
	if err := x.generate(x.r.Context(), req, c.Sink()); err != nil {
		return err
	}
	return x.write(wholeResponse(in, &c))
}

// wholeResponse is a whole answer.
func wholeResponse(in *openai.ResponseRequest, c *serving.Collector) *openai.Response {
	now, a := time.Now().Unix(), &c.Choices[0]
	out := openai.NewResponse(in, c.ID, c.Model, c.Fingerprint, now)
	text := openai.ModelText{Reasoning: a.Reasoning, Text: a.Text}
	out.Finish(text, responseLogprobs(a.Logprobs), a.Reason.String(), openaiUsage(c.Usage), now)
	return out
}

// responseParam gives a field of the contract its name in a request for a response.
func responseParam(in *openai.ResponseRequest) func(string) string {
	return func(field string) string {
		if field == "request_id" {
			return "x-request-id"
		}
		return in.Param(field)
	}
}

// responseStream is a sink that sends what comes as a response's events.
type responseStream struct {
	sse
	request *openai.ResponseRequest
	events  openai.ResponseEvents
}

// Start implements serving.Sink.
func (s *responseStream) Start(e *serving.Start) error {
	s.events.Response = openai.NewResponse(s.request, e.ID, e.Model, e.Fingerprint, time.Now().Unix())
	s.begin()
	return s.send(s.events.Begin()...)
}

// Delta implements serving.Sink.
func (s *responseStream) Delta(d *serving.Delta) error {
	more := openai.ModelText{Reasoning: d.Reasoning, Text: d.Text}
	return s.send(s.events.Text(more, responseLogprobs(d.Logprobs))...)
}

// Finish implements serving.Sink.
func (s *responseStream) Finish(f *serving.Finish) error {
	usage := openaiUsage(f.Usage)
	return s.send(s.events.Finish(responseLogprobs(f.Logprobs), f.Reason.String(), usage, time.Now().Unix())...)
}

// fail is the last event of a response that breaks.
func (s *responseStream) fail(e *httpError) {
	code := ""
	if e.body.Code != nil {
		code = *e.body.Code
	}
	_ = s.send(s.events.Fail(cmp.Or(code, e.body.Type), e.body.Message)) // who left does not read it
}

// send sends events at once.
func (s *responseStream) send(list ...openai.Event) error {
	for _, e := range list {
		s.buf = append(append(append(s.buf, "event: "...), e.Name...), '\n')
		s.add(e.Data)
		if err := s.flush(); err != nil {
			return err
		}
	}
	return nil
}

func responseLogprobs(list []serving.Logprobs) []openai.TokenLogprob {
	if l := chatLogprobs(list); l != nil {
		return l.Content
	}
	return nil
}

var _ serving.Sink = (*responseStream)(nil)
