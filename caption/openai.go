package caption

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/imaging"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// batchLine is a line of an OpenAI batch file.
type batchLine struct {
	CustomID string          `json:"custom_id"`
	Method   string          `json:"method"`
	URL      string          `json:"url"`
	Body     json.RawMessage `json:"body"`
}

// chatBody is the body of a request for a chat completion: OpenAI's fields, and vLLM's beyond them.
type chatBody struct {
	Model               string             `json:"model"`
	Messages            []chatMessage      `json:"messages"`
	MaxTokens           *uint32            `json:"max_tokens"`
	MaxCompletionTokens *uint32            `json:"max_completion_tokens"`
	Temperature         *float32           `json:"temperature"`
	TopP                *float32           `json:"top_p"`
	TopK                *int64             `json:"top_k"`
	MinP                *float32           `json:"min_p"`
	Seed                *int64             `json:"seed"`
	N                   *uint32            `json:"n"`
	Stop                stopTexts          `json:"stop"`
	StopTokenIDs        []uint32           `json:"stop_token_ids"`
	PresencePenalty     *float32           `json:"presence_penalty"`
	FrequencyPenalty    *float32           `json:"frequency_penalty"`
	RepetitionPenalty   *float32           `json:"repetition_penalty"`
	LogitBias           map[string]float32 `json:"logit_bias"`
	MinTokens           uint32             `json:"min_tokens"`
	IgnoreEOS           bool               `json:"ignore_eos"`
	Stream              bool               `json:"stream"`
	ResponseFormat      *responseFormat    `json:"response_format"`
	StructuredOutputs   *structured        `json:"structured_outputs"`
	GuidedJSON          json.RawMessage    `json:"guided_json"`
	GuidedRegex         string             `json:"guided_regex"`
	GuidedChoice        []string           `json:"guided_choice"`
	Tools               json.RawMessage    `json:"tools"`
	Logprobs            bool               `json:"logprobs"`
	TopLogprobs         uint32             `json:"top_logprobs"`
}

type responseFormat struct {
	Type       string `json:"type"`
	JSONSchema *struct {
		Schema json.RawMessage `json:"schema"`
	} `json:"json_schema"`
}

// structured is vLLM's structured_outputs.
type structured struct {
	JSON   json.RawMessage `json:"json"`
	Regex  string          `json:"regex"`
	Choice []string        `json:"choice"`
}

type chatMessage struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

type chatPart struct {
	Type     string `json:"type"`
	Text     string `json:"text"`
	ImageURL *struct {
		URL    string `json:"url"`
		Detail string `json:"detail"`
	} `json:"image_url"`
}

// stopTexts are one text or several.
type stopTexts []string

// UnmarshalJSON takes a string, a list of them, or null.
func (s *stopTexts) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*s = make(stopTexts, 1)
		return json.Unmarshal(b, &(*s)[0])
	}
	return json.Unmarshal(b, (*[]string)(s))
}

// chatAsker asks what the lines of a batch file ask.
type chatAsker struct {
	priority pb.Priority
	fetch    func(ctx context.Context, url string) ([]byte, error)
}

// Look implements Asker: a line is looked at when it is asked.
func (chatAsker) Look(*Row, []byte) error { return nil }

// invalidField is an error of a line that names the field and quotes nothing.
func invalidField(field, format string, args ...any) error {
	return itemErrorf(codeInvalid, "body.%s: %s", field, fmt.Sprintf(format, args...))
}

