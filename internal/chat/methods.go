package chat

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// isSpace is Python's str.isspace for one character.
func isSpace(r rune) bool { return unicode.IsSpace(r) || 0x1c <= r && r <= 0x1f }

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

// lineEnds are the characters at which str.splitlines cuts.
const lineEnds = "\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029"

func lines(s string) []span {
	var out []span
	for start := 0; start < len(s); {
		end := strings.IndexAny(s[start:], lineEnds)
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

// method is one of Python's methods. x is the receiver.
type method func(in *interp, x any, a arguments) (any, error)

// textMethod charges for the receiver, and makes a method of f. The text may hold guards: see mark.
func textMethod(f func(in *interp, s string, a arguments) (any, error)) method { return costs(2, f) }

// reading is textMethod for an f that makes nothing of the receiver's size, or only parts of it.
func reading(f func(in *interp, s string, a arguments) (any, error)) method { return costs(0, f) }

// costs makes a method of f, which makes bytes for each byte of the receiver.
func costs(bytes int, f func(in *interp, s string, a arguments) (any, error)) method {
	return func(in *interp, x any, a arguments) (any, error) {
		s, _ := text(x)
		if err := errors.Join(in.work(2*len(s)), in.charge(bytes*len(s))); err != nil {
			return nil, err
		}
		out, err := f(in, s, a)
		if t, ok := out.(string); ok {
			out = like(x, t)
		}
		return out, err
	}
}

var stringMethods map[string]method

// otherMethods are those that are not supported, or that Jinja2's sandbox forbids (they change a value).
var otherMethods = map[string][]string{
	"str": strings.Fields("expandtabs format_map isascii isdecimal isidentifier isnumeric isprintable maketrans " +
		"swapcase translate"),
	"list": strings.Fields("append clear copy extend insert pop remove reverse sort"),
	"dict": strings.Fields("clear copy fromkeys pop popitem setdefault update"),
}

func methodOf(x any, name string) func(in *interp, a arguments) (any, error) {
	kind := typeName(x)
	var m method
	switch x := x.(type) {
	case string, markup:
		kind, m = "str", stringMethods[name]
	case *dict:
		m = dictMethods[name]
	case *list:
		if x.kind == 'l' || x.kind == 't' {
			m = listMethods[name]
		}
	}
	if m != nil {
		return func(in *interp, a arguments) (any, error) { return m(in, x, a) }
	}
	if slices.Contains(otherMethods[kind], name) {
		return func(*interp, arguments) (any, error) {
			return nil, fmt.Errorf("SecurityError: method %q of %s is not supported", name, kind)
		}
	}
	return nil
}

var dictMethods = map[string]method{
	"get": func(in *interp, x any, a arguments) (any, error) {
		key, _ := a.at(0)
		if _, err := in.hashKey(key); err != nil {
			return nil, err
		}
		if v, ok := in.getItem(x.(*dict), key); ok {
			return v, nil
		}
		v, _ := a.at(1)
		return v, nil
	},
	"keys":   func(in *interp, x any, _ arguments) (any, error) { return &list{x.(*dict).keys, 'k'}, nil },
	"values": func(in *interp, x any, _ arguments) (any, error) { return in.pairs(x.(*dict), 'v') },
	"items":  func(in *interp, x any, _ arguments) (any, error) { return in.pairs(x.(*dict), 'i') },
}

// pairs returns the values or items of d.
func (in *interp) pairs(d *dict, kind byte) (*list, error) {
	if err := in.times(len(d.keys), 96); err != nil {
		return nil, err
	}
	out := make([]any, len(d.keys))
	for i, k := range d.keys {
		out[i], _ = in.getItem(d, k)
		if kind == 'i' {
			out[i] = &list{[]any{k, out[i]}, 't'}
		}
	}
	return &list{out, kind}, nil
}

var listMethods = map[string]method{
	"count": func(in *interp, x any, a arguments) (any, error) {
		v, _ := a.at(0)
		n := int64(0)
		for _, item := range x.(*list).items {
			same, err := in.equal(item, v)
			if err != nil {
				return nil, err
			}
			if same {
				n++
			}
		}
		return n, nil
	},
	"index": func(in *interp, x any, a arguments) (any, error) {
		v, _ := a.at(0)
		if len(a.args) != 1 {
			return nil, errors.New("TypeError: list.index with bounds is not supported")
		}
		for i, item := range x.(*list).items {
			if same, err := in.equal(item, v); same || err != nil {
				return int64(i), err
			}
		}
		return nil, errors.New("ValueError: the value is not in the list")
	},
}

func init() {
	stringMethods = map[string]method{
		"strip":      reading(func(in *interp, s string, a arguments) (any, error) { return in.strip(s, a, true, true) }),
		"lstrip":     reading(func(in *interp, s string, a arguments) (any, error) { return in.strip(s, a, true, false) }),
		"rstrip":     reading(func(in *interp, s string, a arguments) (any, error) { return in.strip(s, a, false, true) }),
		"split":      reading(func(in *interp, s string, a arguments) (any, error) { return in.split(s, a, false) }),
		"rsplit":     reading(func(in *interp, s string, a arguments) (any, error) { return in.split(s, a, true) }),
		"partition":  reading(func(in *interp, s string, a arguments) (any, error) { return in.partition(s, a, false) }),
		"rpartition": reading(func(in *interp, s string, a arguments) (any, error) { return in.partition(s, a, true) }),
		"splitlines": textMethod(splitlines),
		"replace":    reading(func(in *interp, s string, a arguments) (any, error) { return in.replace(s, a) }),
		"join":       textMethod(func(in *interp, s string, a arguments) (any, error) { return in.joinCall(s, a) }),
		"startswith": reading(affixed(strings.HasPrefix)),
		"endswith":   reading(affixed(strings.HasSuffix)),
		"find":       reading(finding(strings.Index, false)),
		"rfind":      reading(finding(strings.LastIndex, false)),
		"index":      reading(finding(strings.Index, true)),
		"rindex":     reading(finding(strings.LastIndex, true)),
		"count": reading(func(in *interp, s string, a arguments) (any, error) {
			sub, err := in.needle("count", a)
			return int64(strings.Count(in.plain(s), sub)), err
		}),
		"removeprefix": reading(func(in *interp, x string, a arguments) (any, error) {
			sub, err := in.needle("removeprefix", a)
			if err != nil {
				return nil, err
			}
			s := in.plain(x)
			return in.part(x, span{len(s) - len(strings.TrimPrefix(s, sub)), len(s)})
		}),
		"removesuffix": reading(func(in *interp, x string, a arguments) (any, error) {
			sub, err := in.needle("removesuffix", a)
			if err != nil {
				return nil, err
			}
			return in.part(x, span{0, len(strings.TrimSuffix(in.plain(x), sub))})
		}),
		"upper": textMethod(func(in *interp, s string, a arguments) (any, error) { return in.upper(s), nil }),
		"lower": textMethod(func(in *interp, s string, a arguments) (any, error) { return strings.ToLower(s), nil }),
		"casefold": textMethod(func(in *interp, s string, a arguments) (any, error) {
			return strings.ReplaceAll(strings.ToLower(s), "ß", in.protect("ss")), nil
		}),
		"capitalize": textMethod(func(in *interp, s string, a arguments) (any, error) {
			return in.capitalize(s, func(rune) bool { return false }), nil
		}),
		"title": textMethod(func(in *interp, s string, a arguments) (any, error) {
			return in.capitalize(s, func(r rune) bool { return !unicode.IsLetter(r) }), nil
		}),
		"isdigit": every(unicode.IsDigit), "isspace": every(isSpace), "isalpha": every(unicode.IsLetter),
		"isalnum": every(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }),
		"islower": cased(unicode.IsLower), "isupper": cased(unicode.IsUpper),
		"ljust":  textMethod(func(in *interp, s string, a arguments) (any, error) { return in.pad("ljust", s, a) }),
		"rjust":  textMethod(func(in *interp, s string, a arguments) (any, error) { return in.pad("rjust", s, a) }),
		"center": textMethod(func(in *interp, s string, a arguments) (any, error) { return in.pad("center", s, a) }),
		"zfill":  textMethod(zfill),
		"encode": textMethod(encode),
		"format": textMethod(func(in *interp, s string, a arguments) (any, error) { return in.format(s, a) }),
	}
}

func encode(in *interp, s string, a arguments) (any, error) {
	if strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf && r != in.guard }) || len(a.args) > 0 {
		return nil, errors.New("encode of what is not ASCII, or with arguments, is not supported")
	}
	return bytes(s), nil
}

