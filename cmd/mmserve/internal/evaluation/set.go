// Package evaluation reads sets of questions whose answers are known, and counts how many were answered right.
package evaluation

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// casesName is the file of a set with its questions: a JSON object a line.
const casesName = "cases.jsonl"

// What a set may unpack to. The embedded one is far below.
const (
	maxCasesBytes = 64 << 20
	maxImageBytes = 32 << 20
)

// Set is an archive of questions and their images, as training/evaluate.py draws it.
type Set struct {
	Cases []Case
	// Model is the digest of the model that the recorded ids are of; "" if there are none.
	Model string

	images map[string]*zip.File
}

// Case is a question. Its fields are named as those of the gold cases are.
type Case struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	// Images are files of the archive, in the order in which the messages have them.
	Images   []string  `json:"images"`
	Messages []Message `json:"messages"`
	// Truth is the only right answer.
	Truth string `json:"truth"`
	// Form is what the question asks of the answer's form: "word", "json" with Keys in that order, or "".
	Form string   `json:"form"`
	Keys []string `json:"keys"`
	// Generated are the ids that another implementation answered with, the end of the answer included.
	Generated []uint32 `json:"generated_ids"`
}

// Message is one turn.
type Message struct {
	Role    string `json:"role"`
	Content []Part `json:"content"`
}

// Part is a piece of a turn: Type is "text" or "image".
type Part struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// Read reads an archive of size bytes, and keeps r for its images.
func Read(r io.ReaderAt, size int64) (*Set, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, err
	}
	s := &Set{Model: z.Comment, images: map[string]*zip.File{}}
	for _, f := range z.File {
		s.images[f.Name] = f
	}
	raw, err := s.file(casesName, maxCasesBytes)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, len(raw)+1)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var c Case
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", casesName, n, err)
		}
		if err := s.check(c); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", casesName, n, err)
		}
		s.Cases = append(s.Cases, c)
	}
	if len(s.Cases) == 0 {
		return nil, fmt.Errorf("%s has no questions", casesName)
	}
	return s, nil
}

// check makes sure that a case can be asked.
func (s *Set) check(c Case) error {
	if c.Kind == "" || c.Truth == "" || len(c.Messages) == 0 {
		return errors.New("want kind, truth and messages")
	}
	images := 0
	for i, m := range c.Messages {
		if want := []string{"user", "assistant"}[i%2]; m.Role != want {
			return fmt.Errorf("messages[%d]: role %q, want %q", i, m.Role, want)
		}
		for j, p := range m.Content {
			switch p.Type {
			case "image":
				images++
			case "text":
			default:
				return fmt.Errorf("messages[%d].content[%d]: type %q, want text or image", i, j, p.Type)
			}
		}
	}
	if len(c.Messages)%2 == 0 {
		return errors.New("messages: the last is not the user's")
	}
	if images != len(c.Images) {
		return fmt.Errorf("%d images for %d places in the messages", len(c.Images), images)
	}
	for _, name := range c.Images {
		if s.images[name] == nil {
			return fmt.Errorf("no file %q in the archive", name)
		}
	}
	if !slices.Contains([]string{"", "word", "json"}, c.Form) {
		return fmt.Errorf("form %q, want word, json or none", c.Form)
	}
	return nil
}

// Image gives the bytes of one of a case's images.
func (s *Set) Image(name string) ([]byte, error) { return s.file(name, maxImageBytes) }

// file reads a member that is not larger than most.
func (s *Set) file(name string, most int64) ([]byte, error) {
	f := s.images[name]
	if f == nil {
		return nil, fmt.Errorf("no %s in the archive", name)
	}
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(raw)) > most {
		return nil, fmt.Errorf("%s unpacks to more than %d bytes", name, most)
	}
	return raw, nil
}

// Right tells whether text is the answer, white space around it aside.
func (c Case) Right(text string) bool { return strings.TrimSpace(text) == c.Truth }

// Valid tells whether text has the form that was asked for, right or wrong.
func (c Case) Valid(text string) bool {
	switch c.Form {
	case "word":
		return len(strings.Fields(text)) == 1
	case "json":
		keys, err := objectKeys(text)
		return err == nil && slices.Equal(keys, c.Keys)
	}
	return true
}

// objectKeys gives the keys of a JSON object in their order, and an error if text is anything else.
func objectKeys(text string) (keys []string, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	open, err := d.Token()
	if err != nil {
		return nil, err
	}
	if open != json.Delim('{') {
		return nil, errors.New("no object")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		keys = append(keys, key.(string)) // encoding/json accepts no other
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than an object")
	}
	return keys, nil
}
