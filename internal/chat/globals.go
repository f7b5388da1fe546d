package chat

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// jsonStyle is how tojson writes.
type jsonStyle struct {
	item, key string // separators
	indent    string
	pretty    bool
	sorted    bool
	ascii     bool
}

// tojson is transformers' filter: json.dumps(x, ensure_ascii=False, …).
func tojson(in *interp, x any, a arguments) (any, error) {
	if err := a.only("tojson", 4, "ensure_ascii", "indent", "separators", "sort_keys"); err != nil {
		return nil, err
	}
	ascii, _ := a.at(0, "ensure_ascii")
	sorted, _ := a.at(3, "sort_keys")
	style := jsonStyle{item: ", ", key: ": ", ascii: in.truth(ascii), sorted: in.truth(sorted)}
	if v, _ := a.at(1, "indent"); v != nil {
		style.pretty, style.item = true, ","
		if s, ok := text(v); ok {
			style.indent = s
		} else {
			n, err := a.int(1, "indent", 0)
			if err == nil {
				style.indent, err = in.repeatText(" ", n)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if v, _ := a.at(2, "separators"); v != nil {
		l, ok := v.(*list)
		if !ok || len(l.items) != 2 {
			return nil, errors.New("ValueError: separators must be two strings")
		}
		var ok2 bool
		style.item, ok = text(l.items[0])
		style.key, ok2 = text(l.items[1])
		if !ok || !ok2 {
			return nil, errors.New("TypeError: separators must be two strings")
		}
	}
	var b strings.Builder
	err := in.writeJSON(&b, x, style, 0)
	return b.String(), err
}

func (in *interp) writeJSON(b *strings.Builder, x any, style jsonStyle, depth int) error {
	if depth > maxRepr {
		return exceeded(fmt.Sprintf("a value nests deeper than %d", maxRepr))
	}
	if err := in.charge(16 + len(style.item)); err != nil {
		return err
	}
	switch x := x.(type) {
	case nil:
		b.WriteString("null")
	case string:
		return in.quoteJSON(b, x, style.ascii)
	case markup:
		return in.quoteJSON(b, string(x), style.ascii)
	case bool:
		b.WriteString(map[bool]string{true: "true", false: "false"}[x])
	case float64:
		s := floatRepr(x)
		if v, ok := map[string]string{"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}[s]; ok {
			s = v
		}
		b.WriteString(s)
	case *list:
		if x.kind == 'l' || x.kind == 't' {
			return in.writeJSONItems(b, "[]", len(x.items), style, depth, func(i int) error {
				return in.writeJSON(b, x.items[i], style, depth+1)
			})
		}
		return fmt.Errorf("TypeError: object of type %s is not JSON serializable", typeName(x))
	case *dict:
		return in.writeJSONDict(b, x, style, depth)
	default:
		if _, ok := number(x); !ok {
			return fmt.Errorf("TypeError: object of type %s is not JSON serializable", typeName(x))
		}
		return in.writeRepr(b, x, depth)
	}
	return nil
}

func (in *interp) writeJSONDict(b *strings.Builder, d *dict, style jsonStyle, depth int) error {
	keys := d.keys
	if style.sorted {
		sorted, err := in.keys(d, in.getter(nil, nil), true)
		if err == nil {
			err = in.sortKeyed(sorted, false)
		}
		if err != nil {
			return err
		}
		keys = itemsOf(sorted)
	}
	return in.writeJSONItems(b, "{}", len(keys), style, depth, func(i int) error {
		name, ok := text(keys[i])
		if !ok {
			if _, tuple := keys[i].(*list); tuple {
				return errors.New("TypeError: keys must be str, int, float, bool or None")
			}
			var inner strings.Builder
			if err := in.writeJSON(&inner, keys[i], style, depth+1); err != nil {
				return err
			}
			name = inner.String()
		}
		if err := in.quoteJSON(b, name, style.ascii); err != nil {
			return err
		}
		b.WriteString(style.key)
		v, _ := in.getItem(d, keys[i])
		return in.writeJSON(b, v, style, depth+1)
	})
}

func (in *interp) writeJSONItems(
	b *strings.Builder, brackets string, n int, style jsonStyle, depth int, item func(i int) error,
) error {
	b.WriteString(brackets[:1])
	line := func(depth int) error {
		if !style.pretty || n == 0 {
			return nil
		}
		if err := in.times(depth+1, len(style.indent)+1); err != nil {
			return err
		}
		b.WriteString("\n" + strings.Repeat(style.indent, depth))
		return nil
	}
	for i := range n {
		if err := in.charge(len(style.item) + len(style.key)); err != nil {
			return err
		}
		if i > 0 {
			b.WriteString(style.item)
		}
		if err := line(depth + 1); err != nil {
			return err
		}
		if err := item(i); err != nil {
			return err
		}
	}
	if err := line(depth); err != nil {
		return err
	}
	b.WriteString(brackets[1:])
	return nil
}

// quoteJSON writes s as JSON. The escapes of a user's text get the guards that they would have as text.
func (in *interp) quoteJSON(b *strings.Builder, s string, ascii bool) error {
	if err := in.charge(2*len(s) + 2); err != nil {
		return err
	}
	b.WriteByte('"')
	for _, r := range s {
		escape := ""
		switch {
		case r == '"' || r == '\\':
			escape = `\` + string(r)
		case r < ' ' || ascii && r > '~' && r != in.guard:
			var ok bool
			if escape, ok = map[rune]string{'\n': `\n`, '\r': `\r`, '\t': `\t`, '\b': `\b`, '\f': `\f`}[r]; !ok {
				escape = fmt.Sprintf(`\u%04x`, r)
			}
			if r > 0xffff {
				escape = fmt.Sprintf(`\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
			}
		default:
			b.WriteRune(r)
			continue
		}
		escape = in.protect(escape)
		if err := in.charge(2 * len(escape)); err != nil {
			return err
		}
		b.WriteString(escape)
	}
	b.WriteByte('"')
	return nil
}

// globals are the functions that a template may call.
func globals(now func() time.Time) map[string]any {
	out := map[string]any{}
	for name, f := range map[string]func(in *interp, a arguments) (any, error){
		"range": rangeOf, "namespace": makeNamespace, "dict": makeDict, "joiner": joiner, "cycler": unsupported("cycler"),
		"lipsum": unsupported("lipsum"),
		"raise_exception": func(in *interp, a arguments) (any, error) {
			v, _ := a.at(0, "message")
			s, err := in.str(v)
			if err != nil {
				return nil, err
			}
			in.raised = &s
			return nil, errors.New("raised")
		},
		"strftime_now": func(in *interp, a arguments) (any, error) {
			s, _, err := a.str(0, "format")
			if err == nil {
				err = in.times(len(s), 64)
			}
			if err != nil {
				return nil, err
			}
			return strftime(now(), in.plain(s))
		},
	} {
		out[name] = &function{name, f}
	}
	return out
}

func unsupported(name string) func(*interp, arguments) (any, error) {
	return func(*interp, arguments) (any, error) { return nil, fmt.Errorf("function %q is not supported", name) }
}

// rangeOf is range, of at most 100,000 numbers as in Jinja2's sandbox.
func rangeOf(in *interp, a arguments) (any, error) {
	const most = 100_000
	var at [3]int
	for i := range a.args {
		var err error
		if i > 2 || a.args[i] == nil {
			return nil, errors.New("TypeError: range expects one to three integers")
		}
		if at[i], err = a.int(i, "", 0); err != nil {
			return nil, err
		}
	}
	from, to, by := at[0], at[1], at[2]
	switch len(a.args) {
	case 0:
		return nil, errors.New("TypeError: range expects one to three integers")
	case 1:
		from, to, by = 0, at[0], 1
	case 2:
		by = 1
	}
	if by == 0 {
		return nil, errors.New("ValueError: range() arg 3 must not be zero")
	}
	n := 0
	if by > 0 && to > from {
		n = (to - from + by - 1) / by
	} else if by < 0 && from > to {
		n = (from - to - by - 1) / -by
	}
	if n > most {
		return nil, fmt.Errorf("OverflowError: range too big; the sandbox blocks ranges larger than %d", most)
	}
	if err := in.times(n, 24); err != nil {
		return nil, err
	}
	out := make([]any, n)
	for i := range out {
		out[i] = int64(from + i*by)
	}
	return &list{out, 'r'}, nil
}

func makeNamespace(in *interp, a arguments) (any, error) {
	d, err := makeDict(in, a)
	if err != nil {
		return nil, err
	}
	ns := &namespace{map[string]any{}}
	for _, k := range d.(*dict).keys {
		if name, ok := text(k); ok {
			ns.vars[in.plain(name)], _ = in.getItem(d.(*dict), k)
		}
	}
	return ns, nil
}

func makeDict(in *interp, a arguments) (any, error) {
	d := newDict()
	if len(a.args) > 1 {
		return nil, errors.New("TypeError: dict expected at most 1 argument")
	}
	if len(a.args) == 1 {
		var pairs any = a.args[0]
		if from, ok := pairs.(*dict); ok {
			var err error
			if pairs, err = in.pairs(from, 'i'); err != nil {
				return nil, err
			}
		}
		items, err := in.iter(pairs)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			pair, err := in.iter(item)
			if err != nil || len(pair) != 2 {
				return nil, errors.Join(err, errors.New("ValueError: dict needs pairs"))
			}
			if err := in.setItem(d, pair[0], pair[1]); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range a.names {
		if err := in.setItem(d, name, a.kwargs[name]); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func joiner(in *interp, a arguments) (any, error) {
	sep, given := a.at(0, "sep")
	if !given {
		sep = ", "
	}
	used := false
	return &function{"joiner", func(*interp, arguments) (any, error) {
		if used {
			return sep, nil
		}
		used = true
		return "", nil
	}}, nil
}
