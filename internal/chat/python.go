package chat

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mitsuhiko/minijinja/minijinja-go/v2"
	"github.com/mitsuhiko/minijinja/minijinja-go/v2/filters"
	"github.com/mitsuhiko/minijinja/minijinja-go/v2/value"
)

// The part of Python and Jinja2 that chat templates count on and MiniJinja does
// differently or not at all. Strings may hold guards: see mark. Case is mapped a rune
// at a time: "ß" has no upper case here.

type (
	val    = value.Value
	kwargs = map[string]value.Value
)

// stringMethods are Python's str methods. x is the receiver, its guards included.
var stringMethods = map[string]func(m mark, x string, a arguments) (val, error){
	"strip":  func(m mark, x string, a arguments) (val, error) { return m.strip(x, a, true, true) },
	"lstrip": func(m mark, x string, a arguments) (val, error) { return m.strip(x, a, true, false) },
	"rstrip": func(m mark, x string, a arguments) (val, error) { return m.strip(x, a, false, true) },
	"split":  func(m mark, x string, a arguments) (val, error) { return m.split(x, a, false) },
	"rsplit": func(m mark, x string, a arguments) (val, error) { return m.split(x, a, true) },
	"splitlines": func(m mark, x string, a arguments) (val, error) {
		return list(m.cut(x, lines(m.plain(x))...)), nil
	},
	"partition":  func(m mark, x string, a arguments) (val, error) { return m.partition(x, a, strings.Index) },
	"rpartition": func(m mark, x string, a arguments) (val, error) { return m.partition(x, a, strings.LastIndex) },
	"removeprefix": func(m mark, x string, a arguments) (val, error) {
		s := m.plain(x)
		return value.FromString(m.cut(x, span{len(s) - len(strings.TrimPrefix(s, m.plain(a.str(0)))), len(s)})[0]), nil
	},
	"removesuffix": func(m mark, x string, a arguments) (val, error) {
		return value.FromString(m.cut(x, span{0, len(strings.TrimSuffix(m.plain(x), m.plain(a.str(0))))})[0]), nil
	},
	"replace": func(m mark, x string, a arguments) (val, error) { return m.replace(x, a) },
	"startswith": func(m mark, x string, a arguments) (val, error) {
		return m.anyOf(a, func(s string) bool { return strings.HasPrefix(m.plain(x), s) }), nil
	},
	"endswith": func(m mark, x string, a arguments) (val, error) {
		return m.anyOf(a, func(s string) bool { return strings.HasSuffix(m.plain(x), s) }), nil
	},
	"find":  func(m mark, x string, a arguments) (val, error) { return m.find(x, a, strings.Index), nil },
	"rfind": func(m mark, x string, a arguments) (val, error) { return m.find(x, a, strings.LastIndex), nil },
	"count": func(m mark, x string, a arguments) (val, error) {
		return value.FromInt(int64(strings.Count(m.plain(x), m.plain(a.str(0))))), nil
	},
	"join":       func(m mark, x string, a arguments) (val, error) { return join(x, a.at(0)) },
	"upper":      func(m mark, x string, a arguments) (val, error) { return value.FromString(strings.ToUpper(x)), nil },
	"lower":      func(m mark, x string, a arguments) (val, error) { return value.FromString(strings.ToLower(x)), nil },
	"capitalize": func(m mark, x string, a arguments) (val, error) { return m.capitalize(x, never), nil },
	"title": func(m mark, x string, a arguments) (val, error) {
		return m.capitalize(x, func(r rune) bool { return !unicode.IsLetter(r) }), nil
	},
	"isdigit": func(m mark, x string, a arguments) (val, error) { return m.all(x, unicode.IsDigit), nil },
	"isspace": func(m mark, x string, a arguments) (val, error) { return m.all(x, isSpace), nil },
	"isalpha": func(m mark, x string, a arguments) (val, error) { return m.all(x, unicode.IsLetter), nil },
	"isalnum": func(m mark, x string, a arguments) (val, error) {
		return m.all(x, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }), nil
	},
}

