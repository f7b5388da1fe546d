package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/transcript"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// greetTime bounds how long the chat waits for a server's name before the first message.
const greetTime = 2 * time.Second

// greet tells a person what answers, and how to go on.
func (s *chatSession) greet(ctx context.Context) {
	if !s.view.person || s.view.quiet {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	where := "in this process"
	if s.server != "" {
		where = "at " + s.server
	}
	m, err := s.model(ctx)
	if err != nil {
		s.note(fmt.Sprintf("%v. Messages are tried all the same.", s.explain(err)))
	} else {
		s.note(fmt.Sprintf("%s %s, %d tokens of context.", m.GetName(), where, m.GetContext()))
	}
	s.note(`/help lists the commands, """ begins a message of several lines, Ctrl-D leaves.`)
	if n := len(s.talk.Turns); n > 0 {
		s.note(fmt.Sprintf("The conversation has %d questions.", n))
	}
}

// model is that which answers.
func (s *chatSession) model(ctx context.Context) (*pb.ModelInfo, error) {
	list, err := s.client.Models(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		if m.GetName() == s.request.GetModel() || s.request.GetModel() == "" {
			return m, nil
		}
	}
	return nil, fmt.Errorf("the server has no model %q", s.request.GetModel())
}

// command does what a /command says; nil is an unknown one.
func (s *chatSession) command(ctx context.Context, command *transcript.Command, name, arg string) {
	if command == nil {
		var names []string
		for _, c := range transcript.Commands {
			names = append(names, c.Name)
		}
		text := fmt.Sprintf("/%s: there is no such command. /help lists them", name)
		if near := transcript.Nearest(name, names); near != "" {
			text = fmt.Sprintf("/%s: there is no such command. Did you mean /%s?", name, near)
		}
		s.problem(errors.New(text))
		return
	}
	if err := s.perform(ctx, command.Name, arg); err != nil {
		s.problem(err)
	}
}

func (s *chatSession) perform(ctx context.Context, name, arg string) error {
	switch name {
	case "help":
		s.help()
	case "image":
		return s.addImages(ctx, arg)
	case "paste":
		return s.paste(ctx)
	case "read":
		return s.readTexts(arg)
	case "drop":
		gone, err := s.talk.Drop(arg)
		for _, img := range gone {
			s.note("dropped " + printable(filepath.Base(img.Name)))
		}
		return wrapCommand("/drop", err)
	case "undo", "retry", "edit":
		return s.again(ctx, name)
	case "clear":
		s.talk.Clear()
		s.note("The conversation is forgotten.")
	case "system":
		s.system(arg)
	case "set":
		if arg == "" {
			s.listSettings()
			return nil
		}
		return s.change(arg)
	case "show":
		return s.show(ctx)
	case "schema", "choices":
		return s.constrain(name, arg)
	case "tokens":
		return s.tokens(ctx)
	case "timing":
		return s.timing()
	case "save":
		return s.save(arg)
	case "load":
		return s.open(arg)
	}
	return nil
}

func wrapCommand(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

// again goes back to the last question.
func (s *chatSession) again(ctx context.Context, name string) error {
	none := errors.New("/" + name + ": there is no question yet")
	switch name {
	case "undo":
		if _, ok := s.talk.Undo(); !ok {
			return none
		}
		s.note(fmt.Sprintf("The last question is forgotten; %d are left.", len(s.talk.Turns)))
	case "retry":
		if !s.talk.Retry() {
			return none
		}
		s.answer(ctx)
	case "edit":
		text, ok := s.talk.Take()
		if !ok {
			return none
		}
		s.next = text
		if !s.view.edits {
			s.tell("%s", text)
		}
	}
	return nil
}

func (s *chatSession) help() {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, c := range transcript.Commands {
		fmt.Fprintf(t, "/%s\t%s\n", strings.TrimSpace(c.Name+" "+c.Args), c.Help)
	}
	_ = t.Flush() // into memory
	s.tell("%s%s", b.String(), helpKeys)
}

const helpKeys = `
A path in a message adds its image; so does dragging a file into the window.
""" begins and ends a message of several lines; pasted lines stay one message.
Alt-Enter   another line            Ctrl-G      edit the message in $EDITOR
Tab         complete                Up, Ctrl-R  earlier messages
Ctrl-C      clear the line, or stop the answer
Ctrl-D      leave`

// system sets the instructions, or shows them.
func (s *chatSession) system(arg string) {
	switch arg {
	case "":
		if s.talk.System == "" {
			s.tell("There are no instructions. /system TEXT gives some.")
			return
		}
		s.tell("%s", s.talk.System)
		return
	case "off":
		s.talk.System = ""
	default:
		s.talk.System = arg
	}
	s.note("The instructions count from the next message on.")
}

func (s *chatSession) listSettings() {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, o := range chatSettings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", o.name, orDefault(o.show(s)), o.help)
	}
	_ = t.Flush()
	s.tell("%s", strings.TrimRight(b.String(), "\n"))
}

// show tells what answers, how, and what was said.
func (s *chatSession) show(ctx context.Context) error {
	m, err := s.model(ctx)
	if err != nil {
		return s.explain(err)
	}
	where := "in this process"
	if s.server != "" {
		where = s.server
	}
	s.tell("model         %s (%s), %d tokens of context", m.GetName(), where, m.GetContext())
	s.tell("conversation  %d questions, %d images", len(s.talk.Turns), s.talk.Images())
	for i, img := range s.talk.Pending {
		s.tell("waiting       %d: %s, %s, %d×%d pixels", i+1, printable(img.Name), img.Format, img.Width, img.Height)
	}
	if s.talk.System != "" {
		s.tell("instructions  %s", s.talk.System)
	}
	switch c := s.request.GetConstraint(); {
	case c.GetChoices() != nil:
		s.tell("choices       %s", strings.Join(c.GetChoices().GetTexts(), ", "))
	case c.GetJsonSchema() != "":
		s.tell("schema        %d bytes", len(c.GetJsonSchema()))
	}
	for _, o := range chatSettings {
		if v := o.show(s); v != "" {
			s.tell("%-13s %s", o.name, v)
		}
	}
	return nil
}

// constrain holds answers to a schema or to choices.
func (s *chatSession) constrain(name, arg string) error {
	switch arg {
	case "":
		want := map[string]string{"schema": "a file", "choices": "texts, as yes,no"}[name]
		return fmt.Errorf("/%s: want %s, or off", name, want)
	case "off":
		s.request.Constraint = nil
		s.note("Answers are free again.")
		return nil
	}
	f := constraintFlags{schema: s.files.Expand(transcript.Unquote(arg))}
	if name == "choices" {
		f = constraintFlags{choices: splitChoices(arg)}
	}
	c, err := f.constraint()
	if err != nil {
		return err
	}
	s.request.Constraint = c
	s.note(fmt.Sprintf("Answers are held to the %s, until /%s off.", name, name))
	return nil
}

func splitChoices(arg string) (list []string) {
	for _, text := range strings.Split(arg, ",") {
		if text = strings.TrimSpace(text); text != "" {
			list = append(list, text)
		}
	}
	return list
}

// tokens counts what the next request has without its new message.
func (s *chatSession) tokens(ctx context.Context) error {
	in := s.build()
	messages := in.GetChat().GetMessages()
	if len(messages) == 0 {
		s.tell("The conversation is empty.")
		return nil
	}
	if messages[len(messages)-1].GetRole() == pb.Role_ROLE_ASSISTANT {
		in.GetChat().ContinueFinalMessage = true
		in.Constraint = nil
	}
	n, err := s.client.CountTokens(ctx, in)
	if err != nil {
		return s.explain(err)
	}
	left := max(0, int(n.GetContext())-int(n.GetPromptTokens()))
	s.tell("%d tokens: %d of text, %d of images. The context has %d, so %d are left.",
		n.GetPromptTokens(), n.GetTextTokens(), n.GetImageTokens(), n.GetContext(), left)
	return nil
}

// timing tells where the time of the last answer went.
func (s *chatSession) timing() error {
	if s.last == nil {
		return errors.New("/timing: there is no answer yet")
	}
	t := s.last.GetTimings()
	for _, row := range []struct {
		name string
		took *durationpb.Duration
	}{
		{"images decoded", t.GetPreprocess()}, {"text to tokens", t.GetTokenize()}, {"images encoded", t.GetEncode()},
		{"waited", t.GetQueue()}, {"prompt run", t.GetPrefill()}, {"first token", t.GetTtft()}, {"answer", t.GetDecode()},
		{"in all", t.GetTotal()},
	} {
		s.tell("%-15s %10.1f ms", row.name, float64(row.took.AsDuration().Microseconds())/1000)
	}
	return nil
}

// save writes the conversation as a request that could be sent as it is.
func (s *chatSession) save(arg string) error {
	marshal, kind := transcript.MarshalOpenAI, "an OpenAI request"
	for suffix, f := range map[string]func(*pb.GenerateRequest) ([]byte, error){
		" grpc": transcript.MarshalGRPC, " openai": transcript.MarshalOpenAI,
	} {
		if path, ok := strings.CutSuffix(arg, suffix); ok {
			if arg, marshal = strings.TrimSpace(path), f; suffix == " grpc" {
				kind = "a gRPC request"
			}
			break
		}
	}
	if arg == "" {
		return errors.New("/save: want a file to write, as /save talk.json")
	}
	in := s.build()
	messages := in.GetChat().GetMessages()
	if len(messages) == 0 {
		return errors.New("/save: the conversation is empty")
	}
	in.GetChat().ContinueFinalMessage = messages[len(messages)-1].GetRole() == pb.Role_ROLE_ASSISTANT
	data, err := marshal(in)
	if err != nil {
		return fmt.Errorf("/save: %w", err)
	}
	path := s.files.Expand(transcript.Unquote(arg))
	if err := transcript.WriteFile(path, data); err != nil {
		return fmt.Errorf("/save: %w", err)
	}
	s.note(fmt.Sprintf("saved %d questions to %s as %s", len(s.talk.Turns), printable(path), kind))
	return nil
}

// open goes on with a saved conversation; the one there was is forgotten.
func (s *chatSession) open(arg string) error {
	if arg == "" {
		return errors.New("/load: want a file that /save wrote, as /load talk.json")
	}
	request, talk, err := loadConversation(s.files.Expand(transcript.Unquote(arg)))
	if err != nil {
		return fmt.Errorf("/load: %w", err)
	}
	if request.MaxTokens == nil {
		request.MaxTokens = s.begun.MaxTokens
	}
	s.request, s.talk = request, talk
	s.note(fmt.Sprintf("The conversation has %d questions and %d images.", len(talk.Turns), talk.Images()))
	return nil
}
