package transcript

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/imaging"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// MaxFileBytes bounds a saved conversation.
const MaxFileBytes = 256 << 20

// maxMessages bounds the messages of a saved conversation; the contract has the same bound.
const maxMessages = 2048

// Messages are the conversation as the contract has it. detail is what each image may cost.
func (c *Conversation) Messages(detail pb.Detail) (list []*pb.Message) {
	if c.System != "" {
		list = append(list, client.System(client.Text(c.System)))
	}
	for _, t := range c.Turns {
		var parts []*pb.Part
		for _, p := range t.Question {
			if p.Image == nil {
				parts = append(parts, client.Text(p.Text))
				continue
			}
			part := client.ImageBytes(p.Image.Data)
			part.GetImage().Detail = detail
			parts = append(parts, part)
		}
		list = append(list, client.User(parts...))
		if t.Answered {
			list = append(list, client.Assistant(client.Text(t.Answer)))
		}
	}
	return list
}

// FromMessages is a conversation of such messages. Those of the system come together, and what a user said in several
// messages is one question.
func FromMessages(list []*pb.Message) (*Conversation, error) {
	c := new(Conversation)
	if len(list) > maxMessages {
		return nil, fmt.Errorf("it has %d messages: want at most %d", len(list), maxMessages)
	}
	images := 0
	for i, m := range list {
		switch m.GetRole() {
		case pb.Role_ROLE_SYSTEM:
			c.System = strings.TrimPrefix(c.System+"\n\n"+texts(m), "\n\n")
		case pb.Role_ROLE_ASSISTANT:
			if last := c.last(); last == nil || last.Answered {
				return nil, fmt.Errorf("message %d is an answer to nothing", i+1)
			}
			c.Answer(texts(m))
		default:
			parts, err := fromParts(m.GetParts(), &images)
			if err != nil {
				return nil, fmt.Errorf("message %d: %w", i+1, err)
			}
			if last := c.last(); last != nil && !last.Answered {
				last.Question = append(last.Question, parts...)
				continue
			}
			c.Turns = append(c.Turns, Turn{Question: parts})
		}
	}
	return c, nil
}

func texts(m *pb.Message) string {
	var b strings.Builder
	for _, p := range m.GetParts() {
		b.WriteString(p.GetText())
	}
	return b.String()
}

func fromParts(list []*pb.Part, images *int) (parts []Part, err error) {
	for _, p := range list {
		img := p.GetImage()
		switch {
		case img == nil:
			parts = append(parts, Part{Text: p.GetText()})
			continue
		case len(img.GetData()) == 0:
			return nil, errors.New("it has an image that is not in the file, but named by a digest or URL")
		}
		*images++
		parts = append(parts, Part{Image: &Image{Name: fmt.Sprintf("image %d", *images), Data: img.GetData()}})
	}
	return parts, nil
}

// MarshalGRPC writes a request as grpcurl takes it: the JSON of a GenerateRequest.
func MarshalGRPC(in *pb.GenerateRequest) ([]byte, error) {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(in)
	if err != nil {
		return nil, err
	}
	return indent(data)
}

