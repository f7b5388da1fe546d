package server

import (
	"cmp"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// ollamaPrefix begins the paths of Ollama's API, where an error is a text.
const ollamaPrefix = "/api/"

// ollamaRoutes are what programs made for Ollama ask for to list models and to chat.
func (h *httpServer) ollamaRoutes() {
	h.handle(http.MethodPost, ollamaPrefix+"chat", (*exchange).ollamaChat)
	h.handle(http.MethodGet, ollamaPrefix+"tags", (*exchange).ollamaTags)
	version := map[string]string{"version": "0.0.0-" + h.options.Version} // clients read three numbers
	h.handle(http.MethodGet, ollamaPrefix+"version", func(x *exchange) error { return x.write(version) })
}

// ollamaAnswer is a whole answer or a piece of one; durations are in nanoseconds.
type ollamaAnswer struct {
	Model              string            `json:"model"`
	CreatedAt          time.Time         `json:"created_at"`
	Message            map[string]string `json:"message"`
	Done               bool              `json:"done"`
	DoneReason         string            `json:"done_reason,omitempty"`
	TotalDuration      time.Duration     `json:"total_duration,omitempty"`
	PromptEvalCount    int               `json:"prompt_eval_count,omitempty"`
	PromptEvalDuration time.Duration     `json:"prompt_eval_duration,omitempty"`
	EvalCount          int               `json:"eval_count,omitempty"`
	EvalDuration       time.Duration     `json:"eval_duration,omitempty"`
}

func (x *exchange) ollamaChat() error {
	named := ""
	return x.ask(func(body []byte) (*openai.Request, *serving.Request, error) {
		in, err := openai.ParseOllamaChat(x.r.Context(), body)
		if err != nil {
			return nil, nil, err
		}
		named = in.Named
		r := x.chatRequest(in)
		if len(in.Messages) == 0 { // counted, so that the model is one that its caller may use
			r.Chat, r.Prompt = nil, &serving.Prompt{Parts: []serving.Part{{Text: "a"}}}
		}
		return &in.Request, r, nil
	}, func(asked *openai.Request, req *serving.Request) error {
		if req.Chat == nil {
			return x.ollamaLoad(named, req)
		}
		to := &ollamaSink{sse: sse{x: x}, stream: asked.Stream, model: named}
		req.Streams, req.MaxAnswerBytes = asked.Stream, maxHTTPAnswer
		x.last = func(e *httpError) { _ = to.line(ollamaError(e)) } // who left does not read it
		if err := x.generate(x.r.Context(), req, to); err != nil {
			return toHTTP(err, x.ollamaParam)
		}
		return nil
	})
}

// ollamaLoad answers a chat without messages, by which clients have a model loaded: it is.
func (x *exchange) ollamaLoad(named string, req *serving.Request) error {
	c, err := x.service.Count(x.r.Context(), req)
	if err != nil {
		return toHTTP(err, x.ollamaParam)
	}
	a := (&ollamaSink{model: cmp.Or(named, c.Model+openai.OllamaTag)}).answer("", "")
	a.Done, a.DoneReason = true, "load"
	return x.write(a)
}

// ollamaParam is the name in Ollama's API of a field of the contract.
func (x *exchange) ollamaParam(field string) string {
	name, option := strings.CutPrefix(field, "sampling.")
	switch {
	case option:
		return "options." + strings.Replace(name, "repetition", "repeat", 1)
	case field == "max_tokens":
		return "options.num_predict"
	case field == "stop", strings.HasPrefix(field, "stop["):
		return "options." + field
	}
	return ollamaNames.Replace(x.param(field))
}

// ollamaNames turn names of fields of a chat into Ollama's.
var ollamaNames = strings.NewReplacer(".content[", ".images[", ".image_url.url", "")

// ollamaError is an error as Ollama writes it.
func ollamaError(e *httpError) map[string]string { return map[string]string{"error": e.Error()} }

// ollamaSink sends an answer in lines of JSON as it comes, or whole.
type ollamaSink struct {
	sse
	stream bool
	model  string          // as the request names it, or the one that answers
	text   strings.Builder // of a whole answer
	// thoughts are those before it.
	thoughts strings.Builder
}

func (s *ollamaSink) answer(thoughts, text string) ollamaAnswer {
	said := map[string]string{"role": "assistant", "content": text}
	if thoughts != "" {
		said["thinking"] = thoughts
	}
	return ollamaAnswer{Model: s.model, CreatedAt: time.Now(), Message: said}
}

// line sends a value at once.
func (s *ollamaSink) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of plain values
	}
	s.buf = append(append(s.buf, b...), '\n')
	return s.flush()
}

// Start implements serving.Sink.
func (s *ollamaSink) Start(e *serving.Start) error {
	s.model = cmp.Or(s.model, e.Model+openai.OllamaTag)
	if s.stream {
		s.beginAs("application/x-ndjson")
	}
	return nil
}

// Delta implements serving.Sink.
func (s *ollamaSink) Delta(d *serving.Delta) error {
	if !s.stream {
		s.thoughts.WriteString(d.Reasoning)
		s.text.WriteString(d.Text)
		return nil
	}
	return s.line(s.answer(d.Reasoning, d.Text))
}

// Finish implements serving.Sink.
func (s *ollamaSink) Finish(f *serving.Finish) error {
	a := s.answer(s.thoughts.String(), s.text.String())
	a.Done, a.DoneReason, a.TotalDuration = true, f.Reason.String(), f.Timings.Total
	a.PromptEvalCount, a.PromptEvalDuration = f.Usage.Prompt, f.Timings.Prefill
	a.EvalCount, a.EvalDuration = f.Usage.Completion, f.Timings.Decode
	if !s.stream {
		return s.x.write(a)
	}
	return s.line(a)
}

func (x *exchange) ollamaTags() error {
	if err := x.requireModel(); err != nil {
		return err
	}
	list := []map[string]any{}
	x.models.EachOf(x.r.Context(), func(d *serving.Deployment) {
		name, details := d.Model.Name+openai.OllamaTag, map[string]string{} // and a size that is not known
		list = append(list, map[string]any{"name": name, "model": name, "digest": d.Model.Digest, "size": 0,
			"modified_at": time.Unix(x.since, 0), "details": details})
	})
	return x.write(map[string]any{"models": list})
}
