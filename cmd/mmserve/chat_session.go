package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/lineedit"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/markdown"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/transcript"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// chatSession is a chat: what was said, how it is asked, and where it is shown.
type chatSession struct {
	client  *client.Client
	server  string // empty: this process
	view    *view
	console console
	files   transcript.Files
	talk    *transcript.Conversation
	request *pb.GenerateRequest // settings of all messages; it has no input
	begun   *pb.GenerateRequest // those of the command line
	detail  pb.Detail
	hidden  bool   // no counts after answers
	next    string // to begin the next message with
	line    int    // of the input
	failed  bool   // a message was not answered, or a command did not do what it is for
	last    *pb.StreamFinish
}

const (
	promptText = "> "
	moreText   = ". "
	quotes     = `"""`
)

// run reads messages and commands until the input ends or a command leaves.
func (s *chatSession) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, s.console.Interrupt)()
	s.greet(ctx)
	for ctx.Err() == nil {
		text, err := s.read()
		switch {
		case errors.Is(err, lineedit.ErrInterrupt):
			s.note("Ctrl-C clears the line, and stops an answer. Leave with Ctrl-D or /bye.")
			continue
		case errors.Is(err, io.EOF):
			return s.status(ctx)
		case err != nil:
			return err
		}
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		if err := s.console.Remember(text); err != nil {
			s.problem(fmt.Errorf("history: %w", err))
		}
		if command, name, arg, ok := transcript.ParseCommand(text); ok {
			if command != nil && command.Name == "bye" {
				return s.status(ctx)
			}
			s.command(ctx, command, name, arg)
			continue
		}
		s.say(ctx, text)
	}
	return s.status(ctx)
}

// status is an error where something was not answered, and nobody was there to see it.
func (s *chatSession) status(ctx context.Context) error {
	if ctx.Err() != nil {
		return exitError(exitInterrupted)
	}
	if s.failed && !s.view.person {
		return exitError(1)
	}
	return nil
}

// read gives the next message: a line, or what stands between two """.
func (s *chatSession) read() (string, error) {
	prompt := promptText
	switch n := len(s.talk.Pending); {
	case n == 1:
		prompt = "[1 image] " + prompt
	case n > 1:
		prompt = fmt.Sprintf("[%d images] %s", n, prompt)
	}
	initial := s.next
	s.next = ""
	s.line++
	text, err := s.console.ReadLine(prompt, initial)
	rest, open := strings.CutPrefix(strings.TrimSpace(text), quotes)
	if err != nil || !open {
		return text, err
	}
	var b strings.Builder
	for {
		if before, closed := strings.CutSuffix(strings.TrimRight(rest, " \t"), quotes); closed {
			b.WriteString(before)
			return b.String(), nil
		}
		b.WriteString(rest + "\n")
		s.line++
		rest, err = s.console.ReadLine(moreText, "")
		if errors.Is(err, io.EOF) {
			return "", fmt.Errorf("a message that %s begins has no %s at its end", quotes, quotes)
		}
		if err != nil {
			return "", err
		}
	}
}

// say sends a message, with the images that it names. One of images alone waits for its text.
func (s *chatSession) say(ctx context.Context, text string) {
	parts, missing := s.files.Split(text)
	for _, path := range missing {
		s.problem(fmt.Errorf("%s: no such file. The message was not sent", printable(path)))
	}
	if len(missing) > 0 {
		s.next = text
		return
	}
	only := true
	for _, p := range parts {
		if p.Image == nil {
			only = false
			continue
		}
		img, err := s.load(ctx, p.Image.Name)
		if err != nil {
			s.problem(fmt.Errorf("%w. The message was not sent", err))
			s.next = text
			return
		}
		*p.Image = *img
	}
	if only {
		for _, p := range parts {
			s.talk.Pending = append(s.talk.Pending, p.Image)
		}
		return
	}
	s.talk.Ask(parts)
	s.answer(ctx)
}

// build is the request for the conversation as it is.
func (s *chatSession) build() *pb.GenerateRequest {
	in := proto.Clone(s.request).(*pb.GenerateRequest)
	in.Input = &pb.GenerateRequest_Chat{Chat: &pb.Chat{Messages: s.talk.Messages(s.detail)}}
	return in
}

// answer asks the last question and streams its answer. One that was stopped is kept as far as it came. Where there is
// none, the question is kept.
func (s *chatSession) answer(ctx context.Context) {
	ctx, stop := s.console.Answering(ctx)
	defer stop()
	began, first := time.Now(), time.Duration(0)
	var text strings.Builder
	w := s.view.answer()
	thoughts := thoughts{view: s.view}
	s.last = nil
	var failure error
	for event, err := range s.client.Stream(ctx, s.build()) {
		if err != nil {
			failure = err
			break
		}
		if f := event.GetFinish(); f != nil {
			s.last = f
		}
		d := event.GetDelta()
		if d == nil {
			continue
		}
		if first == 0 {
			first = time.Since(began)
		}
		thoughts.show(d)
		piece := d.GetText()
		if text.Len() == 0 {
			piece = strings.TrimLeft(piece, " \n")
		}
		text.WriteString(piece)
		if err := w.WriteString(piece); err != nil { // nobody reads any more
			failure = err
			break
		}
	}
	if err := w.Close(); failure == nil {
		failure = err
	}
	s.ended(ctx, failure, text.String(), first)
}

