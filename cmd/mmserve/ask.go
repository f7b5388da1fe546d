package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/transcript"
	"github.com/mmserve/mmserve/internal/imaging"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

type askCmd struct {
	connectFlags
	lengthFlags
	temperatureFlags
	System   string   `placeholder:"TEXT" help:"Instructions that come before the question."`
	Schema   string   `placeholder:"FILE" help:"Hold the answer to a JSON schema."`
	Choices  []string `placeholder:"A,B" help:"Hold the answer to one of these texts."`
	Seed     *uint64  `placeholder:"N" help:"Start of the random sequence (default: drawn)."`
	Detail   string   `enum:"auto,low,high" default:"auto" help:"What images may cost: auto, low (one tile, fewest tokens) or high."`
	JSON     bool     `name:"json" help:"Write one JSON object: the contract's GenerateResponse, with text, finish_reason, usage, timings."`
	Quiet    bool     `short:"q" help:"Write the answer alone: no notes on standard error."`
	Question string   `arg:"" help:"What to ask; - reads it from standard input."`
	Images   []string `arg:"" optional:"" name:"image" help:"Image files, before the question; - is one on standard input."`
}

// Help is what --help adds.
func (askCmd) Help() string {
	return `The exit status is 0 only if there is an answer. A name that begins with a dash goes behind --.

Examples:
  mmserve ask "What is on the label?" label.jpg
  mmserve ask "Is there a person?" door.jpg --choices yes,no
  mmserve ask "Read the receipt" receipt.png --schema receipt.json --server localhost:8080
  git diff | mmserve ask - --system "Write a commit message" --json | jq -r .text
  mmserve ask "What is this?" -- -odd-name.png`
}

// Run answers one question.
func (k askCmd) Run(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	in, err := k.request(ctx)
	if err != nil {
		return err
	}
	cl, end, err := k.connect(ctx, c, quiet(log))
	if err != nil {
		return err
	}
	ctx, stop := untilSignal(ctx) // from here on: until then an interrupt ends the process at once
	defer stop()
	v := newView(os.Stdin, out, os.Stderr, os.Getenv)
	v.source = len(k.Choices) > 0 || k.Schema != ""
	if k.JSON {
		err = k.whole(ctx, cl, in, out)
	} else {
		err = k.stream(ctx, cl, in, v)
	}
	if ctx.Err() != nil {
		err = exitError(exitInterrupted)
	} else if grpcStatus(err) != nil {
		err = k.explain(err)
	}
	return errors.Join(err, end())
}

// request is the question with its images.
func (k askCmd) request(ctx context.Context) (*pb.GenerateRequest, error) {
	question := k.Question
	stdin := 0
	for _, name := range append(k.Images, question) {
		if name == "-" {
			stdin++
		}
	}
	if stdin > 1 {
		return nil, usageError{errors.New("standard input is either the question or one image: want one -")}
	}
	var parts []*pb.Part
	for _, path := range k.Images {
		img, rgb, err := k.image(ctx, path)
		if err != nil {
			return nil, err
		}
		imaging.Release(rgb)
		part := client.ImageBytes(img.Data)
		part.GetImage().Detail = details[k.Detail]
		parts = append(parts, part)
	}
	if question == "-" {
		data, err := io.ReadAll(io.LimitReader(os.Stdin, maxLine+1))
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		if len(data) > maxLine {
			return nil, fmt.Errorf("standard input has more than %d MiB", maxLine>>20)
		}
		question = strings.TrimSpace(string(data))
	}
	if strings.TrimSpace(question) == "" {
		return nil, usageError{errors.New("the question is empty")}
	}
	var messages []*pb.Message
	if k.System != "" {
		messages = append(messages, client.System(client.Text(k.System)))
	}
	in := client.Chat(append(messages, client.User(append(parts, client.Text(question))...))...)
	in.MaxTokens = &k.MaxTokens
	in.Sampling = &pb.Sampling{Temperature: k.Temperature, Seed: k.Seed}
	var err error
	in.Constraint, err = constraintFlags{k.Schema, k.Choices}.constraint()
	return in, err
}

