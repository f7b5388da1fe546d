package conversation

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"
)

// body is a message as it is sealed, in JSON. Fields may be added; what is there keeps its meaning.
type body struct {
	Role       string     `json:"role"`
	Parts      []bodyPart `json:"parts,omitempty"`
	ToolCallID string     `json:"tool_call_id,omitempty"`
	ToolName   string     `json:"tool_name,omitempty"`

	ToolCalls json.RawMessage `json:"tool_calls,omitempty"`
}

type bodyPart struct {
	Text  string     `json:"text,omitempty"`
	Image *bodyImage `json:"image,omitempty"`
}

type bodyImage struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	Detail int    `json:"detail,omitempty"`
}

func (m *Message) body() body {
	b := body{Role: m.Role, ToolCalls: m.ToolCalls, ToolCallID: m.ToolCallID, ToolName: m.ToolName}
	for _, p := range m.Parts {
		part := bodyPart{Text: p.Text}
		if p.Image != nil {
			part.Image = &bodyImage{SHA256: hex.EncodeToString(p.Image.Digest[:]), Size: p.Image.Size, Detail: p.Image.Detail}
		}
		b.Parts = append(b.Parts, part)
	}
	return b
}

func decodeMessage(data []byte, m *Message) error {
	var b body
	if json.Unmarshal(data, &b) != nil || b.message(m) != nil {
		return fmt.Errorf("%w: it is no message", ErrCorrupt)
	}
	return nil
}

// message fills m with what b says. It fails where that is no message.
func (b *body) message(m *Message) error {
	m.Role, m.ToolCalls, m.ToolCallID, m.ToolName = b.Role, b.ToolCalls, b.ToolCallID, b.ToolName
	for _, p := range b.Parts {
		part := Part{Text: p.Text}
		if p.Image != nil {
			part.Image = &Image{Size: p.Image.Size, Detail: p.Image.Detail}
			digest, err := hex.DecodeString(p.Image.SHA256)
			if err != nil || len(digest) != len(part.Image.Digest) {
				return ErrInvalid
			}
			copy(part.Image.Digest[:], digest)
		}
		m.Parts = append(m.Parts, part)
	}
	return nil
}

var roles = []string{"system", "user", "assistant", "tool"}

// check says what of a message cannot be kept as it is. Its errors quote nothing of it.
func (m *Message) check() error {
	if !slices.Contains(roles, m.Role) {
		return fmt.Errorf("%w: a message's role is none of %v", ErrInvalid, roles)
	}
	if len(m.Parts) > MaxParts {
		return fmt.Errorf("%w: a message has %d parts; want at most %d", ErrInvalid, len(m.Parts), MaxParts)
	}
	if m.ToolCalls != nil && !json.Valid(m.ToolCalls) {
		return fmt.Errorf("%w: a message's tool calls are no JSON", ErrInvalid)
	}
	texts := []string{m.ToolCallID, m.ToolName}
	for _, p := range m.Parts {
		texts = append(texts, p.Text)
		if p.Image != nil && p.Text != "" {
			return fmt.Errorf("%w: a part of a message is a text and an image", ErrInvalid)
		}
	}
	for _, t := range texts {
		if !utf8.ValidString(t) {
			return fmt.Errorf("%w: a message's text is no valid UTF-8", ErrInvalid)
		}
	}
	return nil
}

// encode writes what is said of a conversation.
func (i *Info) encode() ([]byte, error) {
	size := len(i.Title)
	valid := utf8.ValidString(i.Title)
	for k, v := range i.Metadata {
		size += len(k) + len(v)
		valid = valid && utf8.ValidString(k) && utf8.ValidString(v)
	}
	if size > MaxInfoBytes {
		return nil, fmt.Errorf("%w: title and metadata have %d bytes; want at most %d", ErrInvalid, size, MaxInfoBytes)
	}
	if !valid {
		return nil, fmt.Errorf("%w: title or metadata are no valid UTF-8", ErrInvalid)
	}
	return json.Marshal(i)
}