// dictMethods are Python's dict methods. A dict's order is orderedKeys.
var dictMethods = map[string]func(x map[string]val, a arguments) (val, error){
	"get": func(x map[string]val, a arguments) (val, error) {
		if v, ok := x[a.str(0)]; ok {
			return v, nil
		}
		if v := a.at(1); !v.IsUndefined() {
			return v, nil
		}
		return value.None(), nil
	},
	"keys": func(x map[string]val, a arguments) (val, error) { return list(orderedKeys(x)), nil },
	"values": func(x map[string]val, a arguments) (val, error) {
		out := make([]val, 0, len(x))
		for _, k := range orderedKeys(x) {
			out = append(out, x[k])
		}
		return value.FromSlice(out), nil
	},
	"items": func(x map[string]val, a arguments) (val, error) {
		out := make([]val, 0, len(x))
		for _, k := range orderedKeys(x) {
			out = append(out, value.FromSlice([]val{value.FromString(k), x[k]}))
		}
		return value.FromSlice(out), nil
	},
}

// missingMethods are methods of Python's str, list and dict that templates may name
// but this package does not have, or that Jinja2's sandbox forbids (they change a value).
var missingMethods = []string{
	"append", "casefold", "center", "clear", "encode", "expandtabs", "extend", "format", "format_map",
	"insert", "ljust", "pop", "popitem", "remove", "rindex", "rjust", "setdefault", "sort", "swapcase",
	"translate", "update", "zfill",
}

func isMethod(name string) bool {
	return stringMethods[name] != nil || dictMethods[name] != nil || slices.Contains(missingMethods, name)
}

// orderedKeys returns the keys of x in the order in which transformers builds messages
// and their parts, then by name: MiniJinja's maps keep no order.
func orderedKeys(x map[string]val) []string {
	rank := func(k string) int {
		if i := slices.Index([]string{"role", "content", "type", "text"}, k); i >= 0 {
			return i
		}
		return math.MaxInt
	}
	return slices.SortedFunc(maps.Keys(x), func(a, b string) int {
		if ra, rb := rank(a), rank(b); ra != rb {
			return ra - rb
		}
		return strings.Compare(a, b)
	})
}

// arguments are those of a call, as Python's functions take them.
type arguments struct {
	args   []val
	kwargs kwargs
}

// at returns argument i, or one of the named ones if the call gave that instead.
func (a arguments) at(i int, names ...string) val {
	if i < len(a.args) {
		return a.args[i]
	}
	for _, name := range names {
		if v, ok := a.kwargs[name]; ok {
			return v
		}
	}
	return value.Undefined()
}

func (a arguments) str(i int, names ...string) string {
	s, _ := a.at(i, names...).AsString()
	return s
}

// count returns a count argument (maxsplit, count): -1, no limit, when not given.
func (a arguments) count(i int, name string) int {
	if n, ok := a.at(i, name).AsInt(); ok && n >= 0 && n < math.MaxInt32 {
		return int(n)
	}
	return -1
}

func list(parts []string) val {
	out := make([]val, len(parts))
	for i, p := range parts {
		out[i] = value.FromString(p)
	}
	return value.FromSlice(out)
}

func never(rune) bool { return false }

// isSpace is Python's str.isspace for one character.
func isSpace(r rune) bool { return unicode.IsSpace(r) || 0x1c <= r && r <= 0x1f }

func (m mark) strip(x string, a arguments, left, right bool) (val, error) {
	remove := isSpace
	if chars, ok := a.at(0, "chars").AsString(); ok {
		chars = m.plain(chars)
		remove = func(r rune) bool { return strings.ContainsRune(chars, r) }
	}
	s := m.plain(x)
	sp := span{0, len(s)}
	if left {
		sp.from = len(s) - len(strings.TrimLeftFunc(s, remove))
	}
	if right {
		sp.to = max(sp.from, len(strings.TrimRightFunc(s, remove)))
	}
	return value.FromString(m.cut(x, sp)[0]), nil
}

