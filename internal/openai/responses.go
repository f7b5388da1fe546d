package openai

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// ResponseRequest is the body of POST /v1/responses.
type ResponseRequest struct {
	Request
	// Previous is the id of a response to go on with; empty for none. Store asks for this one to be kept; nil where the
	// request does not say.
	Previous string
	Store    *bool
	// Subject is the caller's user, in safety_identifier or user.
	Subject string
	// Messages are the instructions, if there are any, as a system's message, and then those of the input.
	Messages []Message
	// Instructed says that the first message is the instructions; InputIsText that the input is one string.
	Instructed, InputIsText bool
	// Echo is what the answer repeats of the request.
	Echo ResponseEcho
}

// ResponseEcho is what a Response repeats of its request.
type ResponseEcho struct {
	Instructions    *string         `json:"instructions"`
	MaxOutputTokens *uint32         `json:"max_output_tokens"`
	Metadata        json.RawMessage `json:"metadata"`
	Temperature     *float32        `json:"temperature"`
	TopP            *float32        `json:"top_p"`
	Text            ResponseText    `json:"text"`
}

// ResponseText is what text an answer is asked for; Format is JSON.
type ResponseText struct {
	Format json.RawMessage `json:"format"`
}

// ParseResponse reads the body of a request for a response. Its error is an *Error,
// or says why ctx is done.
func ParseResponse(ctx context.Context, body []byte) (*ResponseRequest, error) {
	top, err := parse(ctx, body)
	if err != nil {
		return nil, err
	}
	r := &reading{}
	o := r.object("", top)
	c := &ResponseRequest{Echo: ResponseEcho{Metadata: json.RawMessage("{}")}}
	c.Model, c.Stream = o.str("model"), o.boolean("stream")
	c.MaxTokens = o.positive("max_output_tokens")
	o.sampling(&c.Request)
	o.stateful(c)
	o.tools()
	o.responseLogprobs(&c.Request)
	c.Echo.Text.Format = o.textFormat(&c.Request)
	if n := o.get("metadata"); n != nil {
		c.Echo.Metadata = o.metadata(n)
	}
	o.instructions(c)
	o.input(c)
	o.known(inert...)
	o.known("truncation", "max_tool_calls", "stream_options", "prompt_cache_options")
	o.done()
	if r.err != nil {
		return nil, r.err
	}
	c.Ignored = r.ignored
	c.Echo.MaxOutputTokens, c.Echo.Temperature, c.Echo.TopP = c.MaxTokens, c.Temperature, c.TopP
	return c, nil
}

// stateful reads what is asked of a server that keeps something.
func (o object) stateful(c *ResponseRequest) {
	c.Previous, c.Store = o.str("previous_response_id"), o.optionalBool("store")
	c.Subject = cmp.Or(o.str("safety_identifier"), o.str("user"))
	if c.Previous != "" && !strings.HasPrefix(c.Previous, ResponsePrefix) {
		o.fault(o.path+"previous_response_id", CodeInvalidValue, "not a response's id; want one that begins with %s",
			ResponsePrefix)
	}
	for _, name := range []string{"conversation", "prompt"} {
		if o.get(name) != nil {
			o.fault(o.path+name, CodeUnsupported, "not supported; want previous_response_id, or the whole conversation as input")
		}
	}
	if o.boolean("background") {
		o.fault(o.path+"background", CodeUnsupported, "true; want false or nothing: this server answers while its caller waits")
	}
}

// Stateless says what is wrong with a request where the server keeps nothing. Its error is an *Error.
func (c *ResponseRequest) Stateless() error {
	switch {
	case c.Previous != "":
		return NewError(InvalidRequest, "previous_response_id", CodeUnsupported,
			"previous_response_id: not supported: this server keeps no responses; want the whole conversation as input")
	case c.Store != nil && *c.Store:
		return NewError(InvalidRequest, "store", CodeUnsupported,
			"store: true; want false or nothing: this server keeps no responses")
	}
	return nil
}

// logprobsIncluded is what a request includes for log-probabilities.
const logprobsIncluded = "message.output_text.logprobs"

// responseLogprobs reads top_logprobs and include, of which other values ask for what is never there.
func (o object) responseLogprobs(r *Request) {
	for _, what := range o.strs("include") {
		r.Logprobs = r.Logprobs || what == logprobsIncluded
	}
	n := o.count("top_logprobs")
	if n == nil {
		return
	}
	if r.TopLogprobs = *n; *n > 0 && !r.Logprobs {
		o.fault(o.path+"top_logprobs", CodeInvalidValue, "%d; want include to have %s, too", *n, logprobsIncluded)
	}
}

// textFormat reads text.format, which says what the answer is held to, and gives it as the answer repeats it.
func (o object) textFormat(r *Request) json.RawMessage {
	plain := json.RawMessage(`{"type":"text"}`)
	text := o.sub("text")
	if text == nil {
		return plain
	}
	defer text.done()
	f := text.sub("format")
	if f == nil {
		return plain
	}
	defer f.done()
	switch f.str("type") {
	case "", "text":
		return plain
	case "json_object":
		r.Constraint = &Constraint{Kind: JSONObject, Param: "text.format"}
	case "json_schema":
		f.known("name", "description", "strict")
		n := f.get("schema")
		if n == nil {
			o.fault("text.format.schema", CodeMissing, "none; want a JSON schema")
			return plain
		}
		r.Constraint = f.schema("schema", n)
	default:
		o.fault("text.format.type", CodeInvalidValue, "not known; want text, json_object or json_schema")
	}
	return o.echo("text.format", f.node)
}

// mostEcho bounds JSON that an answer repeats, in bytes: schemas are refused when they are longer than half of it.
const mostEcho = 512 << 10