// indent writes JSON the same way each time, which protojson by itself does not.
func indent(data []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// The body of a chat completion, as far as a chat has it.
type (
	completion struct {
		Model             string          `json:"model,omitempty"`
		Messages          []message       `json:"messages"`
		Continue          bool            `json:"continue_final_message,omitempty"`
		MaxTokens         *uint32         `json:"max_tokens,omitempty"`
		Temperature       *float32        `json:"temperature,omitempty"`
		TopP              *float32        `json:"top_p,omitempty"`
		TopK              *uint32         `json:"top_k,omitempty"`
		MinP              *float32        `json:"min_p,omitempty"`
		Seed              *uint64         `json:"seed,omitempty"`
		RepetitionPenalty *float32        `json:"repetition_penalty,omitempty"`
		PresencePenalty   *float32        `json:"presence_penalty,omitempty"`
		FrequencyPenalty  *float32        `json:"frequency_penalty,omitempty"`
		Stop              []string        `json:"stop,omitempty"`
		Format            *responseFormat `json:"response_format,omitempty"`
		Choices           []string        `json:"guided_choice,omitempty"`
	}
	message struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	contentPart struct {
		Type     string    `json:"type"`
		Text     string    `json:"text,omitempty"`
		ImageURL *imageURL `json:"image_url,omitempty"`
	}
	imageURL struct {
		URL    string `json:"url"`
		Detail string `json:"detail,omitempty"`
	}
	responseFormat struct {
		Type   string      `json:"type"`
		Schema *jsonSchema `json:"json_schema,omitempty"`
	}
	jsonSchema struct {
		Name   string          `json:"name"`
		Schema json.RawMessage `json:"schema"`
	}
)

var roles = map[string]pb.Role{
	"system": pb.Role_ROLE_SYSTEM, "developer": pb.Role_ROLE_SYSTEM, "user": pb.Role_ROLE_USER,
	"assistant": pb.Role_ROLE_ASSISTANT,
}

// MarshalOpenAI writes a request as the body of POST /v1/chat/completions.
func MarshalOpenAI(in *pb.GenerateRequest) ([]byte, error) {
	s := in.GetSampling()
	out := completion{
		Model: in.GetModel(), Continue: in.GetChat().GetContinueFinalMessage(), MaxTokens: in.MaxTokens, Stop: in.GetStop(),
	}
	if s != nil {
		out.Temperature, out.TopP, out.TopK, out.MinP, out.Seed = s.Temperature, s.TopP, s.TopK, s.MinP, s.Seed
		out.RepetitionPenalty, out.PresencePenalty = s.RepetitionPenalty, s.PresencePenalty
		out.FrequencyPenalty = s.FrequencyPenalty
	}
	switch c := in.GetConstraint(); {
	case c.GetJsonSchema() != "":
		out.Format = &responseFormat{"json_schema", &jsonSchema{"answer", json.RawMessage(c.GetJsonSchema())}}
	case c.GetChoices() != nil:
		out.Choices = c.GetChoices().GetTexts()
	}
	for _, m := range in.GetChat().GetMessages() {
		content, err := marshalContent(m)
		if err != nil {
			return nil, err
		}
		role := strings.ToLower(strings.TrimPrefix(m.GetRole().String(), "ROLE_"))
		out.Messages = append(out.Messages, message{role, content})
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	return indent(data)
}

// marshalContent is a string where there is only one text, and a list of parts otherwise.
func marshalContent(m *pb.Message) (json.RawMessage, error) {
	list := m.GetParts()
	if len(list) == 1 && list[0].GetImage() == nil {
		return json.Marshal(list[0].GetText())
	}
	var parts []contentPart
	for _, p := range list {
		img := p.GetImage()
		if img == nil {
			parts = append(parts, contentPart{Type: "text", Text: p.GetText()})
			continue
		}
		data := img.GetData()
		u := &imageURL{URL: "data:" + cmp.Or(imaging.MediaType(data), "application/octet-stream") + ";base64," +
			base64.StdEncoding.EncodeToString(data)}
		if img.GetDetail() > pb.Detail_DETAIL_AUTO {
			u.Detail = strings.ToLower(strings.TrimPrefix(img.GetDetail().String(), "DETAIL_"))
		}
		parts = append(parts, contentPart{Type: "image_url", ImageURL: u})
	}
	return json.Marshal(parts)
}

// Unmarshal reads either form. Of what it does not know it takes no notice.
func Unmarshal(data []byte) (*pb.GenerateRequest, error) {
	var which struct {
		Messages, Chat, Prompt json.RawMessage
	}
	if err := json.Unmarshal(data, &which); err != nil {
		return nil, fmt.Errorf("it is no JSON: %w", err)
	}
	switch {
	case which.Chat != nil:
		in := new(pb.GenerateRequest)
		return in, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, in)
	case which.Messages == nil:
		return nil, errors.New(`it is no conversation: want "messages", as in the body of an OpenAI request, or "chat", as in a gRPC one`)
	}
	var body completion
	if err := json.Unmarshal(data, &body); err != nil {
		return nil, err
	}
	return body.request()
}

func (c completion) request() (*pb.GenerateRequest, error) {
	if len(c.Messages) > maxMessages {
		return nil, fmt.Errorf("it has %d messages: want at most %d", len(c.Messages), maxMessages)
	}
	var list []*pb.Message
	for i, m := range c.Messages {
		role, ok := roles[m.Role]
		if !ok {
			return nil, fmt.Errorf("messages[%d].role: %.40q; want system, user or assistant", i, m.Role)
		}
		parts, err := unmarshalContent(m.Content)
		if err != nil {
			return nil, fmt.Errorf("messages[%d].content: %w", i, err)
		}
		list = append(list, &pb.Message{Role: role, Parts: parts})
	}
	in := client.Chat(list...)
	in.Model, in.MaxTokens, in.Stop = c.Model, c.MaxTokens, c.Stop
	s := &pb.Sampling{
		Temperature: c.Temperature, TopP: c.TopP, TopK: c.TopK, MinP: c.MinP, Seed: c.Seed,
		RepetitionPenalty: c.RepetitionPenalty, PresencePenalty: c.PresencePenalty, FrequencyPenalty: c.FrequencyPenalty,
	}
	in.Sampling = s
	switch {
	case c.Format != nil && c.Format.Schema != nil:
		in.Constraint = SchemaConstraint(string(c.Format.Schema.Schema))
	case len(c.Choices) > 0:
		in.Constraint = ChoicesConstraint(c.Choices)
	}
	return in, nil
}

// SchemaConstraint holds an answer to a JSON schema.
func SchemaConstraint(schema string) *pb.Constraint {
	return &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: schema}}
}

