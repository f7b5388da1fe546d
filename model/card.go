package model

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Card is what the README.md of a model folder says: its front matter, in the fields of model cards on the Hugging
// Face hub, and its text. All of it is what a stranger wrote: valid UTF-8 without control characters, and no more.
type Card struct {
	License, LicenseName, LicenseLink string
	Languages, Datasets, BaseModels   []string
	Tags                              []string
	Evaluations                       []Evaluation
	// Limits are what the card says that the model should not be used for, or does badly: the front matter's, or else the
	// section of the text with such a heading.
	Limits string
	// Text is the Markdown behind the front matter. Truncated says that the file goes on.
	Text      string
	Truncated bool
	// Problem says why the front matter is not read; empty if it is, or if there is none.
	Problem string
}

// Evaluation is one result of a model-index.
type Evaluation struct{ Task, Dataset, Metric, Value string }

// Bounds of a card.
const (
	maxCardBytes  = 256 << 10 // of the file, from its beginning
	maxFront      = 64 << 10
	maxCardNodes  = 20000 // of the front matter
	maxCardDepth  = 64
	maxCardItems  = 64
	maxCardValue  = 512
	maxCardLimits = 16 << 10
)

// Card reads the folder's README.md. It is nil where there is none, and never an error: the model runs without.
func (m *Model) Card() *Card { return ReadCard(m.files) }

// ReadCard is Model.Card for a folder.
func ReadCard(files fs.FS) *Card {
	f, err := files.Open("README.md")
	if err != nil {
		return nil
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxCardBytes+1))
	if err != nil {
		return nil
	}
	return parseCard(raw)
}

// parseCard reads the beginning of a README.md.
func parseCard(raw []byte) *Card {
	c := &Card{}
	if len(raw) > maxCardBytes {
		raw, c.Truncated = raw[:maxCardBytes], true
		raw = wholeRunes(raw)
	}
	front, text, err := splitCard(bytes.TrimPrefix(raw, []byte("\ufeff")))
	if err == nil && front != nil {
		err = c.readFront(front)
	}
	if err != nil {
		*c = Card{Truncated: c.Truncated, Problem: printable(err.Error(), maxCardValue)}
	}
	c.Text = printable(string(text), maxCardBytes)
	if c.Limits == "" {
		c.Limits = limitsSection(c.Text)
	}
	return c
}

// wholeRunes is text without the half of a character that it was cut in.
func wholeRunes(text []byte) []byte {
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if last := text[len(text)-n:]; utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) {
				return text[:len(text)-n]
			}
			break
		}
	}
	return text
}

// splitCard gives what stands between a first line of three dashes and the next, and the rest. front is nil where there
// is none.
func splitCard(raw []byte) (front, text []byte, err error) {
	line, rest, ok := bytes.Cut(raw, []byte("\n"))
	if !ok || string(bytes.TrimRight(line, " \t\r")) != "---" {
		return nil, raw, nil
	}
	for at := 0; at < len(rest); {
		line, _, _ := bytes.Cut(rest[at:], []byte("\n"))
		next := min(len(rest), at+len(line)+1)
		if string(bytes.TrimRight(line, " \t\r")) == "---" {
			if at > maxFront {
				return nil, rest[next:], fmt.Errorf("front matter: %d bytes; want at most %d", at, maxFront)
			}
			return rest[:at:at], rest[next:], nil
		}
		at = next
	}
	return nil, raw, errors.New("front matter: no end")
}

