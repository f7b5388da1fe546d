package server

import (
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
	return x.ask(func(body []byte) (*openai.Request, *serving.Request, error) {
		in, err := openai.ParseOllamaChat(x.r.Context(), body)
		if err != nil {
			return nil, nil, err
		}
		return &in.Request, x.chatRequest(in), nil
	}, func(asked *openai.Request, req *serving.Request) error {
		to := &ollamaSink{sse: sse{x: x}, stream: asked.Stream}
		req.Streams, req.MaxAnswerBytes = asked.Stream, maxHTTPAnswer
		x.last = func(e *httpError) { _ = to.line(ollamaError(e)) } // who left does not read it
		if err := x.generate(x.r.Context(), req, to); err != nil {
			return toHTTP(err, func(field string) string { return ollamaNames.Replace(x.param(field)) })
		}
		return nil
	})
}

// ollamaNames turn names of fields of a chat into Ollama's.
var ollamaNames = strings.NewReplacer(
	".content[", ".images[", ".image_url.url", "", "max_tokens", "options.num_predict", "repetition", "repeat",
)

// ollamaError is an error as Ollama writes it.
func ollamaError(e *httpError) map[string]string { return map[string]string{"error": e.Error()} }

// ollamaSink sends an answer in lines of JSON as it comes, or whole.
type ollamaSink struct {
	sse
	stream bool
	model  string
	text   strings.Builder // of a whole answer
}

func (s *ollamaSink) answer(text string) ollamaAnswer {
	said := map[string]string{"role": "assistant", "content": text}
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
	s.model = e.Model + openai.OllamaTag
	if s.stream {
		s.beginAs("application/x-ndjson")
	}
	return nil
}

// Delta implements serving.Sink.
func (s *ollamaSink) Delta(d *serving.Delta) error {
	if !s.stream {
		s.text.WriteString(d.Text)
		return nil
	}
	return s.line(s.answer(d.Text))
}

// Finish implements serving.Sink.
func (s *ollamaSink) Finish(f *serving.Finish) error {
	a := s.answer(s.text.String())
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
	x.models.Each(func(d *serving.Deployment) {
		name, details := d.Model.Name+openai.OllamaTag, map[string]string{} // and a size that is not known
		list = append(list, map[string]any{"name": name, "model": name, "digest": d.Model.Digest, "size": 0,
			"modified_at": time.Unix(x.since, 0), "details": details})
	})
	return x.write(map[string]any{"models": list})
}