// Request implements Asker.
func (a chatAsker) Request(ctx context.Context, data []byte, _ string) (*pb.GenerateRequest, error) {
	var line batchLine
	if err := json.Unmarshal(data, &line); err != nil {
		return nil, itemErrorf(codeInvalid, "the line is not an object with custom_id, method, url and body")
	}
	switch {
	case line.Method != "" && line.Method != http.MethodPost:
		return nil, itemErrorf(codeInvalid, "method: want POST")
	case line.URL != "/v1/chat/completions":
		return nil, itemErrorf(codeInvalid, "url: want /v1/chat/completions, which is all that is served")
	}
	var b chatBody
	if err := json.Unmarshal(line.Body, &b); err != nil {
		var field *json.UnmarshalTypeError
		if errors.As(err, &field) && field.Field != "" {
			return nil, invalidField(field.Field, "got %s, want %s", field.Value, field.Type)
		}
		return nil, itemErrorf(codeInvalid, "body: want a JSON object")
	}
	in := client.Chat()
	for i, m := range b.Messages {
		msg, err := a.message(ctx, m, fmt.Sprintf("messages[%d]", i))
		if err != nil {
			return nil, err
		}
		in.GetChat().Messages = append(in.GetChat().GetMessages(), msg)
	}
	in.Priority = a.priority
	return in, b.fill(in)
}

// fill sets everything but the messages.
func (b *chatBody) fill(in *pb.GenerateRequest) error {
	switch {
	case b.Stream:
		return invalidField("stream", "a batch cannot stream")
	case len(b.Tools) > 0 && string(b.Tools) != "null" && string(b.Tools) != "[]":
		return invalidField("tools", "not supported")
	case b.TopLogprobs > 0 && !b.Logprobs:
		return invalidField("top_logprobs", "want logprobs, too")
	case b.TopK != nil && *b.TopK > 1<<31:
		return invalidField("top_k", "want at most %d", 1<<31)
	}
	in.MaxTokens = b.MaxTokens
	if b.MaxCompletionTokens != nil {
		in.MaxTokens = b.MaxCompletionTokens
	}
	in.Sampling = &pb.Sampling{
		Temperature: b.Temperature, TopP: b.TopP, MinP: b.MinP, PresencePenalty: b.PresencePenalty,
		FrequencyPenalty:  b.FrequencyPenalty,
		RepetitionPenalty: b.RepetitionPenalty,
	}
	if b.TopK != nil {
		in.Sampling.TopK = proto.Uint32(uint32(max(*b.TopK, 0))) // vLLM's -1 keeps all
	}
	if b.Seed != nil {
		in.Sampling.Seed = proto.Uint64(uint64(*b.Seed))
	}
	if b.N != nil {
		in.N = *b.N
	}
	in.Stop, in.StopTokenIds, in.MinTokens, in.IgnoreEos = b.Stop, b.StopTokenIDs, b.MinTokens, b.IgnoreEOS
	in.Logprobs, in.TopLogprobs = b.Logprobs, b.TopLogprobs
	for id, bias := range b.LogitBias {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return invalidField("logit_bias", "want token ids as names")
		}
		if in.Sampling.LogitBias == nil {
			in.Sampling.LogitBias = map[uint32]float32{}
		}
		in.Sampling.LogitBias[uint32(n)] = bias
	}
	var err error
	in.Constraint, err = b.constraint()
	return err
}

// constraint is what the answer is held to; nil for nothing.
func (b *chatBody) constraint() (*pb.Constraint, error) {
	s := structured{JSON: b.GuidedJSON, Regex: b.GuidedRegex, Choice: b.GuidedChoice}
	if b.StructuredOutputs != nil {
		s = *b.StructuredOutputs
	}
	switch f := b.ResponseFormat; {
	case f == nil || f.Type == "" || f.Type == "text":
	case f.Type == "json_object":
		return &pb.Constraint{Kind: &pb.Constraint_JsonObject{JsonObject: true}}, nil
	case f.Type == "json_schema" && f.JSONSchema != nil && len(f.JSONSchema.Schema) > 0:
		s.JSON = f.JSONSchema.Schema
	default:
		return nil, invalidField("response_format", "want text, json_object, or json_schema with a schema")
	}
	switch {
	case len(s.JSON) > 0 && string(s.JSON) != "null":
		schema := string(s.JSON)
		if schema[0] == '"' { // vLLM takes the schema as a string, too
			if err := json.Unmarshal(s.JSON, &schema); err != nil {
				return nil, invalidField("guided_json", "want a schema")
			}
		}
		return &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: schema}}, nil
	case s.Regex != "":
		return &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: s.Regex}}, nil
	case len(s.Choice) > 0:
		return &pb.Constraint{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{Texts: s.Choice}}}, nil
	}
	return nil, nil
}

