package openai

import (
	"context"
	"fmt"
)

// ChatRequest is the body of POST /v1/chat/completions.
type ChatRequest struct {
	Request
	// Named is the model as a request of Ollama's names it, which its answers repeat; Model may be shorter.
	Named string
	// Messages are at least one, oldest first; none where Ollama's clients only have a model loaded.
	Messages []Message
	// Tools is the JSON list of functions that the model may call; nil for none.
	Tools []byte
	// Continue has the answer go on with the last message, as vLLM's continue_final_message.
	Continue bool
}

// Message is one turn: of "system", "user", "assistant" or "tool".
type Message struct {
	Role string
	// Parts are texts and images, at least one.
	Parts []Part
	// ToolCalls is the JSON list of an assistant's calls; nil for none. ToolCallID is the call that a tool's message
	// answers, Name who speaks, or what was called.
	ToolCalls        []byte
	ToolCallID, Name string
}

// Part is an image, or a text where Image is nil.
type Part struct {
	Text  string
	Image *Image
}

// roles are those that messages may have, with the names that models' templates know.
var roles = map[string]string{
	"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
}

// ParseChat reads the body of a request for a chat completion. Its error is an *Error,
// or says why ctx is done.
func ParseChat(ctx context.Context, body []byte) (*ChatRequest, error) {
	top, err := parse(ctx, body)
	if err != nil {
		return nil, err
	}
	r := &reading{}
	o := r.object("", top)
	c := &ChatRequest{Request: o.request()}
	c.Tools = o.functions()
	c.Logprobs = o.boolean("logprobs")
	if n := o.count("top_logprobs"); n != nil {
		if c.TopLogprobs = *n; *n > 0 && !c.Logprobs {
			r.fault("top_logprobs", CodeInvalidValue, "%d; want logprobs to be true, too", *n)
		}
	}
	c.Messages = o.messages("messages", object.message)
	c.Continue = o.continues()
	o.modalities()
	o.done()
	if r.err != nil {
		return nil, r.err
	}
	c.Ignored = r.ignored
	return c, nil
}

// continues says whether the answer goes on with the last message.
func (o object) continues() bool {
	goesOn := o.boolean("continue_final_message")
	if add := o.optionalBool("add_generation_prompt"); add != nil && *add == goesOn {
		text := "false; want true, or continue_final_message: the answer begins a turn or goes on with one"
		if goesOn {
			text = "true; want false beside continue_final_message: the answer begins no turn, but goes on with one"
		}
		o.fault("add_generation_prompt", CodeInvalidValue, "%s", text)
	}
	return goesOn
}

// modalities refuses answers that are not text.
func (o object) modalities() {
	for i, m := range o.strs("modalities") {
		if m != "text" {
			o.fault(fmt.Sprintf("%smodalities[%d]", o.path, i), CodeUnsupported, "not supported; want text")
		}
	}
	if n := o.get("audio"); n != nil {
		o.fault(o.path+"audio", CodeUnsupported, "not supported")
	}
}

// messages reads a conversation, of which read reads each message.
func (o object) messages(name string, read func(object) Message) []Message {
	list := o.list(name)
	if len(list) == 0 {
		o.fault(o.path+name, CodeMissing, "none; want at least one message")
		return nil
	}
	out := make([]Message, len(list))
	for i := range list {
		path := fmt.Sprintf("%s%s[%d]", o.path, name, i)
		if list[i].kind != kindObject {
			o.wrongType(path, &list[i], "an object")
			return nil
		}
		out[i] = read(o.reading.object(path+".", &list[i]))
		if o.err != nil {
			return nil
		}
	}
	return out
}

