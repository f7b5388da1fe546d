package loadtest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
)

// errTruncated is the error of an event stream that ends before the answer does.
var errTruncated = errors.New("the stream ended before the answer did")

// OpenAI is a server of OpenAI's /v1/chat/completions, asked to stream.
type OpenAI struct {
	base, model string
	header      http.Header
	client      *http.Client
}

// NewOpenAI makes a target of the server at base, http://host:port or what comes before /v1. The model's name and the
// header go with each request. TLS is spoken as secure says; nil: with the system's roots.
func NewOpenAI(base, model string, header http.Header, secure *tls.Config) (*OpenAI, error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("%q: want http://host:port or https://host", base)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost, transport.MaxIdleConns = 4096, 4096
	transport.TLSClientConfig = secure
	return &OpenAI{strings.TrimSuffix(strings.TrimSuffix(base, "/"), "/v1"), model, header,
		&http.Client{Transport: transport}}, nil
}

func (o *OpenAI) String() string { return o.base + "/v1/chat/completions" }

// Close closes idle connections.
func (o *OpenAI) Close() error {
	o.client.CloseIdleConnections()
	return nil
}

// The parts of OpenAI's schema that are sent.
type (
	openaiURL struct {
		URL string `json:"url"`
	}
	openaiPart struct {
		Type     string     `json:"type"`
		Text     string     `json:"text,omitempty"`
		ImageURL *openaiURL `json:"image_url,omitempty"`
	}
	openaiMessage struct {
		Role    string       `json:"role"`
		Content []openaiPart `json:"content"`
	}
	openaiRequest struct {
		Model         string          `json:"model"`
		Messages      []openaiMessage `json:"messages"`
		MaxTokens     int             `json:"max_tokens"`
		Temperature   float64         `json:"temperature"`
		Stream        bool            `json:"stream"`
		StreamOptions map[string]bool `json:"stream_options"`
		User          string          `json:"user,omitempty"`
		IgnoreEOS     bool            `json:"ignore_eos,omitempty"` // vLLM's, also of others
		Priority      string          `json:"priority,omitempty"`
	}
	openaiChunk struct {
		Choices []struct {
			Delta struct {
				Content string `json:"content"`
			} `json:"delta"`
			FinishReason string `json:"finish_reason"`
		} `json:"choices"`
		Usage *struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
			Details    struct {
				Cached int `json:"cached_tokens"`
				Image  int `json:"image_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
		Error json.RawMessage `json:"error"`
	}
)

// Generate implements Target. A piece of text counts as one token: the protocol does not tell.
func (o *OpenAI) Generate(ctx context.Context, r *Request, token func(int)) (Answer, error) {
	var parts []openaiPart
	for _, p := range r.Images {
		parts = append(parts, openaiPart{Type: "image_url", ImageURL: &openaiURL{"data:" + p.Type + ";base64," +
			base64.StdEncoding.EncodeToString(p.Data)}})
	}
	body, err := json.Marshal(openaiRequest{
		Model: o.model, Messages: []openaiMessage{{"user", append(parts, openaiPart{Type: "text", Text: r.Text})}},
		MaxTokens: r.MaxTokens, Stream: true, StreamOptions: map[string]bool{"include_usage": true},
		User: r.Tenant, IgnoreEOS: r.IgnoreEOS, Priority: r.Priority,
	})
	if err != nil {
		return Answer{}, err
	}
	in, err := http.NewRequestWithContext(ctx, http.MethodPost, o.String(), bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	maps.Copy(in.Header, o.header)
	in.Header.Set("Content-Type", "application/json")
	in.Header.Set("Accept", "text/event-stream")
	in.Header.Set("X-Request-Id", r.ID)
	out, err := o.client.Do(in)
	if err != nil {
		return Answer{}, err
	}
	defer out.Body.Close()
	if out.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(out.Body, 500))
		return Answer{}, &httpError{out.StatusCode, string(text)}
	}
	return readEvents(out.Body, token)
}

// maxEvent is the longest line of an event stream.
const maxEvent = 16 << 20

// readEvents reads a stream of server-sent events up to [DONE].
func readEvents(r io.Reader, token func(int)) (a Answer, err error) {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, 4096), maxEvent)
	for scan.Scan() {
		data, found := bytes.CutPrefix(scan.Bytes(), []byte("data:"))
		if !found { // an empty line, a comment, another field
			continue
		}
		data = bytes.TrimSpace(data)
		if string(data) == "[DONE]" {
			return a, nil
		}
		var c openaiChunk
		if err := json.Unmarshal(data, &c); err != nil {
			return a, fmt.Errorf("an event is not a chat completion chunk: %w", err)
		}
		if len(c.Error) > 0 && string(c.Error) != "null" {
			return a, &httpError{http.StatusInternalServerError, string(c.Error[:min(len(c.Error), 500)])}
		}
		for _, choice := range c.Choices {
			if choice.Delta.Content != "" {
				token(1)
			}
			if choice.FinishReason != "" {
				a.Finish = choice.FinishReason
			}
		}
		if u := c.Usage; u != nil {
			a.Prompt, a.Completion, a.Cached, a.Image = u.Prompt, u.Completion, u.Details.Cached, u.Details.Image
		}
	}
	if err := scan.Err(); err != nil {
		return a, err
	}
	return a, errTruncated
}
