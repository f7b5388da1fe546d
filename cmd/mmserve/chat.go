package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

type chatCmd struct {
	connectFlags
	lengthFlags
	temperatureFlags
	System string `placeholder:"TEXT" help:"Instructions that come before the conversation."`
}

const chatHelp = `/image PATH  add an image to your next message
/reset       forget the conversation
/quit        leave (Ctrl-D too); Ctrl-C stops an answer
`

// Run reads messages from standard input until its end.
func (k chatCmd) Run(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	cl, end, err := k.connect(ctx, c, log)
	if err != nil {
		return err
	}
	s := chatSession{cmd: k, client: cl, out: out, interactive: isTerminal(os.Stdin)}
	return errors.Join(s.run(ctx, os.Stdin), end())
}

// chatSession is a conversation: what was said, and the images that wait for the next message.
type chatSession struct {
	cmd         chatCmd
	client      *client.Client
	out         io.Writer
	interactive bool
	history     []*pb.Message
	pending     []*pb.Part
}

func (s *chatSession) run(ctx context.Context, in io.Reader) error {
	s.reset()
	s.say(chatHelp)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for {
		s.say("> ")
		if !lines.Scan() {
			s.say("\n")
			return lines.Err()
		}
		line := strings.TrimSpace(lines.Text())
		command, rest, _ := strings.Cut(line, " ")
		switch command {
		case "":
		case "/quit", "/exit":
			return nil
		case "/reset":
			s.reset()
		case "/help":
			fmt.Fprint(s.out, chatHelp)
		case "/image":
			s.addImage(strings.TrimSpace(rest))
		default:
			if strings.HasPrefix(line, "/") && !strings.Contains(command[1:], "/") {
				fmt.Fprintf(s.out, "unknown command %s\n%s", command, chatHelp)
				continue
			}
			s.ask(ctx, line)
		}
	}
}

// say writes what only a person at a terminal needs.
func (s *chatSession) say(text string) {
	if s.interactive {
		fmt.Fprint(s.out, text)
	}
}

func (s *chatSession) reset() {
	s.history, s.pending = nil, nil
	if s.cmd.System != "" {
		s.history = append(s.history, client.System(client.Text(s.cmd.System)))
	}
}

func (s *chatSession) addImage(path string) {
	if path == "" {
		fmt.Fprintln(s.out, "/image takes the path of an image file")
		return
	}
	data, err := os.ReadFile(strings.Trim(path, `"'`))
	if err != nil {
		fmt.Fprintln(s.out, err)
		return
	}
	s.pending = append(s.pending, client.ImageBytes(data))
	s.say("added; it goes with your next message\n")
}

// thoughts shows what a model thinks before it answers, with a blank line behind it. They are not kept in the history.
type thoughts struct {
	to  io.Writer
	any bool
}

func (t *thoughts) show(d *pb.StreamDelta) {
	if text := d.GetReasoning(); text != "" {
		t.any = true
		fmt.Fprint(t.to, text)
	}
	if t.any && d.GetText() != "" {
		t.any = false
		fmt.Fprint(t.to, "\n\n")
	}
}

// ask sends the conversation with one more message and streams the answer. An answer that was stopped stays in the
// history as far as it came; a request that failed leaves no trace, so that it can be put differently.
func (s *chatSession) ask(ctx context.Context, text string) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	question := client.User(append(s.pending, client.Text(text))...)
	req := client.Chat(append(s.history[:len(s.history):len(s.history)], question)...)
	req.MaxTokens = &s.cmd.MaxTokens
	if s.cmd.Temperature != nil {
		req.Sampling = &pb.Sampling{Temperature: s.cmd.Temperature}
	}
	var answer strings.Builder
	thoughts := thoughts{to: s.out}
	for event, err := range s.client.Stream(ctx, req) {
		if err != nil {
			if ctx.Err() == nil {
				fmt.Fprintf(s.out, "%v\n", plain(err))
				return
			}
			break
		}
		thoughts.show(event.GetDelta())
		piece := event.GetDelta().GetText()
		if answer.Len() == 0 {
			piece = strings.TrimLeft(piece, " ")
		}
		answer.WriteString(piece)
		fmt.Fprint(s.out, piece)
	}
	fmt.Fprintln(s.out)
	if answer.Len() > 0 {
		s.history = append(s.history, question, client.Assistant(client.Text(answer.String())))
		s.pending = nil
	}
}