var chatRoles = map[string]pb.Role{
	"system": pb.Role_ROLE_SYSTEM, "developer": pb.Role_ROLE_SYSTEM, "user": pb.Role_ROLE_USER,
	"assistant": pb.Role_ROLE_ASSISTANT,
}

// mostParts bounds the parts of a message: each takes memory of its own.
const mostParts = 1000

func (a chatAsker) message(ctx context.Context, m chatMessage, field string) (*pb.Message, error) {
	role, ok := chatRoles[m.Role]
	if !ok {
		return nil, invalidField(field+".role", "want system, developer, user or assistant")
	}
	out := &pb.Message{Role: role}
	content := bytes.TrimSpace(m.Content)
	if len(content) > 0 && content[0] == '"' {
		var text string
		if err := json.Unmarshal(content, &text); err != nil {
			return nil, invalidField(field+".content", "want a text or a list of parts")
		}
		out.Parts = append(out.Parts, client.Text(text))
		return out, nil
	}
	var parts []chatPart
	if err := json.Unmarshal(content, &parts); err != nil || len(parts) == 0 {
		return nil, invalidField(field+".content", "want a text or a list of parts")
	}
	if len(parts) > mostParts {
		return nil, invalidField(field+".content", "%d parts, at most %d are allowed", len(parts), mostParts)
	}
	for i, p := range parts {
		part, err := a.part(ctx, p, fmt.Sprintf("%s.content[%d]", field, i))
		if err != nil {
			return nil, err
		}
		out.Parts = append(out.Parts, part)
	}
	return out, nil
}

func (a chatAsker) part(ctx context.Context, p chatPart, field string) (*pb.Part, error) {
	switch {
	case p.Type == "text":
		return client.Text(p.Text), nil
	case p.Type != "image_url" || p.ImageURL == nil:
		return nil, invalidField(field+".type", "want text or image_url")
	}
	data, err := a.image(ctx, p.ImageURL.URL, field)
	if err != nil {
		return nil, err
	}
	part := client.ImageBytes(data)
	detail, ok := details[p.ImageURL.Detail]
	if !ok && p.ImageURL.Detail != "" {
		return nil, invalidField(field+".image_url.detail", "want auto, low or high")
	}
	part.GetImage().Detail = detail
	return part, nil
}

// image is what a data: URL holds, or what is fetched.
func (a chatAsker) image(ctx context.Context, url, field string) ([]byte, error) {
	if rest, ok := strings.CutPrefix(url, "data:"); ok {
		kind, text, found := strings.Cut(rest, ",")
		if !found || !strings.HasSuffix(kind, ";base64") {
			return nil, invalidField(field+".image_url.url", "want data:image/…;base64,…")
		}
		data, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, invalidField(field+".image_url.url", "the data is not base64")
		}
		return data, nil
	}
	if !strings.HasPrefix(url, "https://") && !strings.HasPrefix(url, "http://") {
		return nil, invalidField(field+".image_url.url", "want a data: URL, https: or http:")
	}
	if a.fetch == nil {
		return nil, invalidField(field+".image_url.url", "images are not fetched (--no-fetch)")
	}
	data, err := a.fetch(ctx, url)
	if err != nil {
		return nil, &itemError{codeOf(err), fmt.Errorf("body.%s.image_url.url: %w", field, err)}
	}
	return data, nil
}

func codeOf(err error) string {
	var known *itemError
	if errors.As(err, &known) {
		return known.code
	}
	return codeRead
}