// image reads an image file, or standard input.
func (k askCmd) image(ctx context.Context, path string) (*transcript.Image, *imaging.RGB, error) {
	if path != "-" {
		return readImage(ctx, path)
	}
	most := imaging.DefaultLimits().MaxBytes
	data, err := io.ReadAll(io.LimitReader(os.Stdin, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("more than %d MiB", most>>20)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("standard input: %w", err)
	}
	return decodeImage(ctx, "standard input", data)
}

// whole writes the answer as JSON.
func (k askCmd) whole(ctx context.Context, cl *client.Client, in *pb.GenerateRequest, out io.Writer) error {
	answer, err := cl.Generate(ctx, in)
	if noTemplate(err) {
		answer, err = cl.Generate(ctx, completion(in))
	}
	if err != nil {
		return err
	}
	answer.Text = strings.TrimLeft(answer.GetText(), " \n")
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: false}.Marshal(answer)
	if err != nil {
		return err
	}
	var same json.RawMessage = data
	if data, err = json.Marshal(same); err != nil { // protojson varies its spaces
		return err
	}
	if _, err = fmt.Fprintf(out, "%s\n", harmlessJSON(data)); err == nil && answer.GetText() == "" {
		return errEmpty
	}
	return err
}

// errEmpty is no answer.
var errEmpty = errors.New("the model gave an empty answer: ask otherwise, or allow more with --max-tokens")

// completion asks a model without a chat template to go on with the question as it is.
func completion(in *pb.GenerateRequest) *pb.GenerateRequest {
	raw := proto.Clone(in).(*pb.GenerateRequest)
	var parts []*pb.Part
	for _, m := range in.GetChat().GetMessages() {
		parts = append(parts, m.GetParts()...)
	}
	raw.Input = &pb.GenerateRequest_Prompt{Prompt: &pb.Prompt{Parts: parts}}
	return raw
}

// stream writes the answer as it comes.
func (k askCmd) stream(ctx context.Context, cl *client.Client, in *pb.GenerateRequest, v *view) error {
	finish, err := k.show(ctx, cl, in, v)
	if noTemplate(err) {
		finish, err = k.show(ctx, cl, completion(in), v)
	}
	if err != nil {
		return err
	}
	if finish.GetFinishReason() == pb.FinishReason_FINISH_REASON_LENGTH && !k.Quiet {
		fmt.Fprintf(os.Stderr, "mmserve: the answer was cut after %d tokens: --max-tokens allows more\n",
			finish.GetUsage().GetCompletionTokens())
	}
	return nil
}

func (k askCmd) show(
	ctx context.Context, cl *client.Client, in *pb.GenerateRequest, v *view,
) (finish *pb.StreamFinish, err error) {
	w := v.answer()
	defer func() { err = errors.Join(err, w.Close()) }()
	begun := false
	for event, err := range cl.Stream(ctx, in) {
		if err != nil {
			return nil, err
		}
		if f := event.GetFinish(); f != nil {
			finish = f
		}
		text := event.GetDelta().GetText()
		if !begun {
			text = strings.TrimLeft(text, " \n")
		}
		begun = begun || text != ""
		if err := w.WriteString(text); err != nil {
			return nil, err
		}
	}
	if !begun {
		return nil, errEmpty
	}
	return finish, nil
}

// explain names the files that an error is about.
func (k askCmd) explain(err error) error {
	s := &chatSession{server: k.Server, talk: new(transcript.Conversation)}
	var parts []transcript.Part
	for _, path := range k.Images {
		parts = append(parts, transcript.Part{Image: &transcript.Image{Name: path}})
	}
	s.talk.System = k.System
	s.talk.Turns = []transcript.Turn{{Question: append(parts, transcript.Part{Text: k.Question})}}
	return errors.New(strings.ReplaceAll(s.explain(err).Error(), "/set ", "--"))
}
