// Package sdk calls mmserve with OpenAI's SDK for Go. BASE_URL names a server, BUSY_URL one with a single place; IMAGE
// is a file.
package sdk

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
)

func dial(t *testing.T, env string) (openai.Client, string) {
	t.Helper()
	url := os.Getenv(env)
	if url == "" {
		t.Skip(env + " is not set: make test-sdks sets it")
	}
	c := openai.NewClient(option.WithBaseURL(url), option.WithAPIKey(cmp.Or(os.Getenv("API_KEY"), "none")))
	list, err := c.Models.List(t.Context())
	if err != nil || len(list.Data) == 0 {
		t.Fatalf("models: %v, %v", list, err)
	}
	return c, list.Data[0].ID
}

// look asks about the image.
func look(t *testing.T, model string) openai.ChatCompletionNewParams {
	t.Helper()
	data, err := os.ReadFile(os.Getenv("IMAGE"))
	if err != nil {
		t.Fatal(err)
	}
	return openai.ChatCompletionNewParams{
		Model: model, Temperature: openai.Float(0),
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{
			openai.TextContentPart("describe"),
			openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{
				URL: "data:image/png;base64," + base64.StdEncoding.EncodeToString(data),
			}),
		})},
	}
}

func TestChatAndStream(t *testing.T) {
	c, model := dial(t, "BASE_URL")
	in := look(t, model)
	whole, err := c.Chat.Completions.New(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if got := whole.Choices[0]; got.Message.Content == "" || got.FinishReason != "stop" || whole.Usage.PromptTokens < 2 {
		t.Errorf("got %+v", whole)
	}
	in.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
	stream := c.Chat.Completions.NewStreaming(t.Context(), in)
	var sum openai.ChatCompletionAccumulator
	for stream.Next() {
		if !sum.AddChunk(stream.Current()) {
			t.Fatalf("a chunk does not fit: %+v", stream.Current())
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := sum.Choices[0].Message.Content, whole.Choices[0].Message.Content; got != want {
		t.Errorf("the stream says %q, the whole answer %q", got, want)
	}
	if sum.Usage.CompletionTokens != whole.Usage.CompletionTokens {
		t.Errorf("usage of the stream %+v, of the whole %+v", sum.Usage, whole.Usage)
	}
}

func TestSchema(t *testing.T) {
	c, model := dial(t, "BASE_URL")
	in := look(t, model)
	in.MaxCompletionTokens = openai.Int(100)
	in.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{
		JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{
			Name: "sight", Strict: openai.Bool(true),
			Schema: json.RawMessage(`{"type": "object", "additionalProperties": false, "required": ["color", "count"], "properties": {
				"color": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}}}`),
		},
	}
	whole, err := c.Chat.Completions.New(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Color string
		Count int
	}
	text := whole.Choices[0].Message.Content
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.Color != "red" && got.Color != "blue" {
		t.Errorf("%q: %v, %v", text, got, err)
	}
}

func TestResponse(t *testing.T) {
	c, model := dial(t, "BASE_URL")
	r, err := c.Responses.New(t.Context(), responses.ResponseNewParams{
		Model: model, Input: responses.ResponseNewParamsInputUnion{OfString: param.NewOpt("red")},
		MaxOutputTokens: openai.Int(4), Store: openai.Bool(false),
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != "completed" && r.Status != "incomplete" {
		t.Errorf("status %s", r.Status)
	}
	stream := c.Responses.NewStreaming(t.Context(), responses.ResponseNewParams{
		Model: model, Input: responses.ResponseNewParamsInputUnion{OfString: param.NewOpt("red")},
		MaxOutputTokens: openai.Int(4),
	})
	text := ""
	var last responses.ResponseStreamEventUnion
	for n := int64(0); stream.Next(); n++ {
		if last = stream.Current(); last.SequenceNumber != n {
			t.Errorf("event %d has the number %d", n, last.SequenceNumber)
		}
		if last.Type == "response.output_text.delta" {
			text += last.Delta
		}
	}
	if err := stream.Err(); err != nil || last.Response.OutputText() != text || text == "" {
		t.Errorf("%v: the deltas say %q, the response %q", err, text, last.Response.OutputText())
	}
}

func TestErrors(t *testing.T) {
	c, model := dial(t, "BASE_URL")
	in := look(t, model)
	in.Temperature = openai.Float(9)
	_, err := c.Chat.Completions.New(t.Context(), in)
	var e *openai.Error
	if !errors.As(err, &e) || e.StatusCode != 400 || e.Param != "temperature" || e.Message == "" {
		t.Errorf("got %v", err)
	}
}

// The one place is taken by a stream; the SDK asks again until that is aborted.
func TestBusyAndAbort(t *testing.T) {
	c, model := dial(t, "BUSY_URL")
	in := openai.ChatCompletionNewParams{
		Model: model, MaxTokens: openai.Int(400),
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("red")},
	}
	in.SetExtraFields(map[string]any{"ignore_eos": true})
	ctx, abort := context.WithCancel(t.Context())
	defer abort()
	stream := c.Chat.Completions.NewStreaming(ctx, in)
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	_, err := c.Chat.Completions.New(t.Context(), in, option.WithMaxRetries(0))
	var e *openai.Error
	if !errors.As(err, &e) || e.StatusCode != 429 {
		t.Fatalf("got %v, want a 429", err)
	}
	time.AfterFunc(100*time.Millisecond, abort)
	in.MaxTokens = openai.Int(2)
	if _, err := c.Chat.Completions.New(t.Context(), in, option.WithMaxRetries(8)); err != nil {
		t.Errorf("after the abort: %v", err)
	}
}
