package caption

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// Question is what to ask about each image.
type Question struct {
	// Name is the row's question column.
	Name string `json:"name"`
	// Text is the prompt.
	Text string `json:"text"`
}

// DefaultQuestion is the name of the question where only one is asked.
const DefaultQuestion = "caption"

// Config is all that an answer depends on besides the image. Rows of one output have one configuration.
type Config struct {
	Model       string     `json:"model"`
	ModelDigest string     `json:"model_digest"`
	Precision   string     `json:"precision,omitempty"`
	Questions   []Question `json:"questions"`
	MaxTokens   uint32     `json:"max_tokens"`
	Temperature *float32   `json:"temperature,omitempty"`
	TopP        *float32   `json:"top_p,omitempty"`
	TopK        *uint32    `json:"top_k,omitempty"`
	Seed        uint64     `json:"seed"`
	Detail      string     `json:"detail"`
	// Schema and Choices hold the answer to JSON or to one of some texts.
	Schema  string   `json:"schema,omitempty"`
	Choices []string `json:"choices,omitempty"`
	// Prepend and Append stand around the answer in the text column.
	Prepend string `json:"prepend,omitempty"`
	Append  string `json:"append,omitempty"`
	// Raw sends prompts without a chat template.
	Raw bool `json:"raw,omitempty"`
}

// ConfigError says that an output was begun with another configuration.
type ConfigError struct {
	// Path is that of the file with the configuration.
	Path string
	// Differ names what differs; what was asked is not quoted.
	Differ []string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("%s: the output was begun with another configuration: %s", e.Path, strings.Join(e.Differ, "; "))
}

// Check refuses what no server would take.
func (c *Config) Check() error {
	if len(c.Questions) == 0 {
		return errors.New("no question")
	}
	seen := map[string]bool{}
	for _, q := range c.Questions {
		switch {
		case q.Name == "":
			return errors.New("a question without a name")
		case q.Text == "":
			return fmt.Errorf("question %q is empty", q.Name)
		case seen[q.Name]:
			return fmt.Errorf("two questions named %q", q.Name)
		}
		seen[q.Name] = true
	}
	if c.Schema != "" && len(c.Choices) > 0 {
		return errors.New("schema and choices: an answer is held to one of them")
	}
	if _, ok := details[c.Detail]; !ok {
		return fmt.Errorf("detail %q: want auto, low or high", c.Detail)
	}
	if c.Schema != "" && !json.Valid([]byte(c.Schema)) {
		return errors.New("the schema is not JSON")
	}
	return nil
}

var details = map[string]pb.Detail{
	"auto": pb.Detail_DETAIL_AUTO,
	"low":  pb.Detail_DETAIL_LOW,
	"high": pb.Detail_DETAIL_HIGH,
}

// digest is the part of a key that all answers to one question share: everything but the other questions.
func (c *Config) digest() string {
	only := *c
	only.Questions = nil
	b, err := json.Marshal(only)
	if err != nil {
		panic(err) // a struct of plain values
	}
	h := hashOf("config", string(b))
	return hex.EncodeToString(h[:])
}

// key names what is asked: the image's bytes, the question, the configuration.
func key(sha256, prompt, configDigest string) string {
	h := hashOf("item", sha256, prompt, configDigest)
	return hex.EncodeToString(h[:])
}

// runFile is what stands in OUT.run.json.
type runFile struct {
	Format   int    `json:"format"`
	Config   Config `json:"config"`
	Existing string `json:"existing,omitempty"`
	Started  string `json:"started"`
	Version  string `json:"mmserve"`
	// Complete tells that every item was answered or failed for good.
	Complete bool `json:"complete"`
}

const runFormat = 1

// readRunFile gives what the file holds; fs.ErrNotExist where there is none.
func readRunFile(path string) (runFile, error) {
	var r runFile
	b, err := readSmallFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if r.Format != runFormat {
		return r, fmt.Errorf("%s: format %d, want %d", path, r.Format, runFormat)
	}
	return r, nil
}

// holdConfig compares now with what the file at path holds, or writes it there where there is none yet or a new output
// begins. Questions that are new are added.
func holdConfig(path string, now runFile, begin bool) error {
	had, err := readRunFile(path)
	if errors.Is(err, fs.ErrNotExist) || begin {
		return writeRunFile(path, now)
	}
	if err != nil {
		return err
	}
	if differ := differences(had.Config, now.Config); len(differ) > 0 {
		return &ConfigError{path, differ}
	}
	for _, q := range now.Config.Questions {
		if !slices.Contains(had.Config.Questions, q) {
			had.Config.Questions = append(had.Config.Questions, q)
		}
	}
	had.Complete, had.Existing = false, now.Existing
	return writeRunFile(path, had)
}

func writeRunFile(path string, r runFile) error {
	return replaceFile(path, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	})
}

func readSmallFile(path string) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, nil, 16<<20)
}

// differences names the fields in which two configurations differ, with their values where those are no prompts.
func differences(a, b Config) []string {
	var out []string
	quoted := func(name string, x, y any) {
		s, t := plainValue(x), plainValue(y)
		if s != t {
			out = append(out, fmt.Sprintf("%s was %s, now %s", name, s, t))
		}
	}
	quoted("model", a.Model, b.Model)
	quoted("model_digest", clip(a.ModelDigest, 12), clip(b.ModelDigest, 12))
	quoted("precision", a.Precision, b.Precision)
	quoted("max_tokens", a.MaxTokens, b.MaxTokens)
	quoted("temperature", a.Temperature, b.Temperature)
	quoted("top_p", a.TopP, b.TopP)
	quoted("top_k", a.TopK, b.TopK)
	quoted("seed", a.Seed, b.Seed)
	quoted("detail", a.Detail, b.Detail)
	quoted("raw", a.Raw, b.Raw)
	for _, n := range questionNames(a, b) {
		out = append(out, "question "+n)
	}
	for _, f := range []struct {
		name string
		same bool
	}{{"schema", a.Schema == b.Schema}, {"choices", slices.Equal(a.Choices, b.Choices)},
		{"prepend", a.Prepend == b.Prepend}, {"append", a.Append == b.Append}} {
		if !f.same {
			out = append(out, f.name)
		}
	}
	return out
}

// questionNames are the names that stand for different texts. A question that is only in one of them is none.
func questionNames(a, b Config) []string {
	texts := map[string]string{}
	for _, q := range a.Questions {
		texts[q.Name] = q.Text
	}
	var out []string
	for _, q := range b.Questions {
		if t, ok := texts[q.Name]; ok && t != q.Text {
			out = append(out, q.Name)
		}
	}
	return out
}

func plainValue(v any) string {
	b, err := json.Marshal(v)
	if err != nil || string(b) == "null" || string(b) == `""` {
		return "not set"
	}
	return string(b)
}