// ended tells how an answer went, and keeps it.
func (s *chatSession) ended(ctx context.Context, failure error, text string, first time.Duration) {
	switch {
	case failure == nil:
		s.talk.Answer(text)
		s.counts(first)
	case ctx.Err() != nil && text != "":
		s.talk.Answer(text)
		s.failed = true
		s.note("Stopped. What there is of the answer is kept; /retry asks again, /undo forgets both.")
	case ctx.Err() != nil:
		s.failed = true
		s.note("Stopped. Your message is kept: /retry sends it again, /edit changes it.")
	default:
		s.problem(s.explain(failure))
		if gone := s.dropNamed(failure); gone != nil {
			s.note(printable(gone.Name) + " was taken out.")
		}
		if len(s.talk.Turns) > 0 {
			s.note("Your message is kept: /retry sends it again, /edit changes it.")
		}
	}
}

// dropNamed takes the image out of the last question that an error names, so that it does not fail again.
func (s *chatSession) dropNamed(err error) (gone *transcript.Image) {
	at, ok := s.imageOf(err)
	if !ok || at.turn != len(s.talk.Turns)-1 {
		return nil
	}
	q := s.talk.Turns[at.turn].Question
	gone = q[at.part].Image
	s.talk.Turns[at.turn].Question = append(q[:at.part:at.part], q[at.part+1:]...)
	return gone
}

// counts tells what an answer took.
func (s *chatSession) counts(first time.Duration) {
	if s.hidden || s.view.quiet || !s.view.person {
		return
	}
	u, t := s.last.GetUsage(), s.last.GetTimings()
	line := fmt.Sprintf("%d tokens in", u.GetPromptTokens())
	var of []string
	if n := u.GetImageTokens(); n > 0 {
		of = append(of, fmt.Sprintf("%d of images", n))
	}
	if n := u.GetCachedTokens(); n > 0 {
		of = append(of, fmt.Sprintf("%d cached", n))
	}
	if len(of) > 0 {
		line += " (" + strings.Join(of, ", ") + ")"
	}
	line += fmt.Sprintf(" · %d out · first after %v", u.GetCompletionTokens(), first.Round(time.Millisecond))
	if n, d := u.GetCompletionTokens(), t.GetDecode().AsDuration(); n > 1 && d > 0 {
		line += fmt.Sprintf(" · %.0f tokens/s", float64(n-1)/d.Seconds())
	}
	s.note(line)
	if s.last.GetFinishReason() == pb.FinishReason_FINISH_REASON_LENGTH {
		s.note(fmt.Sprintf("The answer was cut after %d tokens: /set max_tokens N allows more.", u.GetCompletionTokens()))
	}
}

// note tells a person something, dim.
func (s *chatSession) note(text string) {
	if s.view.quiet || !s.view.person {
		return
	}
	columns, _ := s.view.size()
	for _, row := range markdown.Wrap(markdown.Clean(text), columns-1) {
		fmt.Fprintln(s.view.out, s.view.dim(row))
	}
}

// problem tells of what went wrong: by pipe on standard error, with the line.
func (s *chatSession) problem(err error) {
	s.failed = true
	text := markdown.Clean(err.Error())
	if !s.view.person {
		fmt.Fprintf(s.view.err, "mmserve: line %d: %s\n", s.line, text)
		return
	}
	columns, _ := s.view.size()
	for _, row := range markdown.Wrap(text, columns-1) {
		fmt.Fprintln(s.view.out, row)
	}
}

// tell writes what a command was asked for.
func (s *chatSession) tell(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if s.view.terminal {
		text = markdown.Clean(text)
	}
	fmt.Fprintln(s.view.out, text)
}

// thoughts shows what a model thinks before it answers, with a blank line behind it. They are not kept.
type thoughts struct {
	view  *view
	clean markdown.Cleaner
	any   bool
}

func (t *thoughts) show(d *pb.StreamDelta) {
	if text := d.GetReasoning(); text != "" {
		t.any = true
		if t.view.terminal {
			text = t.view.dim(t.clean.Clean(text))
		}
		fmt.Fprint(t.view.out, text)
	}
	if t.any && d.GetText() != "" {
		t.any = false
		fmt.Fprint(t.view.out, "\n\n")
	}
}
