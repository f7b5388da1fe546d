package chat

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// filter is one of Jinja2's filters.
type filter func(in *interp, x any, a arguments) (any, error)

var filters map[string]filter

func init() {
	filters = map[string]filter{
		"upper": method2("upper"), "lower": method2("lower"), "capitalize": method2("capitalize"),
		"replace": method2("replace"), "trim": method2("strip"), "center": method2("center"),
		"title": textFilter(func(in *interp, s string, a arguments) (any, error) {
			return in.capitalize(s, func(r rune) bool { return isSpace(r) || strings.ContainsRune("-({[<", r) }), nil
		}),
		"string": func(in *interp, x any, a arguments) (any, error) {
			if _, ok := text(x); ok {
				return x, nil
			}
			return in.str(x)
		},
		"safe": func(in *interp, x any, a arguments) (any, error) {
			s, err := in.str(x)
			return markup(s), err
		},
		"escape": escapeFilter, "e": escapeFilter,
		"forceescape": func(in *interp, x any, a arguments) (any, error) {
			s, err := in.str(x)
			if err == nil {
				s, err = in.escape(s)
			}
			return markup(s), err
		},
		"join": joinFilter, "tojson": tojson, "length": length, "count": length, "default": fallback, "d": fallback,
		"first": first, "last": last, "reverse": reverse, "list": listOf, "items": itemsFilter,
		"select": selecting(true, false), "reject": selecting(false, false),
		"selectattr": selecting(true, true), "rejectattr": selecting(false, true),
		"map": mapFilter, "sort": sortFilter, "unique": unique, "groupby": groupby, "dictsort": dictsort,
		"min": extreme(-1), "max": extreme(1), "sum": sum, "batch": batch, "slice": sliceFilter,
		"abs": abs, "int": intFilter, "float": floatFilter, "round": round, "attr": attrFilter,
		"format": textFilter(func(in *interp, s string, a arguments) (any, error) {
			if len(a.kwargs) == 0 {
				return in.percent(s, a.args, nil)
			}
			d := newDict()
			for k, v := range a.kwargs {
				d.vals[k] = v
			}
			return in.percent(s, nil, d)
		}),
		"indent": indent, "truncate": truncate, "wordcount": wordcount, "filesizeformat": filesize, "xmlattr": xmlattr,
	}
}

// textFilter is textMethod for a filter, which takes any value by its text.
func textFilter(f func(in *interp, s string, a arguments) (any, error)) filter {
	m := textMethod(f)
	return func(in *interp, x any, a arguments) (any, error) {
		if _, ok := text(x); !ok {
			s, err := in.str(x)
			if err != nil {
				return nil, err
			}
			x = s
		}
		return m(in, x, a)
	}
}

// method2 is the filter that is a method of strings, too.
func method2(name string) filter {
	return func(in *interp, x any, a arguments) (any, error) {
		if _, ok := text(x); !ok {
			s, err := in.str(x)
			if err != nil {
				return nil, err
			}
			x = s
		}
		return stringMethods[name](in, x, a)
	}
}

var entities = map[rune]string{'&': "&amp;", '<': "&lt;", '>': "&gt;", '\'': "&#39;", '"': "&#34;"}

// escape is markupsafe's. An entity that a user's character becomes gets the guards of the user's text.
func (in *interp) escape(s string) (string, error) {
	if err := in.charge(len(s)); err != nil || !strings.ContainsAny(s, `&<>'"`) {
		return s, err
	}
	var b strings.Builder
	for _, r := range s {
		e, ok := entities[r]
		if !ok {
			b.WriteRune(r)
			continue
		}
		e = in.protect(e)
		if err := in.charge(2 * len(e)); err != nil {
			return "", err
		}
		b.WriteString(e)
	}
	return b.String(), nil
}

func escapeFilter(in *interp, x any, _ arguments) (any, error) {
	if _, ok := x.(markup); ok {
		return x, nil
	}
	s, err := in.str(x)
	if err == nil {
		s, err = in.escape(s)
	}
	return markup(s), err
}

