package chat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// maxNested is how deep the values of tools and calls may lie in each other.
const maxNested = 64

// object is a JSON object in its order.
type object struct {
	keys []string
	vals []any
}

// parseJSON reads what a template gets of a JSON text: nil, bool, string, json.Number, []any and object.
func parseJSON(raw []byte) (any, error) {
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	v, err := nextJSON(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return v, nil
}

func nextJSON(d *json.Decoder, depth int) (any, error) {
	tok, err := d.Token()
	delim, ok := tok.(json.Delim)
	switch {
	case err != nil || !ok:
		return tok, err
	case depth == maxNested:
		return nil, fmt.Errorf("values lie deeper in each other than %d", maxNested)
	case delim == '[':
		list := []any{}
		for d.More() {
			v, err := nextJSON(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = d.Token()
		return list, err
	}
	o, at := object{}, map[string]int{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		v, err := nextJSON(d, depth+1)
		if err != nil {
			return nil, err
		}
		name := key.(string)
		if i, ok := at[name]; ok { // the last one counts, as in Python
			o.vals[i] = v
			continue
		}
		at[name] = len(o.keys)
		o.keys, o.vals = append(o.keys, name), append(o.vals, v)
	}
	_, err = d.Token()
	return o, err
}

// jsonTexts yields the strings in a value.
func jsonTexts(v any, yield func(string) bool) bool {
	switch v := v.(type) {
	case string:
		return yield(v)
	case []any:
		for _, e := range v {
			if !jsonTexts(e, yield) {
				return false
			}
		}
	case object:
		for i, k := range v.keys {
			if !yield(k) || !jsonTexts(v.vals[i], yield) {
				return false
			}
		}
	}
	return true
}

// value is a JSON value as a template has it, its strings with guards.
func (m mark) value(v any) any {
	switch v := v.(type) {
	case string:
		return m.protect(v)
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case []any:
		items := make([]any, len(v))
		for i, e := range v {
			items[i] = m.value(e)
		}
		return &list{items, 'l'}
	case object:
		d := newDict()
		for i, k := range v.keys {
			d.keys = append(d.keys, m.protect(k))
			d.vals[strings.ToValidUTF8(k, "\uFFFD")] = m.value(v.vals[i])
		}
		return d
	}
	return v
}

// conversation is what a prompt is made of.
type conversation struct {
	messages []Message
	calls    []any // by message: what it calls; nil for nothing
	tools    any   // nil for none
}

// newConversation reads the JSON of messages and tools.
func newConversation(messages []Message, tools []byte) (c conversation, err error) {
	c.messages = messages
	if len(tools) > 0 {
		if c.tools, err = parseJSON(tools); err != nil {
			return c, fmt.Errorf("%w: tools: %w", ErrMessages, err)
		}
	}
	c.calls = make([]any, len(messages))
	for i, m := range messages {
		if len(m.ToolCalls) == 0 {
			continue
		}
		if c.calls[i], err = parseJSON(m.ToolCalls); err != nil {
			return c, fmt.Errorf("%w: tool calls: %w", ErrMessages, err)
		}
		c.calls[i] = withArguments(c.calls[i])
	}
	return c, nil
}

// withArguments gives functions that are called their arguments as values where they are a JSON text, as OpenAI's API
// has them: templates write them out.
func withArguments(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = withArguments(v[i])
		}
	case object:
		for i, k := range v.keys {
			text, ok := v.vals[i].(string)
			if k == "function" {
				v.vals[i] = withArguments(v.vals[i])
			} else if k == "arguments" && ok {
				if o, err := parseJSON([]byte(text)); err == nil {
					if _, ok := o.(object); ok {
						v.vals[i] = o
					}
				}
			}
		}
	}
	return v
}

// texts yields what is not the template's own.
func (c conversation) texts() iter.Seq[string] {
	return func(yield func(string) bool) {
		for s := range texts(c.messages) {
			if !yield(s) {
				return
			}
		}
		for _, v := range append([]any{c.tools}, c.calls...) {
			if !jsonTexts(v, yield) {
				return
			}
		}
	}
}

// message is message i as the template has it.
func (c conversation) message(t *Template, m mark, i int) *dict {
	d := dictOf("role", c.messages[i].Role, "content", t.content(m, c.messages[i]))
	add := func(key string, v any) { d.keys, d.vals[key] = append(d.keys, key), v }
	if c.calls[i] != nil {
		add("tool_calls", m.value(c.calls[i]))
	}
	if id := c.messages[i].ToolCallID; id != "" {
		add("tool_call_id", m.protect(id))
	}
	if name := c.messages[i].ToolName; name != "" {
		add("name", m.protect(name))
	}
	return d
}

// RenderTools is RenderContext with tools, a JSON list, that the template shows.
func (t *Template) RenderTools(ctx context.Context, messages []Message, tools []byte) (Prompt, error) {
	return t.render(ctx, messages, tools, true)
}

// Tools tells whether the template shows tools.
func (t *Template) Tools() bool { return t.tools }

// probeTools finds out whether the template shows tools.
func (t *Template) probeTools(ctx context.Context) error {
	const name = "probe_tool_name"
	tools := []byte(`[{"type": "function", "function": {"name": "` + name + `", "description": "probe",
		"parameters": {"type": "object", "properties": {}}}}]`)
	p, err := t.RenderTools(ctx, []Message{{Role: "user", Parts: []Part{{Text: "x"}}}}, tools)
	if errors.As(err, new(exceeded)) {
		return err
	}
	t.tools = err == nil && strings.Contains(mark{guard: p.Guard}.plain(p.Text), name)
	return nil
}
