package caption

import (
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// column is a column of a table: its name, its kind, and a row's value in it, nil where the row has none.
type column struct {
	name  string
	kind  kind
	value func(*Row) any
}

// kind is a column's type: the Go types that its values have.
type kind int

const (
	text    kind = iota // string
	integer             // int64
	real                // float64
	boolean             // bool
)

// columns are those of every table, and then a data.<field> for each field that c's schema names.
func columns(c *Config) []column {
	s := func(f func(*Row) string) func(*Row) any {
		return func(r *Row) any {
			if v := f(r); v != "" {
				return v
			}
			return nil
		}
	}
	n := func(f func(*Row) int64) func(*Row) any {
		return func(r *Row) any {
			if v := f(r); v != 0 {
				return v
			}
			return nil
		}
	}
	cols := []column{
		{"id", text, s(func(r *Row) string { return r.ID })},
		{"file_name", text, s(func(r *Row) string { return r.FileName })},
		{"path_b64", text, s(func(r *Row) string { return base64.StdEncoding.EncodeToString(r.PathB64) })},
		{"index", integer, func(r *Row) any { return r.Index }},
		{"sha256", text, s(func(r *Row) string { return r.SHA256 })},
		{"duplicate_of", text, s(func(r *Row) string { return r.DuplicateOf })},
		{"width", integer, n(func(r *Row) int64 { return int64(r.Width) })},
		{"height", integer, n(func(r *Row) int64 { return int64(r.Height) })},
		{"format", text, s(func(r *Row) string { return r.Format })},
		{"question", text, s(func(r *Row) string { return r.Question })},
		{"prompt", text, s(func(r *Row) string { return r.Prompt })},
		{"text", text, func(r *Row) any { return r.Text }},
		{"choice", text, s(func(r *Row) string { return r.Choice })},
		{"choice_score", real, func(r *Row) any {
			if r.ChoiceScore == nil {
				return nil
			}
			return *r.ChoiceScore
		}},
		{"finish_reason", text, s(func(r *Row) string { return r.FinishReason })},
		{"prompt_tokens", integer, n(func(r *Row) int64 { return int64(r.PromptTokens) })},
		{"image_tokens", integer, n(func(r *Row) int64 { return int64(r.ImageTokens) })},
		{"completion_tokens", integer, n(func(r *Row) int64 { return int64(r.CompletionTokens) })},
		{"seed", integer, func(r *Row) any {
			if r.Seed == nil {
				return nil
			}
			return int64(*r.Seed)
		}},
		{"model", text, s(func(r *Row) string { return r.Model })},
		{"model_digest", text, s(func(r *Row) string { return r.ModelDigest })},
		{"seconds", real, func(r *Row) any { return r.Seconds }},
		{"attempts", integer, func(r *Row) any { return int64(r.Attempts) }},
		{"error_code", text, s(func(r *Row) string { return r.ErrorCode })},
		{"error", text, s(func(r *Row) string { return r.Error })},
		{"key", text, s(func(r *Row) string { return r.Key })},
	}
	return append(cols, dataColumns(c.Schema)...)
}

// mostFields bounds the columns that a schema adds.
const mostFields = 1000

// dataColumns are those of a schema's properties. What is no scalar is its JSON.
func dataColumns(schema string) []column {
	var s struct {
		Properties orderedProperties `json:"properties"`
	}
	if schema == "" || json.Unmarshal([]byte(schema), &s) != nil {
		return nil
	}
	var cols []column
	for _, p := range s.Properties[:min(len(s.Properties), mostFields)] {
		k := map[string]kind{"integer": integer, "number": real, "boolean": boolean}[p.Type]
		cols = append(cols, column{"data." + p.name, k, func(r *Row) any { return dataValue(r.Data, p.name, k) }})
	}
	return cols
}

// property is a schema's property as far as a column depends on it.
type property struct {
	name string
	Type string
}

// orderedProperties are a schema's properties in its order, which is that of the answer.
type orderedProperties []property

// UnmarshalJSON reads an object and keeps the order of its names.
func (o *orderedProperties) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(strings.NewReader(string(b)))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("properties: want an object")
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		var v any
		if err := d.Decode(&v); err != nil {
			return err
		}
		p := property{name: t.(string)}
		if m, ok := v.(map[string]any); ok {
			p.Type, _ = m["type"].(string)
		}
		if !slices.ContainsFunc(*o, func(q property) bool { return q.name == p.name }) {
			*o = append(*o, p)
		}
	}
	return nil
}

// dataValue is a field of an answer as a value of kind k, or nil.
func dataValue(data json.RawMessage, field string, k kind) any {
	var fields map[string]json.RawMessage
	if len(data) == 0 || json.Unmarshal(data, &fields) != nil {
		return nil
	}
	raw, ok := fields[field]
	if !ok || string(raw) == "null" {
		return nil
	}
	switch k {
	case integer:
		return scalar[int64](raw)
	case real:
		return scalar[float64](raw)
	case boolean:
		return scalar[bool](raw)
	}
	if v := scalar[string](raw); v != nil {
		return v
	}
	return string(raw)
}

func scalar[T any](raw json.RawMessage) any {
	var v T
	if json.Unmarshal(raw, &v) != nil {
		return nil
	}
	return v
}

// writeCSV writes the journal's rows as RFC 4180 has them, the columns' names first. A value that a spreadsheet would
// take for a formula is written as it is: the file is data.
func writeCSV(w io.Writer, j *Journal, c *Config) error {
	out := csv.NewWriter(w)
	cols := columns(c)
	rec := make([]string, len(cols))
	for i, col := range cols {
		rec[i] = col.name
	}
	if err := out.Write(rec); err != nil {
		return err
	}
	err := j.Each(func(r *Row, _ []byte) error {
		for i, col := range cols {
			rec[i] = cell(col.value(r))
		}
		return out.Write(rec)
	})
	if err != nil {
		return err
	}
	out.Flush()
	return out.Error()
}

func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return fmt.Sprint(v)
}