// upper maps a character at a time, but "ß", which is the common one that becomes two.
func (m mark) upper(s string) string {
	return strings.ReplaceAll(strings.ToUpper(s), "ß", m.protect("SS"))
}

func every(is func(rune) bool) method {
	return reading(func(in *interp, s string, a arguments) (any, error) {
		s = in.plain(s)
		return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !is(r) }), nil
	})
}

// cased is islower or isupper: there is a letter with case, and all of them are so.
func cased(is func(rune) bool) method {
	return reading(func(in *interp, s string, a arguments) (any, error) {
		found := false
		for _, r := range in.plain(s) {
			if is(r) {
				found = true
			} else if unicode.IsUpper(r) || unicode.IsLower(r) || unicode.IsTitle(r) {
				return false, nil
			}
		}
		return found, nil
	})
}

// needle is the single argument of a method, a string.
func (in *interp) needle(what string, a arguments) (string, error) {
	s, ok, err := a.str(0)
	if err == nil && !ok {
		err = fmt.Errorf("TypeError: %s needs a string", what)
	}
	if err == nil {
		err = a.only(what, 1)
	}
	return in.plain(s), err
}

func (in *interp) strip(x string, a arguments, left, right bool) (any, error) {
	remove := isSpace
	chars, ok, err := a.str(0, "chars")
	if err != nil {
		return nil, err
	}
	if ok {
		set := make(map[rune]bool)
		for _, r := range in.plain(chars) {
			if err := in.charge(32); err != nil {
				return nil, err
			}
			set[r] = true
		}
		remove = func(r rune) bool { return set[r] }
	}
	s := in.plain(x)
	sp := span{0, len(s)}
	if left {
		sp.from = len(s) - len(strings.TrimLeftFunc(s, remove))
	}
	if right {
		sp.to = max(sp.from, len(strings.TrimRightFunc(s, remove)))
	}
	return in.part(x, sp)
}

