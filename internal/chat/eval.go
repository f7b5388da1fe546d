package chat

import (
	"fmt"
	"strings"
)

// arguments are those of a call, as Python's functions take them.
type arguments struct {
	args   []any
	kwargs map[string]any
	names  []string // of kwargs, in order
}

// at returns argument i, or the named one if the call gave that instead.
func (a arguments) at(i int, names ...string) (any, bool) {
	if i < len(a.args) {
		return a.args[i], true
	}
	for _, name := range names {
		if v, ok := a.kwargs[name]; ok {
			return v, true
		}
	}
	return nil, false
}

// str returns argument i, a string; ok tells whether it is given and not None.
func (a arguments) str(i int, names ...string) (s string, ok bool, err error) {
	v, given := a.at(i, names...)
	if !given || v == nil {
		return "", false, nil
	}
	s, ok = text(v)
	if !ok {
		return "", false, fmt.Errorf("TypeError: argument %d must be a string, not %s", i+1, typeName(v))
	}
	return s, true, nil
}

// int returns argument i, an integer, or absent.
func (a arguments) int(i int, name string, absent int) (int, error) {
	v, given := a.at(i, name)
	if !given || v == nil {
		return absent, nil
	}
	n, _ := number(v)
	k, ok := n.(int64)
	if !ok {
		return 0, fmt.Errorf("TypeError: argument %d must be an integer, not %s", i+1, typeName(v))
	}
	return int(max(min(k, 1<<40), -1<<40)), nil
}

// only refuses arguments beyond most positional ones and those named.
func (a arguments) only(what string, most int, names ...string) error {
	if len(a.args) > most {
		return fmt.Errorf("TypeError: %s takes at most %d arguments, not %d", what, most, len(a.args))
	}
	for _, given := range a.names {
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+given+" ") {
			return fmt.Errorf("TypeError: argument %q of %s is not supported", given, what)
		}
	}
	return nil
}

func (in *interp) eval(n *node) (any, error) {
	if err := in.step(1); err != nil {
		return nil, err
	}
	switch n.op {
	case "literal":
		return n.val, nil
	case "name":
		return in.lookup(n.text), nil
	case "tuple", "list", "dict":
		return in.display(n)
	case "cond":
		return in.condition(n)
	case "and", "or":
		x, err := in.eval(n.kids[0])
		if err != nil || in.truth(x) == (n.op == "or") {
			return x, err
		}
		return in.eval(n.kids[1])
	case "call":
		return in.call(n, nil)
	case "compare":
		return in.compare(n)
	}
	x, err := in.eval(n.kids[0])
	if err != nil {
		return nil, err
	}
	switch n.op {
	case "not":
		return !in.truth(x), nil
	case "neg", "pos":
		if n.op == "neg" {
			return in.arith("*", x, int64(-1))
		}
		return in.arith("+", x, int64(0))
	case "attr":
		return in.attr(x, n.text)
	case "filter":
		return in.filter(n, x)
	case "test":
		ok, err := in.test(n, x)
		return ok != n.flag, err
	case "item":
		return in.subscript(x, n.kids[1])
	}
	y, err := in.eval(n.kids[1])
	if err != nil {
		return nil, err
	}
	if n.op == "~" {
		return in.tilde(x, y)
	}
	return in.arith(n.op, x, y)
}

func (in *interp) lookup(name string) any {
	for s := in.scope; s != nil; s = s.parent {
		if v, ok := s.vars[name]; ok {
			return v
		}
	}
	if v, ok := in.globals[name]; ok {
		return v
	}
	return undefined(name)
}

