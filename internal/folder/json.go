package folder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// maxDepth is how deep the objects and lists of a configuration may nest.
const maxDepth = 64

// JSON reads a configuration file: one JSON object. Keys hold as Python has them, to the letter: encoding/json takes
// "Hidden_Size" for "hidden_size", so keys with capitals are left out, but for those of auto_map. Of equal keys the
// last holds.
func JSON(fsys fs.FS, name string) ([]byte, error) {
	raw, err := Read(fsys, name)
	if err != nil {
		return nil, err
	}
	exact, err := exactKeys(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return exact, nil
}

func exactKeys(raw []byte) ([]byte, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, errors.New("the file is empty")
	}
	if depth(raw) > maxDepth {
		return nil, fmt.Errorf("objects and lists nest more than %d deep", maxDepth)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, named(err, raw)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("something follows the JSON object, at byte %d", dec.InputOffset())
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("want a JSON object: {…}")
	}
	dropCapitals(object)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(object); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// named says where a syntax error is, and names the numbers that Python writes and JSON does not have.
func named(err error, raw []byte) error {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return err
	}
	at := int(min(max(syntax.Offset-1, 0), int64(len(raw))))
	for _, word := range []string{"NaN", "Infinity", "-Infinity"} {
		for back := range min(at, len("-I")) + 1 {
			if bytes.HasPrefix(raw[at-back:], []byte(word)) {
				return fmt.Errorf("line %d has the number %s, want a finite one", 1+bytes.Count(raw[:at], []byte("\n")), word)
			}
		}
	}
	return fmt.Errorf("line %d: %w", 1+bytes.Count(raw[:at], []byte("\n")), err)
}

// depth is how deep brackets nest, strings left out; it is more than maxDepth where it counts no further.
func depth(raw []byte) (most int) {
	now, quoted := 0, false
	for i := 0; i < len(raw) && most <= maxDepth; i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			most = max(most, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return most
}

func dropCapitals(v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			switch {
			case key == "auto_map":
			case strings.ToLower(key) != key || strings.ContainsRune(key, 'ſ'): // which folds to s
				delete(v, key)
			default:
				dropCapitals(inner)
			}
		}
	case []any:
		for _, inner := range v {
			dropCapitals(inner)
		}
	}
}