// getter returns what attribute, a name with dots or an index, takes of a value.
func (in *interp) getter(attribute any, absent any) func(x any) (any, error) {
	if attribute == nil {
		return func(x any) (any, error) { return x, nil }
	}
	name, isText := text(attribute)
	if !isText {
		return func(x any) (any, error) { return in.item(x, attribute) }
	}
	if err := in.times(1+strings.Count(name, "."), 16); err != nil {
		return func(any) (any, error) { return nil, err }
	}
	parts := strings.Split(in.plain(name), ".")
	return func(x any) (any, error) {
		for _, p := range parts {
			if err := in.step(1); err != nil {
				return nil, err
			}
			var key any = p
			if n, err := strconv.ParseInt(p, 10, 64); err == nil && n >= 0 {
				key = n
			}
			var err error
			if x, err = in.item(x, key); err != nil {
				return nil, err
			}
			if _, ok := x.(undefined); ok && absent != nil {
				x = absent
			}
		}
		return x, nil
	}
}

func (in *interp) mapItems(x any, f func(any) (any, error)) ([]any, error) {
	items, err := in.iter(x)
	if err == nil {
		err = in.times(len(items), 16)
	}
	if err != nil {
		return nil, err
	}
	out := make([]any, len(items))
	for i, item := range items {
		if out[i], err = f(item); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func joinFilter(in *interp, x any, a arguments) (any, error) {
	sep, _ := a.at(0, "d")
	s := ""
	if sep != nil {
		var err error
		if s, err = in.str(sep); err != nil {
			return nil, err
		}
	}
	if in.escapes {
		return nil, errors.New("join within autoescape is not supported")
	}
	attribute, _ := a.at(1, "attribute")
	parts, err := in.mapItems(x, in.getter(attribute, nil))
	if err != nil {
		return nil, err
	}
	return in.join(s, parts)
}

func length(in *interp, x any, _ arguments) (any, error) {
	if s, ok := text(x); ok {
		return int64(utf8.RuneCountInString(in.plain(s))), in.work(len(s))
	}
	switch x := x.(type) {
	case undefined:
		return int64(0), nil
	case *dict:
		return int64(len(x.keys)), nil
	case *list:
		if x.kind != 'g' {
			return int64(len(x.items)), nil
		}
	}
	return nil, fmt.Errorf("TypeError: object of type %s has no len()", typeName(x))
}

// fallback is Jinja2's default filter.
func fallback(in *interp, x any, a arguments) (any, error) {
	loose, _ := a.at(1, "boolean")
	if _, ok := x.(undefined); ok || in.truth(loose) && !in.truth(x) {
		if v, ok := a.at(0, "default_value"); ok {
			return v, nil
		}
		return "", nil
	}
	return x, nil
}

func first(in *interp, x any, _ arguments) (any, error) {
	if _, ok := text(x); ok {
		return in.item(x, int64(0))
	}
	items, err := in.iter(x)
	if err != nil || len(items) == 0 {
		return undefined("the first item of an empty sequence"), err
	}
	return items[0], nil
}

func last(in *interp, x any, _ arguments) (any, error) {
	if _, ok := text(x); ok {
		return in.item(x, int64(-1))
	}
	if l, ok := x.(*list); ok && l.kind == 'g' {
		return nil, errors.New("TypeError: generator object is not reversible")
	}
	items, err := in.iter(x)
	if err != nil || len(items) == 0 {
		return undefined("the last item of an empty sequence"), err
	}
	return items[len(items)-1], nil
}

func reverse(in *interp, x any, _ arguments) (any, error) {
	if _, ok := text(x); ok {
		return in.slice(x, [3]any{nil, nil, int64(-1)})
	}
	items, err := in.mapItems(x, func(x any) (any, error) { return x, nil })
	slices.Reverse(items)
	return &list{items, 'g'}, err
}

func listOf(in *interp, x any, _ arguments) (any, error) {
	items, err := in.mapItems(x, func(x any) (any, error) { return x, nil })
	return &list{items, 'l'}, err
}

func itemsFilter(in *interp, x any, _ arguments) (any, error) {
	if _, ok := x.(undefined); ok {
		return &list{nil, 'g'}, nil
	}
	d, ok := x.(*dict)
	if !ok {
		return nil, errors.New("TypeError: can only get item pairs from a mapping")
	}
	l, err := in.pairs(d, 'i')
	if err != nil {
		return nil, err
	}
	l.kind = 'g'
	return l, nil
}

// selecting is select, reject, selectattr or rejectattr.
func selecting(want, attribute bool) filter {
	return func(in *interp, x any, a arguments) (any, error) {
		get := in.getter(nil, nil)
		if attribute {
			if len(a.args) == 0 {
				return nil, errors.New("FilterArgumentError: missing parameter for attribute name")
			}
			get = in.getter(a.args[0], nil)
			a.args = a.args[1:]
		}
		test := func(in *interp, x any, _ arguments) (bool, error) { return in.truth(x), nil }
		if len(a.args) > 0 {
			name, _ := text(a.args[0])
			if test = tests[name]; test == nil {
				return nil, fmt.Errorf("TemplateRuntimeError: test %q is not supported", name)
			}
			a.args = a.args[1:]
		}
		if !in.truth(x) { // Jinja2 does not even look whether it can be iterated
			return &list{nil, 'g'}, nil
		}
		items, err := in.iter(x)
		if err != nil {
			return nil, err
		}
		out := []any{}
		for _, item := range items {
			v, err := get(item)
			if err != nil {
				return nil, err
			}
			ok, err := test(in, v, a)
			if err == nil {
				err = in.charge(16)
			}
			if err != nil {
				return nil, err
			}
			if ok == want {
				out = append(out, item)
			}
		}
		return &list{out, 'g'}, nil
	}
}

func mapFilter(in *interp, x any, a arguments) (any, error) {
	f := in.getter(a.kwargs["attribute"], a.kwargs["default"])
	if len(a.args) > 0 {
		name, _ := text(a.args[0])
		g := filters[name]
		if g == nil {
			return nil, fmt.Errorf("TemplateRuntimeError: filter %q is not supported", name)
		}
		a.args = a.args[1:]
		f = func(x any) (any, error) { return g(in, x, a) }
	} else if a.kwargs["attribute"] == nil {
		return nil, errors.New("FilterArgumentError: map requires a filter argument")
	}
	if !in.truth(x) {
		return &list{nil, 'g'}, nil
	}
	if in.calls++; in.calls > maxCalls {
		return nil, exceeded(fmt.Sprintf("the recursion is deeper than %d calls", maxCalls))
	}
	defer func() { in.calls-- }()
	out, err := in.mapItems(x, f)
	return &list{out, 'g'}, err
}

// keyed is an item with what it is sorted by.
type keyed struct{ key, item any }

// keys returns the items of x with their keys, lower-cased unless the case matters.
func (in *interp) keys(x any, get func(any) (any, error), caseMatters bool) ([]keyed, error) {
	items, err := in.iter(x)
	if err == nil {
		err = in.times(len(items), 48)
	}
	if err != nil {
		return nil, err
	}
	out := make([]keyed, len(items))
	for i, item := range items {
		k, err := get(item)
		if err != nil {
			return nil, err
		}
		if s, ok := text(k); ok && !caseMatters {
			if err := in.charge(len(s)); err != nil {
				return nil, err
			}
			k = strings.ToLower(s)
		}
		out[i] = keyed{k, item}
	}
	return out, nil
}

func (in *interp) sortKeyed(items []keyed, backwards bool) (err error) {
	slices.SortStableFunc(items, func(a, b keyed) int {
		if err != nil {
			return 0
		}
		var ok bool
		if backwards {
			a, b = b, a
		}
		if ok, err = in.less(a.key, b.key, 0); ok || err != nil {
			return -1
		}
		if ok, err = in.less(b.key, a.key, 0); ok {
			return 1
		}
		return 0
	})
	return err
}

func sortFilter(in *interp, x any, a arguments) (any, error) {
	backwards, _ := a.at(0, "reverse")
	exact, _ := a.at(1, "case_sensitive")
	attribute, _ := a.at(2, "attribute")
	if s, ok := text(attribute); ok && strings.Contains(s, ",") {
		return nil, errors.New("sort by several attributes is not supported")
	}
	keys, err := in.keys(x, in.getter(attribute, nil), in.truth(exact))
	if err == nil {
		err = in.sortKeyed(keys, in.truth(backwards))
	}
	return &list{itemsOf(keys), 'l'}, err
}

func itemsOf(keys []keyed) []any {
	out := make([]any, len(keys))
	for i, k := range keys {
		out[i] = k.item
	}
	return out
}

func unique(in *interp, x any, a arguments) (any, error) {
	exact, _ := a.at(0, "case_sensitive")
	attribute, _ := a.at(1, "attribute")
	keys, err := in.keys(x, in.getter(attribute, nil), in.truth(exact))
	if err != nil {
		return nil, err
	}
	seen, out := newDict(), []any{}
	for _, k := range keys {
		n := len(seen.keys)
		if err := in.setItem(seen, k.key, nil); err != nil {
			return nil, err
		}
		if len(seen.keys) > n {
			out = append(out, k.item)
		}
	}
	return &list{out, 'g'}, nil
}

func groupby(in *interp, x any, a arguments) (any, error) {
	attribute, _ := a.at(0, "attribute")
	absent, _ := a.at(1, "default")
	exact, _ := a.at(2, "case_sensitive")
	get := in.getter(attribute, absent)
	keys, err := in.keys(x, get, in.truth(exact))
	if err == nil {
		err = in.sortKeyed(keys, false)
	}
	if err != nil {
		return nil, err
	}
	var out []any
	var group *list
	for i, k := range keys {
		same := false
		if i > 0 {
			if same, err = in.equal(keys[i-1].key, k.key); err != nil {
				return nil, err
			}
		}
		if !same {
			name, err := get(k.item)
			if err != nil {
				return nil, err
			}
			if err := in.charge(100); err != nil {
				return nil, err
			}
			group = &list{nil, 'l'}
			out = append(out, &list{[]any{name, group}, 't'})
		}
		group.items = append(group.items, k.item)
	}
	return &list{out, 'l'}, nil
}

func dictsort(in *interp, x any, a arguments) (any, error) {
	d, ok := x.(*dict)
	if !ok {
		return nil, errors.New("TypeError: dictsort needs a mapping")
	}
	exact, _ := a.at(0, "case_sensitive")
	by, _ := a.at(1, "by")
	backwards, _ := a.at(2, "reverse")
	at := int64(0)
	if by == "value" {
		at = 1
	}
	pairs, err := in.pairs(d, 'i')
	if err != nil {
		return nil, err
	}
	return sortFilter(in, pairs, arguments{args: []any{backwards, exact, at}})
}

// extreme is min (-1) or max (1).
func extreme(sign int) filter {
	return func(in *interp, x any, a arguments) (any, error) {
		exact, _ := a.at(0, "case_sensitive")
		attribute, _ := a.at(1, "attribute")
		keys, err := in.keys(x, in.getter(attribute, nil), in.truth(exact))
		if err != nil || len(keys) == 0 {
			return undefined("the extreme of an empty sequence"), err
		}
		best := keys[0]
		for _, k := range keys[1:] {
			x, y := k.key, best.key
			if sign > 0 {
				x, y = y, x
			}
			ok, err := in.less(x, y, 0)
			if err != nil {
				return nil, err
			}
			if ok {
				best = k
			}
		}
		return best.item, nil
	}
}

func sum(in *interp, x any, a arguments) (any, error) {
	attribute, _ := a.at(0, "attribute")
	total, given := a.at(1, "start")
	if !given {
		total = int64(0)
	}
	items, err := in.mapItems(x, in.getter(attribute, nil))
	for i := 0; i < len(items) && err == nil; i++ {
		if _, ok := text(items[i]); ok {
			return nil, errors.New("TypeError: sum of strings")
		}
		total, err = in.arith("+", total, items[i])
	}
	return total, err
}

func batch(in *interp, x any, a arguments) (any, error) {
	n, err := a.int(0, "linecount", 0)
	if err != nil || n < 1 {
		return nil, errors.Join(err, errors.New("batch: the size must be positive"))
	}
	fill, _ := a.at(1, "fill_with")
	items, err := in.mapItems(x, func(x any) (any, error) { return x, nil })
	if err == nil {
		err = in.times(len(items), 80)
	}
	if err != nil {
		return nil, err
	}
	var out []any
	for len(items) > 0 {
		k := min(n, len(items))
		group := items[:k:k]
		if fill != nil && k < n {
			if err := in.times(n-k, 32); err != nil {
				return nil, err
			}
			for range n - k {
				group = append(group, fill)
			}
		}
		out = append(out, &list{group, 'l'})
		items = items[k:]
	}
	return &list{out, 'g'}, nil
}

func sliceFilter(in *interp, x any, a arguments) (any, error) {
	n, err := a.int(0, "slices", 0)
	if err != nil || n < 1 {
		return nil, errors.Join(err, errors.New("slice: the number must be positive"))
	}
	fill, _ := a.at(1, "fill_with")
	items, err := in.mapItems(x, func(x any) (any, error) { return x, nil })
	if err == nil {
		err = in.times(n, 96)
	}
	if err != nil {
		return nil, err
	}
	size, extra := len(items)/n, len(items)%n
	out := make([]any, n)
	for i := range out {
		k := size
		if i < extra {
			k++
		}
		group := items[:k:k]
		items = items[k:]
		if fill != nil && i >= extra {
			group = append(group, fill)
		}
		out[i] = &list{group, 'l'}
	}
	return &list{out, 'g'}, nil
}

func abs(in *interp, x any, _ arguments) (any, error) {
	n, ok := number(x)
	if !ok {
		return nil, fmt.Errorf("TypeError: bad operand type for abs(): %s", typeName(x))
	}
	if compareNumbers(n, int64(0)) == -1 {
		return in.arith("*", n, int64(-1))
	}
	return n, nil
}

func intFilter(in *interp, x any, a arguments) (any, error) {
	if u, ok := x.(undefined); ok {
		return nil, fmt.Errorf("UndefinedError: %q is undefined", string(u))
	}
	absent, given := a.at(0, "default")
	if !given {
		absent = int64(0)
	}
	if base, err := a.int(1, "base", 10); err != nil || base != 10 {
		return nil, errors.New("int with a base is not supported")
	}
	n, ok := number(x)
	if s, isText := text(x); isText {
		s = strings.TrimFunc(in.plain(s), isSpace)
		if len(s) > 300 {
			return nil, errors.New("int of a text of more than 300 bytes is not supported")
		}
		if i, parsed := new(big.Int).SetString(s, 10); parsed {
			return normal(i), nil
		}
		f, err := strconv.ParseFloat(s, 64)
		n, ok = f, err == nil && !strings.ContainsAny(s, "xXpP_")
	}
	if f, isFloat := n.(float64); ok && isFloat {
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return absent, nil
		}
		i, _ := big.NewFloat(f).Int(nil)
		n = normal(i)
	}
	if !ok {
		return absent, nil
	}
	return n, nil
}

func floatFilter(in *interp, x any, a arguments) (any, error) {
	if u, ok := x.(undefined); ok {
		return nil, fmt.Errorf("UndefinedError: %q is undefined", string(u))
	}
	absent, given := a.at(0, "default")
	if !given {
		absent = 0.0
	}
	if n, ok := number(x); ok {
		return floatOf(n), nil
	}
	if s, ok := text(x); ok {
		s = strings.TrimFunc(in.plain(s), isSpace)
		if f, err := strconv.ParseFloat(s, 64); err == nil && !strings.ContainsAny(s, "xXpP_") {
			return f, nil
		}
	}
	return absent, nil
}

// round is Python's round for floats, which takes the even one of two equally near.
func round(in *interp, x any, a arguments) (any, error) {
	places, err := a.int(0, "precision", 0)
	if err != nil {
		return nil, err
	}
	how, _, err := a.str(1, "method")
	if err != nil {
		return nil, err
	}
	n, ok := number(x)
	if !ok || places < 0 || places > 15 {
		return nil, fmt.Errorf("TypeError: round of %s to %d places is not supported", typeName(x), places)
	}
	f := floatOf(n)
	scale := math.Pow10(places)
	switch how {
	case "", "common":
		if bigOf(n) != nil {
			return n, nil
		}
		s := strconv.FormatFloat(f, 'f', places, 64)
		f, err = strconv.ParseFloat(s, 64)
		return f, err
	case "ceil":
		return floats("/", math.Ceil(f*scale), scale)
	case "floor":
		return floats("/", math.Floor(f*scale), scale)
	}
	return nil, errors.New("FilterArgumentError: method must be common, ceil or floor")
}

func attrFilter(in *interp, x any, a arguments) (any, error) {
	name, _, err := a.str(0, "name")
	if err != nil {
		return nil, err
	}
	if u, ok := x.(undefined); ok {
		return nil, fmt.Errorf("UndefinedError: %q is undefined", string(u))
	}
	if v, ok := in.member(x, in.plain(name)); ok {
		return v, nil
	}
	return undefined("attribute"), nil
}

func indent(in *interp, x any, a arguments) (any, error) {
	width, _ := a.at(0, "width")
	if width == nil {
		width = int64(4)
	}
	by, ok := text(width)
	if !ok {
		n, err := a.int(0, "width", 4)
		if err == nil {
			by, err = in.repeatText(" ", n)
		}
		if err != nil {
			return nil, err
		}
	}
	s, ok := text(x)
	if !ok {
		return nil, fmt.Errorf("TypeError: indent needs a string, not %s", typeName(x))
	}
	blank, _ := a.at(2, "blank")
	first, _ := a.at(1, "first")
	if err := in.charge(2 * len(s)); err != nil {
		return nil, err
	}
	split, err := splitlines(in, s+"\n", arguments{})
	if err != nil {
		return nil, err
	}
	rows := split.(*list).items
	if err := in.times(len(rows)+1, len(by)+17); err != nil {
		return nil, err
	}
	var b strings.Builder
	for i, row := range rows {
		line := row.(string)
		if i > 0 {
			b.WriteByte('\n')
		}
		if i == 0 && in.truth(first) || i > 0 && (line != "" || in.truth(blank)) {
			b.WriteString(by)
		}
		if err := in.charge(len(line)); err != nil {
			return nil, err
		}
		b.WriteString(line)
	}
	return like(x, b.String()), nil
}

func truncate(in *interp, x any, a arguments) (any, error) {
	s, ok := text(x)
	if !ok {
		if n, err := length(in, x, a); err != nil || n.(int64) > 6 {
			return nil, errors.Join(err, fmt.Errorf("truncate of a %s is not supported", typeName(x)))
		}
		return x, nil
	}
	most, err := a.int(0, "length", 255)
	if err != nil {
		return nil, err
	}
	kill, _ := a.at(1, "killwords")
	end, given, err := a.str(2, "end")
	if err != nil {
		return nil, err
	}
	if !given {
		end = "..."
	}
	leeway, err := a.int(3, "leeway", 5)
	tail := utf8.RuneCountInString(in.plain(end))
	if err != nil || most < tail || leeway < 0 {
		return nil, errors.Join(err, errors.New("AssertionError: truncate: the length is too small"))
	}
	if utf8.RuneCountInString(in.plain(s)) <= most+leeway {
		return x, nil
	}
	cut, err := in.sliceText(s, [3]any{nil, int64(most - tail), nil})
	if err != nil {
		return nil, err
	}
	if p := in.plain(cut); !in.truth(kill) {
		if i := strings.LastIndexByte(p, ' '); i >= 0 {
			if cut, err = in.part(cut, span{0, i}); err != nil {
				return nil, err
			}
		}
	}
	return in.concat(like(x, cut), end)
}

func wordcount(in *interp, x any, _ arguments) (any, error) {
	s, err := in.str(x)
	if err != nil {
		return nil, err
	}
	n, within := int64(0), false
	for _, r := range in.plain(s) {
		word := unicode.IsLetter(r) || unicode.IsNumber(r) || r == '_'
		if word && !within {
			n++
		}
		within = word
	}
	return n, in.work(4 * len(s))
}

func filesize(in *interp, x any, a arguments) (any, error) {
	v, err := floatFilter(in, x, arguments{args: []any{nil}})
	if err != nil || v == nil {
		return nil, errors.Join(err, fmt.Errorf("TypeError: filesizeformat needs a number, not %s", typeName(x)))
	}
	binary, _ := a.at(0, "binary")
	n, base, suffix := v.(float64), 1000.0, "B"
	if in.truth(binary) {
		base, suffix = 1024, "iB"
	}
	switch {
	case n == 1:
		return "1 Byte", nil
	case n < base:
		return strconv.Itoa(int(n)) + " Bytes", nil
	}
	for i, prefix := range "kMGTPEZY" {
		unit := math.Pow(base, float64(i+2))
		if n < unit || prefix == 'Y' {
			if suffix == "iB" && prefix == 'k' {
				prefix = 'K'
			}
			return strconv.FormatFloat(base*n/unit, 'f', 1, 64) + " " + string(prefix) + suffix, nil
		}
	}
	return nil, nil
}

func xmlattr(in *interp, x any, a arguments) (any, error) {
	d, ok := x.(*dict)
	if !ok {
		return nil, errors.New("TypeError: xmlattr needs a mapping")
	}
	space, given := a.at(0, "autospace")
	var b strings.Builder
	for _, k := range d.keys {
		v, _ := in.getItem(d, k)
		if _, ok := v.(undefined); ok || v == nil {
			continue
		}
		name, ok := text(k)
		if !ok || strings.ContainsAny(in.plain(name), " \t\n\r\f\v/>=") {
			return nil, errors.New("ValueError: invalid character in attribute name")
		}
		key, err := in.escape(name)
		if err != nil {
			return nil, err
		}
		e, err := escapeFilter(in, v, arguments{})
		if err != nil {
			return nil, err
		}
		value, _ := text(e)
		if err := in.charge(2 * (len(key) + len(value) + 4)); err != nil {
			return nil, err
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(key + `="` + value + `"`)
	}
	out := b.String()
	if (!given || in.truth(space)) && out != "" {
		out = " " + out
	}
	if in.escapes {
		return markup(out), nil
	}
	return out, nil
}