// echo is a value for an answer to repeat, without the spaces that it has.
func (o object) echo(param string, n *node) json.RawMessage {
	if len(n.raw) > mostEcho {
		o.fault(param, CodeInvalidValue, "%d bytes of JSON; want at most %d", len(n.raw), mostEcho)
		return nil
	}
	var b bytes.Buffer
	_ = json.Compact(&b, n.raw) // parse has checked it
	return b.Bytes()
}

// Bounds of metadata, which are OpenAI's.
const maxMetadata, maxMetadataName, maxMetadataValue = 16, 64, 512

// metadata is an object of strings, as JSON.
func (o object) metadata(n *node) json.RawMessage {
	ok := n.kind == kindObject && len(n.list) <= maxMetadata
	for i := 0; ok && i < len(n.list); i++ {
		m := &n.list[i]
		ok = m.kind == kindText && len(m.name) <= maxMetadataName && len(m.raw) <= maxMetadataValue+len(`""`)
	}
	if !ok {
		o.fault(o.path+"metadata", CodeInvalidValue,
			"not taken; want an object of at most %d strings of at most %d bytes, with names of at most %d", maxMetadata,
			maxMetadataValue, maxMetadataName)
		return nil
	}
	return o.echo(o.path+"metadata", n)
}

func (o object) instructions(c *ResponseRequest) {
	n := o.get("instructions")
	if n == nil {
		return
	}
	if n.kind != kindText {
		o.wrongType(o.path+"instructions", n, "a string")
		return
	}
	text := n.text()
	c.Instructed, c.Echo.Instructions = true, &text
	c.Messages = []Message{{Role: "system", Parts: []Part{{Text: text}}}}
}

// input reads the conversation: a string, or a list of messages.
func (o object) input(c *ResponseRequest) {
	n := o.get("input")
	switch {
	case n == nil:
		o.fault(o.path+"input", CodeMissing, "none; want a string or a list of messages")
	case n.kind == kindText:
		c.InputIsText = true
		c.Messages = append(c.Messages, Message{Role: "user", Parts: []Part{{Text: n.text()}}})
	case n.kind == kindList:
		c.Messages = append(c.Messages, o.messages("input", object.inputItem)...)
		if last := len(c.Messages) - 1; o.err == nil && c.Messages[last].Role == "assistant" {
			o.fault(fmt.Sprintf("%sinput[%d].role", o.path, len(n.list)-1), CodeInvalidValue,
				"the assistant's in the last message; want another role: a response does not go on with it")
		}
	default:
		o.wrongType(o.path+"input", n, "a string or a list of messages")
	}
}

// inputItem reads a message: what a caller says, or an answer of before.
func (o object) inputItem() (m Message) {
	defer o.done()
	if kind := o.str("type"); kind != "" && kind != "message" {
		o.fault(o.path+"type", CodeUnsupported, "not supported; want message")
		return m
	}
	m.Role = o.role()
	o.known("id", "status", "phase")
	m.Parts = o.content(object.inputPart)
	return m
}

// inputPart reads a text or an image.
func (o object) inputPart() (p Part) {
	defer o.done()
	o.known("annotations", "logprobs", "prompt_cache_breakpoint")
	switch kind := o.required("type", "input_text, input_image or output_text"); kind {
	case "input_text", "output_text", "refusal":
		name := "text"
		if kind == "refusal" {
			name = "refusal"
		}
		if o.get(name) == nil {
			o.fault(o.path+name, CodeMissing, "none; want a string")
		}
		p.Text = o.str(name)
	case "input_image":
		p.Image = o.inputImage()
	case "input_file", "input_audio":
		o.fault(o.path+"type", CodeUnsupported, "not supported; want input_text or input_image")
	default:
		o.fault(o.path+"type", CodeInvalidValue, "not known; want input_text, input_image or output_text")
	}
	return p
}

func (o object) inputImage() *Image {
	if o.get("file_id") != nil {
		o.fault(o.path+"file_id", CodeUnsupported, "not supported; want the image itself as image_url")
		return nil
	}
	n, path, detail := o.get("image_url"), o.path+"image_url", o.str("detail")
	if _, ok := details[detail]; !ok {
		o.fault(o.path+"detail", CodeInvalidValue, "not known; want auto, low, high or original")
	}
	switch {
	case n == nil:
		o.fault(path, CodeMissing, "none; want a data: URL")
	case n.kind != kindText:
		o.wrongType(path, n, "a string")
	default:
		return o.reading.imageURL(path, n, detail)
	}
	return nil
}

// inputNames turn the contract's names in a message into those of an item.
var inputNames = strings.NewReplacer(
	".parts", ".content", ".image.data", ".image_url", ".image.url", ".image_url",
)

// Param is the name in a request for a response of a field whose name in the contract is name.
func (c *ResponseRequest) Param(name string) string {
	switch name {
	case "max_tokens":
		return "max_output_tokens"
	case "chat.messages":
		return "input"
	case "conversation":
		return "previous_response_id"
	case "subject":
		return "safety_identifier"
	}
	if strings.HasPrefix(name, "constraint") {
		return c.Constraint.Param
	}
	rest, ok := strings.CutPrefix(name, "chat.messages[")
	if !ok {
		return strings.TrimPrefix(name, "sampling.")
	}
	number, rest, _ := strings.Cut(rest, "]")
	index, _ := strconv.Atoi(number) // serving wrote it
	rest = inputNames.Replace(rest)
	if c.Instructed {
		if index--; index < 0 {
			return "instructions"
		}
	}
	if c.InputIsText {
		return "input"
	}
	return fmt.Sprintf("input[%d]%s", index, rest)
}