// ChoicesConstraint holds an answer to one of some texts.
func ChoicesConstraint(list []string) *pb.Constraint {
	return &pb.Constraint{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{Texts: list}}}
}

func unmarshalContent(raw json.RawMessage) (parts []*pb.Part, err error) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return []*pb.Part{client.Text(text)}, nil
	}
	var list []contentPart
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, errors.New("want a text or a list of parts")
	}
	for _, p := range list {
		switch {
		case p.Type == "text":
			parts = append(parts, client.Text(p.Text))
		case p.Type == "image_url" && p.ImageURL != nil:
			data, err := dataURL(p.ImageURL.URL)
			if err != nil {
				return nil, err
			}
			parts = append(parts, client.ImageBytes(data))
		default:
			return nil, fmt.Errorf("a part of the type %.40q; want text or image_url", p.Type)
		}
	}
	return parts, nil
}

func dataURL(u string) ([]byte, error) {
	head, body, ok := strings.Cut(u, ",")
	if !strings.HasPrefix(head, "data:") || !ok {
		return nil, errors.New("it has an image that is not in the file, but named by a URL")
	}
	data, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		return nil, errors.New("an image's data URL is no base64")
	}
	return data, nil
}

// WriteFile writes a conversation for its owner alone, whole or not at all. It does not replace a file that is none.
func WriteFile(path string, data []byte) error {
	if old, err := os.Stat(path); err == nil {
		if !old.Mode().IsRegular() {
			return fmt.Errorf("%s is no file", path)
		}
		if was, err := ReadFile(path); err != nil || was == nil {
			return fmt.Errorf("%s is there and is no saved conversation: choose another name, or remove it", path)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".mmserve-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// ReadFile reads a conversation that was saved.
func ReadFile(path string) (*pb.GenerateRequest, error) {
	data, err := folder.ReadFile(path, MaxFileBytes)
	if err != nil {
		return nil, err
	}
	in, err := Unmarshal(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return in, nil
}