func (m mark) split(x string, a arguments, fromRight bool) (val, error) {
	s, limit := m.plain(x), a.count(1, "maxsplit")
	var fields []span // of s, if split at every separator
	sep, ok := a.at(0, "sep").AsString()
	if sep = m.plain(sep); !ok {
		start := -1
		for i, r := range s {
			if space := isSpace(r); space && start >= 0 {
				fields, start = append(fields, span{start, i}), -1
			} else if !space && start < 0 {
				start = i
			}
		}
		if start >= 0 {
			fields = append(fields, span{start, len(s)})
		}
	} else if sep == "" {
		return value.Undefined(), errors.New("split: empty separator")
	} else {
		fields = separated(s, sep, fromRight)
	}
	if n := len(fields) - 1 - limit; limit >= 0 && n >= 0 {
		// The last field takes the rest, from the right the first one.
		if fromRight {
			fields = append([]span{{fields[0].from, fields[n].to}}, fields[n+1:]...)
		} else {
			fields = append(fields[:limit:limit], span{fields[limit].from, fields[len(fields)-1].to})
		}
		if !ok && fromRight {
			fields[0].from = 0
		} else if !ok {
			fields[limit].to = len(s)
		}
	}
	return list(m.cut(x, fields...)), nil
}

// separated returns what is between the occurrences of sep in s.
func separated(s, sep string, fromRight bool) []span {
	var fields []span
	if fromRight {
		for end := len(s); ; {
			i := strings.LastIndex(s[:end], sep)
			if i < 0 {
				fields = append(fields, span{0, end})
				slices.Reverse(fields)
				return fields
			}
			fields = append(fields, span{i + len(sep), end})
			end = i
		}
	}
	start := 0
	for {
		i := strings.Index(s[start:], sep)
		if i < 0 {
			return append(fields, span{start, len(s)})
		}
		fields = append(fields, span{start, start + i})
		start += i + len(sep)
	}
}

func lines(s string) []span {
	var out []span
	for start := 0; start < len(s); {
		end := strings.IndexAny(s[start:], "\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029")
		if end < 0 {
			return append(out, span{start, len(s)})
		}
		end += start
		out = append(out, span{start, end})
		if strings.HasPrefix(s[end:], "\r\n") {
			end++
		}
		_, size := utf8.DecodeRuneInString(s[end:])
		start = end + size
	}
	return out
}

func (m mark) partition(x string, a arguments, index func(s, sep string) int) (val, error) {
	s, sep := m.plain(x), m.plain(a.str(0))
	if sep == "" {
		return value.Undefined(), errors.New("partition: empty separator")
	}
	i := index(s, sep)
	switch {
	case i >= 0:
		return list(m.cut(x, span{0, i}, span{i, i + len(sep)}, span{i + len(sep), len(s)})), nil
	case index("aa", "a") == 0:
		return list([]string{x, "", ""}), nil
	default:
		return list([]string{"", "", x}), nil
	}
}

func (m mark) replace(x string, a arguments) (val, error) {
	old := m.plain(a.str(0, "old"))
	if old == "" {
		return value.Undefined(), errors.New("replace: the text to replace is empty")
	}
	fields := separated(m.plain(x), old, false)
	if limit := a.count(2, "count"); limit >= 0 && limit < len(fields)-1 {
		fields = append(fields[:limit:limit], span{fields[limit].from, fields[len(fields)-1].to})
	}
	return value.FromString(strings.Join(m.cut(x, fields...), a.str(1, "new"))), nil
}

// anyOf reports whether the first argument, a string or a sequence of them, has one
// that matches.
func (m mark) anyOf(a arguments, match func(string) bool) val {
	options := []val{a.at(0)}
	if seq, ok := a.at(0).AsSlice(); ok {
		options = seq
	}
	return value.FromBool(slices.ContainsFunc(options, func(v val) bool {
		s, ok := v.AsString()
		return ok && match(m.plain(s))
	}))
}

