package caption

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/openai"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// batchLine is a line of an OpenAI batch file.
type batchLine struct {
	CustomID string          `json:"custom_id"`
	Method   string          `json:"method"`
	URL      string          `json:"url"`
	Body     json.RawMessage `json:"body"`
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
	body, err := parseLine(ctx, data)
	if err != nil {
		return nil, err
	}
	return a.request(ctx, body)
}

// parseLine reads a line of a batch file.
func parseLine(ctx context.Context, data []byte) (*openai.ChatRequest, error) {
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
	body, err := openai.ParseChat(ctx, line.Body)
	var fault *openai.Error
	switch {
	case errors.As(err, &fault) && fault.Param != nil:
		return nil, itemErrorf(codeInvalid, "body.%w", err)
	case fault != nil:
		return nil, itemErrorf(codeInvalid, "body: %w", err)
	case err != nil: // the run ends
		return nil, err
	case body.Stream:
		return nil, invalidField("stream", "a batch cannot stream")
	case len(body.Tools) > 0:
		return nil, invalidField("tools", "a batch has none")
	}
	for i, m := range body.Messages {
		if m.Role == "tool" || len(m.ToolCalls) > 0 {
			return nil, invalidField(fmt.Sprintf("messages[%d]", i), "a batch has no tools")
		}
	}
	return body, nil
}

// request is what a body asks for.
func (a chatAsker) request(ctx context.Context, body *openai.ChatRequest) (*pb.GenerateRequest, error) {
	in := fill(&body.Request)
	in.Priority = a.priority
	chat := &pb.Chat{ContinueFinalMessage: body.Continue}
	for _, m := range body.Messages {
		msg := &pb.Message{Role: chatRoles[m.Role]}
		for _, p := range m.Parts {
			part, err := a.part(ctx, p)
			if err != nil {
				return nil, err
			}
			msg.Parts = append(msg.Parts, part)
		}
		chat.Messages = append(chat.Messages, msg)
	}
	in.Input = &pb.GenerateRequest_Chat{Chat: chat}
	return in, nil
}

// fill is a request of everything but the messages.
func fill(b *openai.Request) *pb.GenerateRequest {
	return &pb.GenerateRequest{
		MaxTokens: b.MaxTokens, MinTokens: b.MinTokens, Stop: b.Stop, StopTokenIds: b.StopTokenIDs,
		IgnoreEos: b.IgnoreEOS, N: b.N, Logprobs: b.Logprobs, TopLogprobs: b.TopLogprobs,
		Sampling: &pb.Sampling{
			Temperature: b.Temperature, TopP: b.TopP, MinP: b.MinP, TypicalP: b.TypicalP, TopK: b.TopK,
			PresencePenalty: b.PresencePenalty, FrequencyPenalty: b.FrequencyPenalty,
			RepetitionPenalty: b.RepetitionPenalty, LogitBias: b.LogitBias, Seed: b.Seed,
		},
		Constraint: constraint(b.Constraint),
	}
}

// constraint is what the answer is held to; nil for nothing.
func constraint(c *openai.Constraint) *pb.Constraint {
	switch {
	case c == nil:
		return nil
	case c.Kind == openai.JSONObject:
		return &pb.Constraint{Kind: &pb.Constraint_JsonObject{JsonObject: true}}
	case c.Kind == openai.JSONSchema:
		return &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: c.Text}}
	case c.Kind == openai.Regex:
		return &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: c.Text}}
	}
	return &pb.Constraint{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{Texts: c.Choices}}}
}

var chatRoles = map[string]pb.Role{
	"system": pb.Role_ROLE_SYSTEM, "user": pb.Role_ROLE_USER, "assistant": pb.Role_ROLE_ASSISTANT,
}

var chatDetails = map[openai.Detail]pb.Detail{
	openai.DetailAuto: pb.Detail_DETAIL_AUTO, openai.DetailLow: pb.Detail_DETAIL_LOW,
	openai.DetailHigh: pb.Detail_DETAIL_HIGH,
}

// part is a text, or an image that is fetched where a URL names it.
func (a chatAsker) part(ctx context.Context, p openai.Part) (*pb.Part, error) {
	if p.Image == nil {
		return client.Text(p.Text), nil
	}
	data := p.Image.Data
	if p.Image.URL != "" {
		if a.fetch == nil {
			return nil, invalidField(p.Image.Param, "images are not fetched (--no-fetch)")
		}
		var err error
		if data, err = a.fetch(ctx, p.Image.URL); err != nil {
			return nil, &itemError{codeOf(err), fmt.Errorf("body.%s: %w", p.Image.Param, err)}
		}
	}
	part := client.ImageBytes(data)
	part.GetImage().Detail = chatDetails[p.Image.Detail]
	return part, nil
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
	u := out.GetUsage()
	c := openai.ChatCompletion{
		ID: openai.ChatPrefix + out.GetId(), Object: openai.ChatObject, Created: time.Now().Unix(), Model: out.GetModel(),
		Usage: openai.NewUsage(
			int(u.GetPromptTokens()), int(u.GetImageTokens()), int(u.GetCachedTokens()), int(u.GetCompletionTokens()),
		).WithReasoning(int(u.GetReasoningTokens())),
	}
	answers := out.GetChoices()
	if len(answers) == 0 {
		answers = []*pb.Choice{{
			Text: out.GetText(), Reasoning: out.GetReasoning(), FinishReason: out.GetFinishReason(),
			MatchedStop: out.MatchedStop,
		}}
	}
	for i, a := range answers {
		c.Choices = append(c.Choices, openai.ChatChoice{
			Index:        i,
			Message:      openai.AnswerMessage{Role: "assistant", Content: a.GetText(), Reasoning: a.GetReasoning()},
			FinishReason: finishNames[a.GetFinishReason()], StopReason: openai.NewStopReason(a.MatchedStop, nil, nil),
			Logprobs: logprobs(a.GetLogprobs()),
		})
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // a struct of plain values
	}
	r.Data = b
	r.FinishReason, r.Model, r.ModelDigest = finishNames[out.GetFinishReason()], out.GetModel(), out.GetModelDigest()
	r.PromptTokens, r.ImageTokens, r.CompletionTokens = u.GetPromptTokens(), u.GetImageTokens(), u.GetCompletionTokens()
}

func logprobs(in []*pb.Logprobs) *openai.Logprobs {
	if len(in) == 0 {
		return nil
	}
	out := &openai.Logprobs{}
	for _, l := range in {
		t := openai.NewTokenLogprob(l.GetToken().GetText(), l.GetToken().GetLogprob())
		for _, top := range l.GetTop() {
			t.Top = append(t.Top, openai.NewTopLogprob(top.GetText(), top.GetLogprob()))
		}
		out.Content = append(out.Content, t)
	}
	return out
}
