package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/transcript"
)

// place is a part of a conversation.
type place struct{ turn, part int }

// partField is how the contract names a part of a message.
var partField = regexp.MustCompile(`^chat\.messages\[(\d+)\](?:\.parts\[(\d+)\])?(.*)$`)

// explain says an error of a call in the words of who types: what it is about is named as they named it.
func (s *chatSession) explain(err error) error {
	st := grpcStatus(err)
	if st == nil {
		if errors.Is(err, client.ErrTruncated) {
			return errors.New("the connection broke in the middle of the answer")
		}
		return err
	}
	if list := violations(st); len(list) > 0 {
		var all []string
		for _, v := range list {
			all = append(all, s.inWords(v.GetField(), v.GetDescription()))
		}
		return errors.New(strings.Join(all, "; "))
	}
	return explainStatus(st, s.server)
}

// explainStatus says a status in words that tell what to do.
func explainStatus(st *status.Status, server string) error {
	text := st.Message()
	switch st.Code() {
	case codes.Unavailable:
		if strings.Contains(text, "connection refused") || strings.Contains(text, "no such host") ||
			strings.Contains(text, "no such file") {
			return hinted(fmt.Errorf("no server answers at %s: is it running? `mmserve serve` starts one (%s)", server, text))
		}
		if strings.Contains(text, "server preface") { // before any call
			return fmt.Errorf("what listens at %s does not answer as gRPC servers do (%s)", server, text)
		}
		if strings.Contains(text, "error reading from server") || strings.Contains(text, "EOF") {
			return fmt.Errorf("the server went away in the middle of the answer (%s)", text)
		}
		return hinted(fmt.Errorf("the server takes no requests now: %s", text))
	case codes.ResourceExhausted:
		if _, again := client.RetryDelay(st.Err()); again {
			return fmt.Errorf("the server is full: try again in a moment (%s)", text)
		}
	case codes.Unauthenticated:
		return fmt.Errorf("the server wants an API key, in the variable %s or with --api-key-file (%s)", apiKeyVariable, text)
	case codes.PermissionDenied:
		return fmt.Errorf("the API key may not do that (%s)", text)
	case codes.DeadlineExceeded:
		return fmt.Errorf("the server took too long (%s)", text)
	case codes.FailedPrecondition:
		if noTemplate(st.Err()) {
			return errors.New("this model has no chat template, so it cannot chat: `mmserve ask` has it complete a text")
		}
	}
	return hinted(errors.New(text))
}

// violations are the fields that a status says are wrong.
func violations(st *status.Status) (list []*errdetails.BadRequest_FieldViolation) {
	for _, d := range st.Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			list = append(list, bad.GetFieldViolations()...)
		}
	}
	return list
}

// settingFields are fields of the contract that a setting or command of the chat is about.
var settingFields = map[string]string{
	"max_tokens": "/set max_tokens", "stop": "/set stop", "model": "/set model", "constraint.json_schema": "the schema",
	"constraint.choices": "the choices",
}

// inWords names what a field is about, and says what is wrong with it.
func (s *chatSession) inWords(field, description string) string {
	if at, rest, ok := s.find(field); ok {
		t := s.talk.Turns[at.turn]
		name := fmt.Sprintf("message %d", at.turn+1)
		if at.part >= 0 && t.Question[at.part].Image != nil {
			name = "image " + printable(t.Question[at.part].Image.Name)
		}
		_ = rest
		return name + ": " + description
	}
	for prefix, name := range settingFields {
		if strings.HasPrefix(field, prefix) {
			return name + ": " + description
		}
	}
	if name, ok := strings.CutPrefix(field, "sampling."); ok {
		return "/set " + name + ": " + description
	}
	if field == "chat" || field == "chat.messages" || field == "input" {
		text := "the conversation is too long: " + description
		if s.console != nil {
			text += ". /undo or /clear makes it shorter"
		}
		return text
	}
	return field + ": " + description
}

// find gives the part of the conversation that a field of the contract is.
func (s *chatSession) find(field string) (at place, rest string, ok bool) {
	m := partField.FindStringSubmatch(field)
	if m == nil {
		return at, "", false
	}
	message, _ := strconv.Atoi(m[1])
	part := -1
	if m[2] != "" {
		part, _ = strconv.Atoi(m[2])
	}
	if s.talk.System != "" {
		message--
	}
	// A question and its answer are two messages, and only the last turn may lack an answer.
	at = place{message / 2, part}
	if message < 0 || message%2 == 1 || at.turn >= len(s.talk.Turns) || part >= len(s.talk.Turns[at.turn].Question) {
		return at, "", false
	}
	return at, m[3], true
}

// imageOf is the image that an error names as its reason.
func (s *chatSession) imageOf(err error) (place, bool) {
	st := grpcStatus(err)
	if st == nil {
		return place{}, false
	}
	for _, v := range violations(st) {
		if at, _, ok := s.find(v.GetField()); ok && at.part >= 0 && s.image(at) != nil {
			return at, true
		}
	}
	return place{}, false
}

func (s *chatSession) image(at place) *transcript.Image {
	return s.talk.Turns[at.turn].Question[at.part].Image
}