func (o object) message() (m Message) {
	defer o.done()
	o.known("refusal", "reasoning_content")
	switch name, role := o.str("name"), o.node.member("role"); {
	case role != nil && role.kind == kindText && role.text() == "tool":
		o.known("role")
		m.Role, m.Name, m.ToolCallID = "tool", name, o.str("tool_call_id")
	case role != nil && role.kind == kindText && role.text() == "assistant":
		m.ToolCalls = o.calls()
		fallthrough
	default:
		m.Role = o.role()
	}
	if m.Role == "assistant" && o.get("content") == nil {
		m.Parts = []Part{{}} // an empty answer, as clients keep it
		return m
	}
	read := object.part
	if m.Role == "assistant" {
		read = object.answerPart
	}
	m.Parts = o.content(read)
	return m
}

// roleText is what roles there are.
const roleText = "system, developer, user or assistant"

// role reads who speaks, and refuses calls of tools that nothing has read.
func (o object) role() string {
	role, ok := roles[o.required("role", roleText)]
	if !ok {
		o.fault(o.path+"role", CodeInvalidValue, "not known; want %s", roleText)
	}
	if n := o.node.member("tool_calls"); n != nil && len(n.list) > 0 && !o.read["tool_calls"] {
		o.fault(o.path+"tool_calls", CodeUnsupported, "not supported")
	}
	o.known("tool_calls")
	return role
}

// content reads a message's text, or its parts, of which read reads each that is an object.
func (o object) content(read func(object) Part) []Part {
	n := o.get("content")
	switch {
	case n == nil:
		o.fault(o.path+"content", CodeMissing, "none; want a string or a list of parts")
	case n.kind == kindText:
		return []Part{{Text: n.text()}}
	case n.kind == kindList:
		return o.reading.parts(o.path+"content", n.list, read)
	default:
		o.wrongType(o.path+"content", n, "a string or a list of parts")
	}
	return nil
}

// parts reads the parts of a message.
func (r *reading) parts(path string, list []node, read func(object) Part) []Part {
	if len(list) == 0 {
		r.fault(path, CodeMissing, "no parts; want at least one")
	}
	out := make([]Part, len(list))
	for i := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		switch n := &list[i]; n.kind {
		case kindText:
			out[i].Text = n.text()
		case kindObject:
			out[i] = read(r.object(at+".", n))
		default:
			r.wrongType(at, n, "an object")
		}
		if r.err != nil {
			return nil
		}
	}
	return out
}

// answerPart reads a part of an answer of before, which may be a refusal: a text under another name.
func (o object) answerPart() (p Part) {
	if n := o.node.member("type"); n == nil || n.kind != kindText || n.text() != "refusal" {
		return o.part()
	}
	defer o.done()
	o.known("type")
	p.Text = o.required("refusal", "a string")
	return p
}

// part reads a text or an image.
func (o object) part() (p Part) {
	defer o.done()
	switch o.required("type", "text or image_url") {
	case "text":
		n := o.get("text")
		if n == nil {
			o.fault(o.path+"text", CodeMissing, "none; want a string")
			return p
		}
		p.Text = o.str("text")
	case "image_url":
		n := o.get("image_url")
		if n == nil {
			o.fault(o.path+"image_url", CodeMissing, "none; want an object with a url, or a string")
			return p
		}
		p.Image = o.image(n)
	case "input_audio", "file":
		o.fault(o.path+"type", CodeUnsupported, "not supported; want text or image_url")
	default:
		o.fault(o.path+"type", CodeInvalidValue, "not known; want text or image_url")
	}
	return p
}

// image reads an image_url: an object with url and detail, or the URL alone.
func (o object) image(n *node) *Image {
	path := o.path + "image_url"
	if n.kind == kindText {
		return o.reading.imageURL(path, n, o.str("detail"))
	}
	sub := o.sub("image_url")
	if sub == nil {
		return nil
	}
	defer sub.done()
	url := sub.get("url")
	switch {
	case url == nil:
		o.fault(path+".url", CodeMissing, "none; want a data: URL")
	case url.kind != kindText:
		o.wrongType(path+".url", url, "a string")
	default:
		return o.reading.imageURL(path+".url", url, sub.str("detail"))
	}
	return nil
}
