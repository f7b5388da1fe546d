package caption

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/imaging"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// Server answers: a client.Client, with one server behind it or several.
type Server interface {
	Generate(context.Context, *pb.GenerateRequest) (*pb.GenerateResponse, error)
	// Healthy gives nil where requests are taken.
	Healthy(context.Context) error
}

// imageAsker asks a configuration's questions about images.
type imageAsker struct {
	config   *Config
	priority pb.Priority
}

// Look implements Asker.
func (a imageAsker) Look(r *Row, data []byte) error {
	h, err := imaging.ReadHeader(context.Background(), data, imaging.DefaultLimits())
	if err != nil {
		return &itemError{codeInvalid, err}
	}
	r.Format, r.Width, r.Height = h.Format, h.Width, h.Height
	return nil
}

// Request implements Asker.
func (a imageAsker) Request(_ context.Context, data []byte, prompt string) (*pb.GenerateRequest, error) {
	return a.config.request(data, prompt, a.priority), nil
}

// Answer implements Asker.
func (a imageAsker) Answer(r *Row, out *pb.GenerateResponse) { a.config.answer(r, out) }

// request is what asks one question about an image.
func (c *Config) request(image []byte, prompt string, p pb.Priority) *pb.GenerateRequest {
	part := client.ImageBytes(image)
	part.GetImage().Detail = details[c.Detail]
	in := client.Chat(client.User(part, client.Text(prompt)))
	if c.Raw {
		in = client.Prompt(part, client.Text(prompt))
	}
	in.MaxTokens, in.Priority = proto.Uint32(c.MaxTokens), p
	in.Sampling = &pb.Sampling{Temperature: c.Temperature, TopP: c.TopP, TopK: c.TopK, Seed: proto.Uint64(c.Seed)}
	switch {
	case c.Schema != "":
		in.Constraint = &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: c.Schema}}
	case len(c.Choices) > 0:
		in.Constraint = &pb.Constraint{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{
			Texts: c.Choices, Scores: scored(c.Choices),
		}}}
	}
	return in
}

// scored tells whether a server tells scores of so many choices, whatever its tokenizer: 64 of 1024 tokens together,
// with and without a space before them. No token is less than a byte.
func scored(choices []string) bool {
	bytes := 0
	for i, c := range choices {
		bytes += 2*len(c) + 3
		if slices.Index(choices, c) < i {
			return false
		}
	}
	return len(choices) <= 64 && bytes <= 1024
}

// verdict is what to do about a call that failed.
type verdict int

const (
	itemFailed verdict = iota // asking again would fail again
	tryLater                  // the server is full and says when to come again
	tryAgain                  // something went wrong that may not go wrong again
	runFailed                 // every other item would fail the same way
)

// shrinkMaxTokens halves max_tokens where that is all that is wrong with a request.
func shrinkMaxTokens(in *pb.GenerateRequest, err error) bool {
	if in.GetMaxTokens() < 2 || status.Code(err) != codes.InvalidArgument {
		return false
	}
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok && len(bad.GetFieldViolations()) == 1 &&
			bad.GetFieldViolations()[0].GetField() == "max_tokens" {
			in.MaxTokens = proto.Uint32(in.GetMaxTokens() / 2)
			return true
		}
	}
	return false
}

// errServerStopped is the error of an answer that the server cut short because it shut down.
var errServerStopped = status.Error(codes.Unavailable, "the server shut down before the answer was whole")

// judge classifies an error of a call.
func judge(err error) verdict {
	if _, ok := client.RetryDelay(err); ok {
		return tryLater
	}
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return runFailed
	case codes.InvalidArgument,
		codes.FailedPrecondition,
		codes.OutOfRange,
		codes.NotFound,
		codes.Unimplemented,
		codes.ResourceExhausted:
		return itemFailed
	}
	return tryAgain
}

// call makes one try and checks that the answer is whole.
func call(ctx context.Context, s Server, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	out, err := s.Generate(ctx, in)
	if err == nil && out.GetFinishReason() == pb.FinishReason_FINISH_REASON_CANCELLED {
		return nil, errServerStopped
	}
	return out, err
}

var finishNames = map[pb.FinishReason]string{
	pb.FinishReason_FINISH_REASON_STOP:   "stop",
	pb.FinishReason_FINISH_REASON_LENGTH: "length",

	pb.FinishReason_FINISH_REASON_CONTENT_FILTER: "content_filter",
}

// answer fills a row in from an answer.
func (c *Config) answer(r *Row, out *pb.GenerateResponse) {
	text := strings.TrimSpace(out.GetText())
	r.Text = c.Prepend + text + c.Append
	r.FinishReason = finishNames[out.GetFinishReason()]
	u := out.GetUsage()
	r.PromptTokens, r.ImageTokens, r.CompletionTokens = u.GetPromptTokens(), u.GetImageTokens(), u.GetCompletionTokens()
	r.Seed, r.Model, r.ModelDigest = proto.Uint64(out.GetSeed()), out.GetModel(), out.GetModelDigest()
	switch {
	case c.Schema != "" && r.FinishReason == "stop":
		r.Data = compactJSON(text)
	case len(c.Choices) > 0 && r.FinishReason == "stop":
		r.Choice = text
		if i := slices.Index(c.Choices, out.GetText()); i >= 0 && i < len(out.GetChoiceScores()) {
			r.ChoiceScore = proto.Float64(float64(out.GetChoiceScores()[i]))
		}
	}
}

// fail fills a row in from an error.
func (r *Row) fail(err error) {
	var local *itemError
	if errors.As(err, &local) {
		r.ErrorCode, r.Error = local.code, local.Error()
		return
	}
	st := status.Convert(err)
	r.ErrorCode, r.Error = codeName(st.Code()), st.Message()
}

// codeName is a code as proto files write it.
func codeName(c codes.Code) string {
	var b strings.Builder
	for i, r := range c.String() {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// ErrOtherModel is the error of a run in which an answer came from another model than the run began with.
var ErrOtherModel = errors.New("a server answers with another model than the run began with")

// checkModel refuses an answer of another model: its key would be wrong.
func (c *Config) checkModel(out *pb.GenerateResponse) error {
	if out.GetModelDigest() != c.ModelDigest {
		return fmt.Errorf(
			"%w: digest %s, want %s",
			ErrOtherModel,
			clip(out.GetModelDigest(), 12),
			clip(c.ModelDigest, 12),
		)
	}
	return nil
}

// compactJSON is text without white space if it is JSON, else nil.
func compactJSON(text string) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, []byte(text)) != nil {
		return nil
	}
	return b.Bytes()
}
