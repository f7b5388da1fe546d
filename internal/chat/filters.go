package chat

import (
	"fmt"
	"strconv"
	"strings"
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
