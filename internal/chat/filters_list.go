package chat

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

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
