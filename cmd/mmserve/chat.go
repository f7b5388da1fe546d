package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/lineedit"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/transcript"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

type chatCmd struct {
	connectFlags
	lengthFlags
	temperatureFlags
	System    string   `placeholder:"TEXT" help:"Instructions that come before the conversation."`
	Load      string   `placeholder:"FILE" help:"Go on with a conversation that /save wrote: the body of an OpenAI request, or of a gRPC one."`
	Schema    string   `placeholder:"FILE" help:"Hold answers to a JSON schema."`
	Choices   []string `placeholder:"A,B" help:"Hold answers to one of these texts."`
	NoHistory bool     `name:"no-history" help:"Keep nothing of what is typed for later runs (default: the last 1000 messages, in the user's state folder, for its owner alone)."`
	Plain     bool     `help:"Show answers as the model writes them, Markdown or not."`
	Quiet     bool     `short:"q" help:"Write answers alone: no greeting, no counts."`
}

// Help is what --help adds.
func (chatCmd) Help() string {
	return `In the chat, /help lists the commands. Name an image's path in a message, or drag the file into the window.
By pipe, each line is a message; the exit status is 0 only if all were answered.

Examples:
  mmserve chat                                       with the embedded model
  mmserve chat --model HuggingFaceTB/SmolVLM-256M-Instruct
  mmserve chat --server localhost:8080 --load talk.json
  printf 'what is this? star.png\n' | mmserve chat   one question, by pipe`
}

// Run reads messages until their end.
func (k chatCmd) Run(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	request, talk, err := k.begin()
	if err != nil {
		return err
	}
	cl, end, err := k.connect(ctx, c, log)
	if err != nil {
		return err
	}
	ctx, stop := untilHangup(ctx)
	defer stop()
	s := &chatSession{
		client: cl, server: k.Server, request: request, talk: talk, files: userFiles(),
		begun: proto.Clone(request).(*pb.GenerateRequest),
		view:  newView(os.Stdin, out, os.Stderr, os.Getenv),
	}
	s.view.quiet, s.view.source = k.Quiet, k.Plain
	history, err := k.history(s.view)
	if err != nil {
		s.problem(fmt.Errorf("no history is kept: %w", err))
	}
	if s.console, err = s.view.console(history, s.complete); err != nil {
		return errors.Join(err, end())
	}
	err = s.run(ctx)
	return errors.Join(s.console.Close(), err, end())
}

// begin is the request that all messages of the chat are sent with, and what was said before.
func (k chatCmd) begin() (*pb.GenerateRequest, *transcript.Conversation, error) {
	request, talk := new(pb.GenerateRequest), new(transcript.Conversation)
	if k.Load != "" {
		var err error
		if request, talk, err = loadConversation(k.Load); err != nil {
			return nil, nil, fmt.Errorf("--load: %w", err)
		}
	}
	if request.MaxTokens == nil {
		request.MaxTokens = &k.MaxTokens
	}
	if k.Temperature != nil {
		setSampling(request).Temperature = k.Temperature
	}
	if k.System != "" {
		talk.System = k.System
	}
	constraint, err := constraintFlags{k.Schema, k.Choices}.constraint()
	if constraint != nil {
		request.Constraint = constraint
	}
	return request, talk, err
}

// history is that of a person's; by pipe there is none.
func (k chatCmd) history(v *view) (*lineedit.History, error) {
	if k.NoHistory || !v.edits {
		return nil, nil
	}
	path, err := historyPath(os.Getenv)
	if err != nil {
		return nil, err
	}
	return lineedit.OpenHistory(path)
}

// historyPath is in the folder for what programs keep between runs, as the XDG base directories have it.
func historyPath(getenv func(string) string) (string, error) {
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "mmserve", "chat_history"), nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "state", "mmserve", "chat_history"), err
}

// loadConversation reads a saved conversation: how it was asked, and what was said.
func loadConversation(path string) (*pb.GenerateRequest, *transcript.Conversation, error) {
	request, err := transcript.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	talk, err := transcript.FromMessages(request.GetChat().GetMessages())
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	request.Input = nil
	return request, talk, nil
}