func (m mark) find(x string, a arguments, index func(s, sep string) int) val {
	s := m.plain(x)
	i := index(s, m.plain(a.str(0)))
	if i > 0 {
		i = utf8.RuneCountInString(s[:i])
	}
	return value.FromInt(int64(i))
}

func (m mark) all(x string, is func(rune) bool) val {
	s := m.plain(x)
	return value.FromBool(s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !is(r) }))
}

// capitalize makes the first letter of x, and those after a rune that is a boundary,
// title case and the others lower case.
func (m mark) capitalize(x string, boundary func(rune) bool) val {
	start := true
	return value.FromString(strings.Map(func(r rune) rune {
		if r == m.guard {
			return r
		}
		was := start
		start = boundary(r)
		if was {
			return unicode.ToTitle(r)
		}
		return unicode.ToLower(r)
	}, x))
}

func join(sep string, items val) (val, error) {
	parts := items.Iter()
	if parts == nil && !items.IsUndefined() {
		return value.Undefined(), fmt.Errorf("join: %s is not iterable", items.Kind())
	}
	out := make([]string, len(parts))
	for i, p := range parts {
		out[i] = str(p)
	}
	return value.FromString(strings.Join(out, sep)), nil
}

// str is Python's str(v), except that a dict's order is orderedKeys.
func str(v val) string {
	if s, ok := v.AsString(); ok {
		return s
	}
	return repr(v)
}