// readFront reads the front matter. Values of another form than expected are left out: only what is no YAML, or would
// cost more than its bytes, is an error.
func (c *Card) readFront(raw []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return fmt.Errorf("front matter: %w", err)
	}
	left := maxCardNodes
	if err := plain(&doc, 0, &left); err != nil {
		return err
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil
	}
	root := doc.Content[0]
	c.License = strings.Join(texts(root, "license"), ", ")
	c.LicenseName, c.LicenseLink = text(root, "license_name", maxCardValue), text(root, "license_link", maxCardValue)
	c.Languages, c.Datasets = texts(root, "language"), texts(root, "datasets")
	c.BaseModels, c.Tags = texts(root, "base_model"), texts(root, "tags")
	if c.Limits = text(root, "limits", maxCardLimits); c.Limits == "" {
		c.Limits = strings.Join(texts(root, "limits"), "\n")
	}
	c.readIndex(entry(root, "model-index"))
	return nil
}

// plain holds that a document is a tree: an alias would have a few bytes stand for any number.
func plain(n *yaml.Node, depth int, left *int) error {
	if *left--; *left < 0 || depth > maxCardDepth {
		return fmt.Errorf("front matter: line %d: more than %d values, or %d in each other", n.Line, maxCardNodes, maxCardDepth)
	}
	if n.Kind == yaml.AliasNode {
		return fmt.Errorf("front matter: line %d: an alias; want the value itself", n.Line)
	}
	for _, child := range n.Content {
		if err := plain(child, depth+1, left); err != nil {
			return err
		}
	}
	return nil
}

// readIndex reads the results of a model-index.
func (c *Card) readIndex(index *yaml.Node) {
	for _, m := range items(index) {
		for _, result := range items(entry(m, "results")) {
			for _, metric := range items(entry(result, "metrics")) {
				if len(c.Evaluations) == maxCardItems {
					return
				}
				e := Evaluation{
					Task:    named(entry(result, "task")),
					Dataset: named(entry(result, "dataset")),
					Metric:  named(metric), Value: text(metric, "value", maxCardValue),
				}
				if e.Value != "" {
					c.Evaluations = append(c.Evaluations, e)
				}
			}
		}
	}
}

// named is what a task, a dataset or a metric is called.
func named(n *yaml.Node) string {
	if name := text(n, "name", maxCardValue); name != "" {
		return name
	}
	return text(n, "type", maxCardValue)
}

// entry is the value of a key; nil if n is no mapping with it.
func entry(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// items are those of a list; none of anything else.
func items(n *yaml.Node) []*yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

// text is the text of a key; empty if there is none.
func text(n *yaml.Node, key string, most int) string {
	v := entry(n, key)
	if v == nil || v.Kind != yaml.ScalarNode || v.Tag == "!!null" {
		return ""
	}
	return printable(v.Value, most)
}

// texts are the texts of a key that may have one or a list.
func texts(n *yaml.Node, key string) (list []string) {
	if one := text(n, key, maxCardValue); one != "" {
		return []string{one}
	}
	for _, item := range items(entry(n, key)) {
		if len(list) == maxCardItems {
			break
		}
		if item.Kind == yaml.ScalarNode && item.Tag != "!!null" && item.Value != "" {
			list = append(list, printable(item.Value, maxCardValue))
		}
	}
	return list
}

// printable is valid UTF-8 of at most so many bytes, without what commands a terminal or hides text.
func printable(s string, most int) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\r' || r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			continue
		}
		if b.Len()+utf8.RuneLen(r) > most {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// limitsSection is the section of a text whose heading speaks of limits, without those of the same rank behind it.
func limitsSection(text string) string {
	rank := 0 // of the heading found
	var b strings.Builder
	for line := range strings.Lines(text) {
		level := len(line) - len(strings.TrimLeft(line, "#"))
		heading := level > 0 && level <= 6 && strings.HasPrefix(line[level:], " ")
		switch {
		case rank == 0:
			title := strings.ToLower(line)
			if heading && (strings.Contains(title, "limit") || strings.Contains(title, "out-of-scope")) {
				rank = level
			}
			continue
		case heading && level <= rank, b.Len()+len(line) > maxCardLimits:
			return strings.TrimSpace(b.String())
		}
		b.WriteString(line)
	}
	return strings.TrimSpace(b.String())
}