// fetchTimeout bounds how long one image may take to come.
const fetchTimeout = time.Minute

// FetchHTTP gets an image over HTTP. Errors do not quote the URL, which may carry a signature.
func FetchHTTP(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, itemErrorf(codeInvalid, "not a URL")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, errors.New("the image could not be fetched")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		code := codeNotFound
		if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
			code = codeRead
		}
		return nil, itemErrorf(code, "the image's server answered %d", resp.StatusCode)
	}
	data, err := readLimited(io.Reader(resp.Body), nil, imaging.DefaultLimits().MaxBytes)
	if errors.Is(err, errTooLong) {
		return nil, err
	}
	if err != nil {
		return nil, errors.New("the image broke off")
	}
	return data, nil
}

// Answer implements Asker: the row's data is the body of a chat completion.
func (chatAsker) Answer(r *Row, out *pb.GenerateResponse) {
	c := completion{
		ID:      "chatcmpl-" + out.GetId(),
		Object:  "chat.completion",
		Created: time.Now().Unix(),
		Model:   out.GetModel(),
	}
	answers := out.GetChoices()
	if len(answers) == 0 {
		answers = []*pb.Choice{{Text: out.GetText(), FinishReason: out.GetFinishReason(), MatchedStop: out.MatchedStop}}
	}
	for i, a := range answers {
		c.Choices = append(c.Choices, completionChoice{
			Index: i, Message: completionMessage{"assistant", a.GetText()}, FinishReason: finishNames[a.GetFinishReason()],
			StopReason: a.MatchedStop, Logprobs: logprobs(a.GetLogprobs()),
		})
	}
	u := out.GetUsage()
	c.Usage = completionUsage{
		u.GetPromptTokens(),
		u.GetCompletionTokens(),
		u.GetPromptTokens() + u.GetCompletionTokens(),
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // a struct of plain values
	}
	r.Data = b
	r.FinishReason, r.Model, r.ModelDigest = finishNames[out.GetFinishReason()], out.GetModel(), out.GetModelDigest()
	r.PromptTokens, r.ImageTokens, r.CompletionTokens = u.GetPromptTokens(), u.GetImageTokens(), u.GetCompletionTokens()
}

type completion struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []completionChoice `json:"choices"`
	Usage   completionUsage    `json:"usage"`
}

type completionChoice struct {
	Index        int               `json:"index"`
	Message      completionMessage `json:"message"`
	Logprobs     *choiceLogprobs   `json:"logprobs"`
	FinishReason string            `json:"finish_reason"`
	StopReason   *string           `json:"stop_reason"`
}

type completionMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type completionUsage struct {
	PromptTokens     uint32 `json:"prompt_tokens"`
	CompletionTokens uint32 `json:"completion_tokens"`
	TotalTokens      uint32 `json:"total_tokens"`
}

type choiceLogprobs struct {
	Content []tokenLogprob `json:"content"`
}

type tokenLogprob struct {
	Token   string         `json:"token"`
	Logprob float32        `json:"logprob"`
	Bytes   []int          `json:"bytes"`
	Top     []tokenLogprob `json:"top_logprobs,omitempty"`
}

func logprobs(in []*pb.Logprobs) *choiceLogprobs {
	if len(in) == 0 {
		return nil
	}
	out := &choiceLogprobs{}
	for _, l := range in {
		t := oneLogprob(l.GetToken())
		for _, top := range l.GetTop() {
			t.Top = append(t.Top, oneLogprob(top))
		}
		out.Content = append(out.Content, t)
	}
	return out
}

func oneLogprob(t *pb.TokenLogprob) tokenLogprob {
	out := tokenLogprob{
		Token:   strings.ToValidUTF8(string(t.GetText()), "\uFFFD"),
		Logprob: max(t.GetLogprob(), -9999),
		Bytes:   []int{},
	}
	for _, b := range t.GetText() {
		out.Bytes = append(out.Bytes, int(b))
	}
	return out
}