// repr is Python's repr(v).
func repr(v val) string {
	if s, ok := v.AsString(); ok {
		quote := '\''
		if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
			quote = '"'
		}
		var b strings.Builder
		b.WriteRune(quote)
		for _, r := range s {
			switch {
			case r == quote || r == '\\':
				b.WriteRune('\\')
				b.WriteRune(r)
			case r == ' ' || isGuard(r) || unicode.IsPrint(r):
				b.WriteRune(r)
			case r < 0x100 && !strings.ContainsRune("\n\r\t", r):
				fmt.Fprintf(&b, `\x%02x`, r)
			default: // \n, \r, \t, \uNNNN, \UNNNNNNNN
				b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
			}
		}
		b.WriteRune(quote)
		return b.String()
	}
	if seq, ok := v.AsSlice(); ok {
		items := make([]string, len(seq))
		for i := range seq {
			items[i] = repr(seq[i])
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	if dict, ok := v.AsMap(); ok {
		var items []string
		for _, k := range orderedKeys(dict) {
			items = append(items, repr(value.FromString(k))+": "+repr(dict[k]))
		}
		return "{" + strings.Join(items, ", ") + "}"
	}
	return v.String()
}

// toJSON is transformers' tojson filter: json.dumps(v, ensure_ascii=False, indent=indent).
// The escapes of a user's text get the guards that they would have as text.
func (m mark) toJSON(b *strings.Builder, v val, indent, newline string) error {
	sep, open, end := ", ", "", ""
	if indent != "" {
		open, end = newline+indent, newline
		sep = "," + open
	}
	if s, ok := v.AsString(); ok {
		m.quoteJSON(b, s)
	} else if seq, ok := v.AsSlice(); ok {
		if len(seq) == 0 {
			open, end = "", ""
		}
		b.WriteString("[" + open)
		for i, item := range seq {
			if i > 0 {
				b.WriteString(sep)
			}
			if err := m.toJSON(b, item, indent, newline+indent); err != nil {
				return err
			}
		}
		b.WriteString(end + "]")
	} else if dict, ok := v.AsMap(); ok {
		if len(dict) == 0 {
			open, end = "", ""
		}
		b.WriteString("{" + open)
		for i, k := range orderedKeys(dict) {
			if i > 0 {
				b.WriteString(sep)
			}
			m.quoteJSON(b, k)
			b.WriteString(": ")
			if err := m.toJSON(b, dict[k], indent, newline+indent); err != nil {
				return err
			}
		}
		b.WriteString(end + "}")
	} else if v.IsNone() {
		b.WriteString("null")
	} else if v.Kind() == value.KindBool || v.Kind() == value.KindNumber {
		b.WriteString(strings.ToLower(v.String()))
	} else {
		return fmt.Errorf("tojson: %s is not JSON serializable", v.Kind())
	}
	return nil
}

func (m mark) quoteJSON(b *strings.Builder, s string) {
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(m.protect(`\` + string(r)))
		case r < ' ':
			escape, ok := map[rune]string{'\n': `\n`, '\r': `\r`, '\t': `\t`, '\b': `\b`, '\f': `\f`}[r]
			if !ok {
				escape = fmt.Sprintf(`\u%04x`, r)
			}
			b.WriteString(m.protect(escape))
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
}

// indices returns the places that Python's x[start:stop:step] takes of n.
func indices(n int, bounds []val) ([]int, error) {
	step := 1
	if s, ok := bounds[2].AsInt(); ok {
		step = int(s)
	}
	if step == 0 {
		return nil, errors.New("slice step cannot be zero")
	}
	low, high := 0, n // the range of start and stop
	if step < 0 {
		low, high = -1, n-1
	}
	bound := func(v val, absent int) int {
		i64, ok := v.AsInt()
		if !ok {
			return absent
		}
		i := int(max(min(i64, math.MaxInt32), math.MinInt32))
		if i < 0 {
			i += n
		}
		return max(low, min(i, high))
	}
	start, stop := bound(bounds[0], low), bound(bounds[1], high)
	if step < 0 {
		start, stop = bound(bounds[0], high), bound(bounds[1], low)
	}
	out := []int{}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		out = append(out, i)
	}
	return out, nil
}

// slice is Python's x[start:stop:step].
func (m mark) slice(x val, bounds []val) (val, error) {
	if s, ok := x.AsString(); ok {
		runes := []rune(m.plain(s))
		at, err := indices(len(runes), bounds)
		if err != nil || len(at) == 0 {
			return value.FromString(""), err
		}
		if first, last := at[0], at[len(at)-1]; last-first == len(at)-1 { // one piece, in order
			from := len(string(runes[:first]))
			return value.FromString(m.cut(s, span{from, from + len(string(runes[first:last+1]))})[0]), nil
		}
		out := make([]rune, len(at))
		for i, j := range at {
			out[i] = runes[j]
		}
		return value.FromString(m.protect(string(out))), nil
	}
	items := x.Iter()
	if items == nil {
		return value.Undefined(), fmt.Errorf("cannot slice %s", x.Kind())
	}
	at, err := indices(len(items), bounds)
	out := make([]val, len(at))
	for i, j := range at {
		out[i] = items[j]
	}
	return value.FromSlice(out), err
}

// item is Jinja2's x[key].
func (m mark) item(x, key val) (val, error) {
	if x.IsUndefined() {
		return x, errors.New("an undefined value has no items")
	}
	s, ok := x.AsString()
	i, isInt := key.AsInt()
	if !ok || !isInt {
		return x.GetItem(key), nil
	}
	n := int64(utf8.RuneCountInString(m.plain(s)))
	if i < 0 {
		i += n
	}
	if i < 0 || i >= n {
		return value.Undefined(), nil
	}
	return m.slice(x, []val{value.FromInt(i), value.FromInt(i + 1), value.None()})
}

// contains is Python's "needle in x".
func (m mark) contains(x val, needle string) (bool, error) {
	if s, ok := x.AsString(); ok {
		return strings.Contains(m.plain(s), m.plain(needle)), nil
	}
	if dict, ok := x.AsMap(); ok {
		_, found := dict[needle]
		return found, nil
	}
	items := x.Iter()
	if items == nil && !x.IsUndefined() {
		return false, fmt.Errorf("cannot search %s", x.Kind())
	}
	return slices.ContainsFunc(items, value.FromString(needle).Equal), nil
}

// rendering is what one Render hands to the functions that its template calls.
type rendering struct {
	mark
	raised *string // the message of raise_exception, when called
}

type renderingKey struct{}

func renderingOf(ctx context.Context) *rendering { return ctx.Value(renderingKey{}).(*rendering) }

// callMethod is x.name(args…).
func callMethod(state *minijinja.State, args []val, kw kwargs) (val, error) {
	x, name, a := args[0], args[1].String(), arguments{args[2:], kw}
	if s, ok := x.AsString(); ok {
		if f := stringMethods[name]; f != nil {
			return f(renderingOf(state.Context()).mark, s, a)
		}
	}
	if dict, ok := x.AsMap(); ok {
		if f := dictMethods[name]; f != nil {
			return f(dict, a)
		}
	}
	if seq, ok := x.AsSlice(); ok && name == "count" {
		n := 0
		for _, item := range seq {
			if item.Equal(a.at(0)) {
				n++
			}
		}
		return value.FromInt(int64(n)), nil
	}
	if f, ok := x.GetAttr(name).AsCallable(); ok {
		return f.Call(state, a.args, kw)
	}
	return value.Undefined(), fmt.Errorf("%s has no method %q", x.Kind(), name)
}

// install gives env the functions, filters and tests of this file.
func install(env *minijinja.Environment) {
	env.AddFunction(fnMethod, callMethod)
	env.AddFunction(fnItem, func(state *minijinja.State, args []val, _ kwargs) (val, error) {
		return renderingOf(state.Context()).item(args[0], args[1])
	})
	env.AddFunction(fnSlice, func(state *minijinja.State, args []val, _ kwargs) (val, error) {
		return renderingOf(state.Context()).slice(args[0], args[1:])
	})
	env.AddFunction(fnContains, func(state *minijinja.State, args []val, _ kwargs) (val, error) {
		ok, err := renderingOf(state.Context()).contains(args[1], args[0].String())
		return value.FromBool(ok), err
	})
	env.AddFunction("raise_exception", func(state *minijinja.State, args []val, _ kwargs) (val, error) {
		message := str(arguments{args: args}.at(0))
		renderingOf(state.Context()).raised = &message
		return value.Undefined(), errors.New("raised")
	})

	// Filters that are methods too.
	for _, name := range []string{"upper", "lower", "capitalize", "replace"} {
		addFilter(env, name, func(m mark, x val, a arguments) (val, error) { return stringMethods[name](m, str(x), a) })
	}
	addFilter(env, "trim", func(m mark, x val, a arguments) (val, error) { return m.strip(str(x), a, true, true) })
	addFilter(env, "title", func(m mark, x val, a arguments) (val, error) {
		return m.capitalize(str(x), func(r rune) bool { return isSpace(r) || strings.ContainsRune("-({[<", r) }), nil
	})
	addFilter(env, "string", func(m mark, x val, a arguments) (val, error) { return value.FromString(str(x)), nil })
	addFilter(env, "join", func(m mark, x val, a arguments) (val, error) {
		if attr, ok := a.at(1, "attribute").AsString(); ok {
			var of []val
			for _, item := range x.Iter() {
				of = append(of, item.GetAttr(attr))
			}
			x = value.FromSlice(of)
		}
		return join(a.str(0, "d"), x)
	})
	addFilter(env, "tojson", func(m mark, x val, a arguments) (val, error) {
		indent, newline := "", ""
		if n := a.count(1, "indent"); n >= 0 {
			indent, newline = strings.Repeat(" ", min(n, 16)), "\n"
		}
		var b strings.Builder
		err := m.toJSON(&b, x, indent, newline)
		return value.FromString(b.String()), err
	})
	for _, name := range []string{"length", "count"} {
		addFilter(env, name, func(m mark, x val, a arguments) (val, error) {
			if s, ok := x.AsString(); ok {
				x = value.FromString(m.plain(s))
			}
			n, ok := x.Len()
			if !ok && !x.IsUndefined() {
				return x, fmt.Errorf("%s has no length", x.Kind())
			}
			return value.FromInt(int64(n)), nil
		})
	}
	addFilter(env, "first", func(m mark, x val, a arguments) (val, error) { return m.item(sequence(x), value.FromInt(0)) })
	addFilter(env, "last", func(m mark, x val, a arguments) (val, error) { return m.item(sequence(x), value.FromInt(-1)) })
	addFilter(env, "reverse", func(m mark, x val, a arguments) (val, error) {
		return m.slice(sequence(x), []val{value.None(), value.None(), value.FromInt(-1)})
	})
	addFilter(env, "list", func(m mark, x val, a arguments) (val, error) { return value.FromSlice(elements(x)), nil })
	addFilter(env, "items", func(m mark, x val, a arguments) (val, error) {
		dict, _ := x.AsMap()
		return dictMethods["items"](dict, a)
	})
	// MiniJinja's own, but lists: an empty one of its iterators cannot be looped over,
	// and loop.last is never true in it.
	for name, f := range map[string]filters.FilterFunc{
		"select": filters.FilterSelect, "reject": filters.FilterReject, "map": filters.FilterMap,
		"selectattr": filters.FilterSelectAttr, "rejectattr": filters.FilterRejectAttr,
	} {
		env.AddFilter(name, func(state filters.State, x val, args []val, kw kwargs) (val, error) {
			out, err := f(state, x, args, kw)
			return value.FromSlice(elements(out)), err
		})
	}
	env.AddFunction("range", func(state *minijinja.State, args []val, _ kwargs) (val, error) {
		const most = 100_000 // as in Jinja2's sandbox
		a := arguments{args: args}
		start, stop, step := value.FromInt(0), a.at(0), a.at(2)
		if len(args) > 1 {
			start, stop = args[0], args[1]
		}
		from, _ := start.AsInt()
		to, _ := stop.AsInt()
		by, ok := step.AsInt()
		if !ok {
			by = 1
		}
		if by == 0 {
			return value.Undefined(), errors.New("range: step is zero")
		}
		out := []val{}
		for i := from; by > 0 && i < to || by < 0 && i > to; i += by {
			if out = append(out, value.FromInt(i)); len(out) > most {
				return value.Undefined(), fmt.Errorf("range: more than %d elements", most)
			}
		}
		return value.FromSlice(out), nil
	})
	addFilter(env, "default", fallback)
	addFilter(env, "d", fallback)

	env.AddTest("sequence", func(_ filters.State, x val, _ []val) (bool, error) {
		k := x.Kind()
		return k == value.KindString || k == value.KindSeq || k == value.KindMap, nil
	})
	env.AddTest("iterable", func(_ filters.State, x val, _ []val) (bool, error) {
		k := x.Kind()
		return k == value.KindString || k == value.KindSeq || k == value.KindMap || k == value.KindIterable || k == value.KindUndefined, nil
	})
	env.SetFormatter(func(_ *minijinja.State, x val, _ func(string) string) string {
		if x.IsUndefined() {
			return ""
		}
		return str(x)
	})
}

func addFilter(env *minijinja.Environment, name string, f func(m mark, x val, a arguments) (val, error)) {
	env.AddFilter(name, func(state filters.State, x val, args []val, kw kwargs) (val, error) {
		return f(renderingOf(state.Context()).mark, x, arguments{args, kw})
	})
}

// fallback is Jinja2's default filter.
func fallback(_ mark, x val, a arguments) (val, error) {
	if x.IsUndefined() || a.at(1, "boolean").IsTrue() && !x.IsTrue() {
		if v := a.at(0, "default_value"); !v.IsUndefined() {
			return v, nil
		}
		return value.FromString(""), nil
	}
	return x, nil
}

// elements returns the items of x, never nil: MiniJinja takes nil for "not iterable".
func elements(x val) []val { return append([]val{}, x.Iter()...) }

// sequence returns x as something with places: a string or a list.
func sequence(x val) val {
	if x.Kind() == value.KindString {
		return x
	}
	return value.FromSlice(elements(x))
}