func (in *interp) evalAll(nodes []*node) ([]any, error) {
	out := make([]any, len(nodes))
	for i, n := range nodes {
		var err error
		if out[i], err = in.eval(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// display makes the value of (…), […] or {…}.
func (in *interp) display(n *node) (any, error) {
	if err := in.charge(48 + 16*len(n.kids)); err != nil {
		return nil, err
	}
	items, err := in.evalAll(n.kids)
	if err != nil {
		return nil, err
	}
	if n.op != "dict" {
		return &list{items, n.op[0]}, nil
	}
	d := newDict()
	for i := 0; i < len(items); i += 2 {
		if err := in.setItem(d, items[i], items[i+1]); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (in *interp) condition(n *node) (any, error) {
	x, err := in.eval(n.kids[0])
	if err != nil {
		return nil, err
	}
	if in.truth(x) {
		return in.eval(n.kids[1])
	}
	if n.kids[2] == nil {
		return undefined("the inline if-expression without else"), nil
	}
	return in.eval(n.kids[2])
}

func (in *interp) compare(n *node) (any, error) {
	left, err := in.eval(n.kids[0])
	if err != nil {
		return nil, err
	}
	for _, a := range n.args {
		right, err := in.eval(a.node)
		if err != nil {
			return nil, err
		}
		if ok, err := in.compares(a.name, left, right); !ok || err != nil {
			return false, err
		}
		left = right
	}
	return true, nil
}

func (in *interp) compares(op string, a, b any) (ok bool, err error) {
	switch op {
	case "==":
		return in.equal(a, b)
	case "!=":
		ok, err = in.equal(a, b)
		return !ok, err
	case "<":
		return in.less(a, b, 0)
	case ">":
		return in.less(b, a, 0)
	case "in":
		return in.contains(b, a)
	case "not in":
		ok, err = in.contains(b, a)
		return !ok, err
	case ">=":
		a, b = b, a
	}
	if ok, err = in.less(a, b, 0); ok || err != nil {
		return ok, err
	}
	return in.equal(a, b)
}

// tilde joins the texts of two values.
func (in *interp) tilde(x, y any) (any, error) {
	s, err := in.str(x)
	if err != nil {
		return nil, err
	}
	t, err := in.str(y)
	if err != nil {
		return nil, err
	}
	_, m1 := x.(markup)
	_, m2 := y.(markup)
	if in.escapes || m1 || m2 {
		var a, b any = s, t
		if in.escapes && !m1 && !m2 {
			a = markup(s)
			if s, err = in.escape(s); err != nil {
				return nil, err
			}
			a = markup(s)
		}
		if !in.escapes { // Jinja2 joins without escaping
			if err := in.charge(len(s) + len(t)); err != nil {
				return nil, err
			}
			return s + t, nil
		}
		if m1 {
			a = markup(s)
		}
		if m2 {
			b = markup(t)
		}
		return in.concat(a, b)
	}
	if err := in.charge(len(s) + len(t)); err != nil {
		return nil, err
	}
	return s + t, nil
}

// subscript is x[key].
func (in *interp) subscript(x any, key *node) (any, error) {
	if key.op == "slice" {
		var bounds [3]any
		for i, b := range key.kids {
			if b == nil {
				continue
			}
			v, err := in.eval(b)
			if err != nil {
				return nil, err
			}
			bounds[i] = v
		}
		return in.slice(x, bounds)
	}
	k, err := in.eval(key)
	if err != nil {
		return nil, err
	}
	v, err := in.item(x, k)
	if name, ok := k.(string); ok && key.op == "literal" { // others may be a user's text
		if _, ok := v.(undefined); ok && len(name) < 64 {
			v = undefined("item " + name)
		}
	}
	return v, err
}

func (in *interp) item(x, key any) (any, error) {
	if u, ok := x.(undefined); ok {
		return nil, fmt.Errorf("UndefinedError: %q is undefined", string(u))
	}
	if d, ok := x.(*dict); ok {
		if v, ok := in.getItem(d, key); ok {
			return v, nil
		}
	}
	if name, ok := text(key); ok {
		if v, ok := in.member(x, in.plain(name)); ok {
			return v, nil
		}
		return undefined("item"), nil
	}
	n, _ := number(key)
	i, ok := n.(int64)
	if !ok {
		return undefined("item"), nil
	}
	if s, ok := text(x); ok {
		if i == -1 {
			out, err := in.sliceText(s, [3]any{i, nil, nil})
			return itemOf(like(x, out), out), err
		}
		out, err := in.sliceText(s, [3]any{i, i + 1, nil})
		if i < 0 && -i > int64(len(s)) {
			out = ""
		}
		return itemOf(like(x, out), out), err
	}
	if l, ok := x.(*list); ok && strings.IndexByte("ltr", l.kind) >= 0 {
		if i < 0 {
			i += int64(len(l.items))
		}
		if i >= 0 && i < int64(len(l.items)) {
			return l.items[i], nil
		}
	}
	return undefined("item"), nil
}

func itemOf(x any, s string) any {
	if s == "" {
		return undefined("item")
	}
	return x
}

// attr is x.name.
func (in *interp) attr(x any, name string) (any, error) {
	if u, ok := x.(undefined); ok {
		return nil, fmt.Errorf("UndefinedError: %q is undefined", string(u))
	}
	if v, ok := in.member(x, name); ok {
		return v, nil
	}
	if d, ok := x.(*dict); ok {
		if v, ok := in.getItem(d, name); ok {
			return v, nil
		}
	}
	return undefined(cut64("attribute " + name)), nil
}

// cut64 returns at most 64 bytes of s.
func cut64(s string) string { return s[:min(len(s), 64)] }

// member is Python's getattr(x, name).
func (in *interp) member(x any, name string) (any, bool) {
	switch x := x.(type) {
	case *namespace:
		v, ok := x.vars[name]
		return v, ok
	case *loop:
		return x.member(name)
	}
	f := methodOf(x, name)
	if f == nil {
		return nil, false
	}
	in.bytes += 64
	return &function{name, f}, true
}

func (l *loop) member(name string) (any, bool) {
	i, n := int64(l.at), int64(len(l.items))
	switch name {
	case "index":
		return i + 1, true
	case "index0":
		return i, true
	case "revindex":
		return n - i, true
	case "revindex0":
		return n - i - 1, true
	case "first":
		return i == 0, true
	case "last":
		return i == n-1, true
	case "length":
		return n, true
	case "depth":
		return int64(l.depth), true
	case "depth0":
		return int64(l.depth) - 1, true
	case "previtem", "nextitem":
		if name == "previtem" {
			i -= 2
		}
		if i+1 < 0 || i+1 >= n {
			return undefined("there is no " + name), true
		}
		return l.items[i+1], true
	case "cycle":
		return &function{name, func(in *interp, a arguments) (any, error) {
			if len(a.args) == 0 {
				return nil, fmt.Errorf("TypeError: no items for cycling given")
			}
			return a.args[l.at%len(a.args)], nil
		}}, true
	case "changed":
		return &function{name, func(in *interp, a arguments) (any, error) {
			now := &list{a.args, 't'}
			if l.changed != nil {
				if same, err := in.equal(l.changed, now); same || err != nil {
					return false, err
				}
			}
			l.changed = now
			return true, nil
		}}, true
	}
	return nil, false
}

// call evaluates a call, with the macro of a {% call %} block if there is one.
func (in *interp) call(n *node, caller *function) (any, error) {
	f, err := in.eval(n.kids[0])
	if err != nil {
		return nil, err
	}
	a, err := in.arguments(n.args)
	if err != nil {
		return nil, err
	}
	if caller != nil {
		if a.kwargs == nil {
			a.kwargs = make(map[string]any)
		}
		a.kwargs["caller"] = caller
	}
	switch f := f.(type) {
	case *function:
		return f.call(in, a)
	case *loop:
		if f.recurse == nil || len(a.args) != 1 {
			return nil, fmt.Errorf("TypeError: the loop must have the 'recursive' marker to be called")
		}
		return f.recurse(in, a.args[0])
	case undefined:
		return nil, fmt.Errorf("UndefinedError: %q is undefined", string(f))
	}
	return nil, fmt.Errorf("TypeError: %q object is not callable", typeName(f))
}

func (in *interp) arguments(args []arg) (a arguments, err error) {
	if err := in.charge(16 * len(args)); err != nil {
		return a, err
	}
	for _, given := range args {
		v, err := in.eval(given.node)
		if err != nil {
			return a, err
		}
		switch given.name {
		case "":
			a.args = append(a.args, v)
		case "*":
			items, err := in.iter(v)
			if err == nil {
				err = in.times(len(items), 16)
			}
			if err != nil {
				return a, err
			}
			a.args = append(a.args, items...)
		case "**":
			d, ok := v.(*dict)
			if !ok {
				return a, fmt.Errorf("TypeError: argument after ** must be a mapping")
			}
			for _, k := range d.keys {
				name, ok := text(k)
				if !ok {
					return a, fmt.Errorf("TypeError: keywords must be strings")
				}
				item, _ := in.getItem(d, k)
				if err := in.named(&a, in.plain(name), item); err != nil {
					return a, err
				}
			}
		default:
			if err := in.named(&a, given.name, v); err != nil {
				return a, err
			}
		}
	}
	return a, nil
}

func (in *interp) named(a *arguments, name string, v any) error {
	if err := in.charge(64 + len(name)); err != nil {
		return err
	}
	if a.kwargs == nil {
		a.kwargs = make(map[string]any)
	}
	if _, twice := a.kwargs[name]; twice {
		return fmt.Errorf("TypeError: got multiple values for keyword argument %q", name)
	}
	a.kwargs[name] = v
	a.names = append(a.names, name)
	return nil
}

func (in *interp) filter(n *node, x any) (any, error) {
	a, err := in.arguments(n.args)
	if err != nil {
		return nil, err
	}
	return filters[n.text](in, x, a)
}

func (in *interp) test(n *node, x any) (bool, error) {
	a, err := in.arguments(n.args)
	if err != nil {
		return false, err
	}
	return tests[n.text](in, x, a)
}