// texts makes a list of the parts of x that spans name.
func (in *interp) texts(x string, kind byte, spans ...span) (any, error) {
	if err := in.times(len(spans), 64); err != nil {
		return nil, err
	}
	parts, err := in.cut(x, spans...)
	if err != nil {
		return nil, err
	}
	out := make([]any, len(spans))
	for i, s := range parts {
		out[i] = s
	}
	return &list{out, kind}, nil
}

func splitlines(in *interp, x string, a arguments) (any, error) {
	if len(a.args)+len(a.names) > 0 {
		return nil, errors.New("TypeError: splitlines with arguments is not supported")
	}
	s := in.plain(x)
	ends := 1
	for _, r := range s {
		if strings.ContainsRune(lineEnds, r) {
			ends++
		}
	}
	if err := in.times(ends, 64); err != nil {
		return nil, err
	}
	return in.texts(x, 'l', lines(s)...)
}

func (in *interp) split(x string, a arguments, fromRight bool) (any, error) {
	s := in.plain(x)
	limit, err := a.int(1, "maxsplit", -1)
	if err != nil {
		return nil, err
	}
	sep, ok, err := a.str(0, "sep")
	if err != nil {
		return nil, err
	}
	var fields []span // of s, if split at every separator
	if sep = in.plain(sep); !ok {
		fields, err = in.words(s)
	} else if sep == "" {
		return nil, errors.New("ValueError: empty separator")
	} else if err = in.times(strings.Count(s, sep)+1, 32); err == nil {
		fields = separated(s, sep, fromRight)
	}
	if err != nil {
		return nil, err
	}
	if n := len(fields) - 1 - limit; limit >= 0 && n >= 0 && len(fields) > 0 {
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
	return in.texts(x, 'l', fields...)
}

// words returns what is between white space in s.
func (in *interp) words(s string) ([]span, error) {
	var fields []span
	start := -1
	for i, r := range s {
		if space := isSpace(r); space && start >= 0 {
			if err := in.charge(32); err != nil {
				return nil, err
			}
			fields, start = append(fields, span{start, i}), -1
		} else if !space && start < 0 {
			start = i
		}
	}
	if start >= 0 {
		fields = append(fields, span{start, len(s)})
	}
	return fields, nil
}

func (in *interp) partition(x string, a arguments, last bool) (any, error) {
	sep, err := in.needle("partition", a)
	if err != nil {
		return nil, err
	}
	if sep == "" {
		return nil, errors.New("ValueError: empty separator")
	}
	s, index := in.plain(x), strings.Index
	if last {
		index = strings.LastIndex
	}
	i := index(s, sep)
	switch {
	case i >= 0:
		return in.texts(x, 't', span{0, i}, span{i, i + len(sep)}, span{i + len(sep), len(s)})
	case last:
		return &list{[]any{"", "", x}, 't'}, nil
	}
	return &list{[]any{x, "", ""}, 't'}, nil
}

func (in *interp) replace(x string, a arguments) (string, error) {
	old, ok, err := a.str(0, "old")
	if err != nil || !ok {
		return "", errors.Join(err, errors.New("TypeError: replace needs two strings"))
	}
	with, ok, err := a.str(1, "new")
	if err != nil || !ok {
		return "", errors.Join(err, errors.New("TypeError: replace needs two strings"))
	}
	limit, err := a.int(2, "count", -1)
	if err != nil {
		return "", err
	}
	if old = in.plain(old); old == "" {
		return "", errors.New("replace: an empty text to replace is not supported")
	}
	s := in.plain(x)
	n := strings.Count(s, old)
	if limit >= 0 {
		n = min(n, limit)
	}
	if err := in.times(n+1, len(with)+32); err != nil {
		return "", err
	}
	if n == 0 {
		return x, nil
	}
	fields := make([]span, 0, n+1)
	at := 0
	for range n {
		i := at + strings.Index(s[at:], old)
		fields = append(fields, span{at, i})
		at = i + len(old)
	}
	parts, err := in.cut(x, append(fields, span{at, len(s)})...)
	if err == nil {
		err = in.charge(len(x))
	}
	return strings.Join(parts, with), err
}

func (in *interp) joinCall(sep string, a arguments) (any, error) {
	items, _ := a.at(0)
	parts, err := in.iter(items)
	if err != nil {
		return nil, err
	}
	for i, p := range parts {
		if _, ok := text(p); !ok {
			return nil, fmt.Errorf("TypeError: join: item %d is no string but %s", i, typeName(p))
		}
	}
	return in.join(sep, parts)
}

// join puts the texts of parts together.
func (in *interp) join(sep string, parts []any) (string, error) {
	if err := in.times(len(parts), 16+len(sep)); err != nil {
		return "", err
	}
	out := make([]string, len(parts))
	for i, p := range parts {
		s, err := in.str(p)
		if err == nil {
			err = in.charge(len(s))
		}
		if err != nil {
			return "", err
		}
		out[i] = s
	}
	return strings.Join(out, sep), nil
}

func affixed(has func(s, affix string) bool) func(*interp, string, arguments) (any, error) {
	return func(in *interp, s string, a arguments) (any, error) { return in.affix(s, a, has) }
}

func finding(index func(s, sep string) int, must bool) func(*interp, string, arguments) (any, error) {
	return func(in *interp, s string, a arguments) (any, error) { return in.find(s, a, index, must) }
}

func (in *interp) affix(x string, a arguments, has func(s, affix string) bool) (any, error) {
	if len(a.args) != 1 {
		return nil, errors.New("TypeError: startswith and endswith with bounds are not supported")
	}
	options := []any{a.args[0]}
	if l, ok := a.args[0].(*list); ok && l.kind == 't' {
		options = l.items
	}
	s := in.plain(x)
	for _, o := range options {
		t, ok := text(o)
		if !ok {
			return nil, fmt.Errorf("TypeError: a string or tuple of strings is needed, not %s", typeName(o))
		}
		if err := in.step(1 + len(t)/256); err != nil {
			return nil, err
		}
		if has(s, in.plain(t)) {
			return true, nil
		}
	}
	return false, nil
}

func (in *interp) find(x string, a arguments, index func(s, sep string) int, must bool) (any, error) {
	sub, err := in.needle("find", a)
	if err != nil {
		return nil, err
	}
	s := in.plain(x)
	i := index(s, sub)
	if i < 0 && must {
		return nil, errors.New("ValueError: substring not found")
	}
	if i > 0 {
		i = utf8.RuneCountInString(s[:i])
	}
	return int64(i), nil
}

// capitalize makes the first letter of x, and those after a rune that is a boundary,
// title case and the others lower case.
func (m mark) capitalize(x string, boundary func(rune) bool) string {
	start := true
	return strings.Map(func(r rune) rune {
		if r == m.guard {
			return r
		}
		was := start
		start = boundary(r)
		if was {
			return unicode.ToTitle(r)
		}
		return unicode.ToLower(r)
	}, x)
}

// repeatText is s * n.
func (in *interp) repeatText(s string, n int) (string, error) {
	if err := in.times(n, len(s)); err != nil || len(s) == 0 {
		return "", err
	}
	return strings.Repeat(s, max(n, 0)), nil
}

func (in *interp) pad(how, s string, a arguments) (string, error) {
	width, err := a.int(0, "width", 80)
	if err != nil {
		return "", err
	}
	fill, ok, err := a.str(1, "fillchar")
	if err != nil {
		return "", err
	}
	if !ok {
		fill = " "
	}
	if utf8.RuneCountInString(fill) != 1 {
		return "", errors.New("TypeError: the fill character must be exactly one character long")
	}
	length := utf8.RuneCountInString(in.plain(s))
	missing := max(width-length, 0)
	left := 0
	switch how {
	case "rjust":
		left = missing
	case "center":
		left = missing/2 + missing&width&1
	}
	before, err := in.repeatText(fill, left)
	if err != nil {
		return "", err
	}
	after, err := in.repeatText(fill, missing-left)
	return before + s + after, err
}

func zfill(in *interp, s string, a arguments) (any, error) {
	width, err := a.int(0, "", 0)
	if err != nil {
		return nil, err
	}
	sign := ""
	if s != "" && (s[0] == '+' || s[0] == '-') {
		sign, s = s[:1], s[1:]
	}
	zeros, err := in.repeatText("0", width-len(sign)-utf8.RuneCountInString(in.plain(s)))
	return sign + zeros + s, err
}
