package chat

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// interp renders a template once. It follows Jinja2 3.1 with the settings of transformers; own code, since no library
// for Go bounds the bytes that a template makes, or keeps the order of dicts.
type interp struct {
	budget
	mark
	globals map[string]any
	scope   *scope
	out     *strings.Builder
	line    int
	escapes bool    // {% autoescape true %}
	raised  *string // the message of raise_exception, when called
}

// scopeBytes is about what a scope takes, which a macro keeps.
const scopeBytes = 600

// plain is mark.plain, which counts.
func (in *interp) plain(s string) string {
	in.looked(len(s))
	return in.mark.plain(s)
}

// cut is mark.cut, which charges for the parts that are not just places of s.
func (in *interp) cut(s string, spans ...span) ([]string, error) {
	made, plain := 0, in.plain(s)
	for _, sp := range spans {
		if r, _ := utf8.DecodeRuneInString(plain[sp.from:sp.to]); in.mark.within.has(r) {
			made += 2 * (sp.to - sp.from)
		}
	}
	if err := in.charge(min(made, len(s)) + width*len(spans)); err != nil {
		return nil, err
	}
	in.looked(len(s) + 64*len(spans))
	return in.mark.cut(s, spans...), nil
}

// part is cut for a single part.
func (in *interp) part(s string, sp span) (string, error) {
	parts, err := in.cut(s, sp)
	if err != nil {
		return "", err
	}
	return parts[0], nil
}

type scope struct {
	vars   map[string]any
	parent *scope
}

func (s *scope) set(name string, v any) {
	if s.vars == nil {
		s.vars = make(map[string]any)
	}
	s.vars[name] = v
}

var errBreak, errContinue = errors.New("break"), errors.New("continue")

// within runs f in a new scope below parent.
func (in *interp) within(parent *scope, f func() error) error {
	was := in.scope
	in.scope = &scope{parent: parent}
	defer func() { in.scope = was }()
	return f()
}

// capture returns what f writes.
func (in *interp) capture(f func() error) (string, error) {
	was := in.out
	in.out = &strings.Builder{}
	defer func() { in.out = was }()
	err := f()
	return in.out.String(), err
}

func (in *interp) write(s string) error {
	if in.out.Len()+len(s) > maxPrompt {
		return exceeded(fmt.Sprintf("the prompt is longer than %d bytes", maxPrompt))
	}
	if err := in.charge(len(s)); err != nil {
		return err
	}
	in.out.WriteString(s)
	return nil
}

// print writes x as {{ x }} does.
func (in *interp) print(x any) error {
	s, err := in.str(x)
	if _, safe := x.(markup); in.escapes && !safe && err == nil {
		s, err = in.escape(s)
	}
	if err != nil {
		return err
	}
	return in.write(s)
}

func (in *interp) exec(body []*node) error {
	for _, n := range body {
		in.line = n.line
		if err := in.step(1); err != nil {
			return err
		}
		if err := in.statement(n); err != nil {
			return err
		}
	}
	return nil
}

func (in *interp) statement(n *node) error {
	switch n.op {
	case "text":
		return in.write(n.text)
	case "print":
		x, err := in.eval(n.kids[0])
		if err != nil {
			return err
		}
		return in.print(x)
	case "if":
		for _, branch := range n.body {
			x, err := in.eval(branch.kids[0])
			if err != nil {
				return err
			}
			if in.truth(x) {
				return in.exec(branch.body)
			}
		}
		return in.exec(n.rest)
	case "for":
		return in.forLoop(n, nil, nil)
	case "set":
		x, err := in.eval(n.kids[1])
		if err != nil {
			return err
		}
		return in.assign(n.kids[0], x)
	case "capture":
		return in.captureBlock(n)
	case "macro":
		in.scope.set(n.text, in.macro(n))
		return in.charge(scopeBytes)
	case "call":
		return in.callBlock(n)
	case "filter":
		return in.filterBlock(n)
	case "with":
		return in.with(n)
	case "autoescape":
		x, err := in.eval(n.kids[0])
		if err != nil {
			return err
		}
		defer func(was bool) { in.escapes = was }(in.escapes)
		in.escapes = in.truth(x)
		return in.within(in.scope, func() error { return in.exec(n.body) })
	case "break":
		return errBreak
	case "continue":
		return errContinue
	}
	return fmt.Errorf("tag %q is not supported", n.op)
}

func (in *interp) callBlock(n *node) error {
	if err := in.charge(scopeBytes); err != nil {
		return err
	}
	x, err := in.call(n.kids[0], in.macro(&node{text: "caller", args: n.args, body: n.body, flag: n.flag, kw: n.kw}))
	if err != nil {
		return err
	}
	return in.print(x)
}

func (in *interp) captureBlock(n *node) error {
	s, err := in.capture(func() error { return in.within(in.scope, func() error { return in.exec(n.body) }) })
	if err != nil {
		return err
	}
	var x any = s
	if in.escapes {
		x = markup(s)
	}
	if len(n.kids) > 1 {
		if x, err = in.filterOn(n.kids[1], x); err != nil {
			return err
		}
	}
	return in.assign(n.kids[0], x)
}

func (in *interp) filterBlock(n *node) error {
	s, err := in.capture(func() error { return in.within(in.scope, func() error { return in.exec(n.body) }) })
	if err != nil {
		return err
	}
	var x any = s
	if in.escapes {
		x = markup(s)
	}
	if x, err = in.filterOn(n.kids[0], x); err != nil {
		return err
	}
	return in.print(x)
}

// filterOn applies a chain of filters, which begins with no value, to x.
func (in *interp) filterOn(n *node, x any) (any, error) {
	if n.kids[0] != nil {
		var err error
		if x, err = in.filterOn(n.kids[0], x); err != nil {
			return nil, err
		}
	}
	return in.filter(n, x)
}

func (in *interp) with(n *node) error {
	values := make([]any, len(n.args))
	for i, a := range n.args {
		var err error
		if values[i], err = in.eval(a.node); err != nil {
			return err
		}
	}
	return in.within(in.scope, func() error {
		for i, a := range n.args {
			in.scope.set(a.name, values[i])
		}
		return in.exec(n.body)
	})
}

func (in *interp) assign(target *node, x any) error {
	switch target.op {
	case "name":
		in.scope.set(target.text, x)
		return in.charge(48)
	case "nsref":
		ns, err := in.eval(target.kids[0])
		if err != nil {
			return err
		}
		space, ok := ns.(*namespace)
		if !ok {
			return errors.New("TemplateRuntimeError: cannot assign attribute on non-namespace object")
		}
		space.vars[target.text] = x
		return in.charge(48)
	}
	items, err := in.iter(x)
	if err != nil {
		return err
	}
	if len(items) != len(target.kids) {
		return fmt.Errorf("ValueError: %d values to unpack, want %d", len(items), len(target.kids))
	}
	for i, t := range target.kids {
		if err := in.assign(t, items[i]); err != nil {
			return err
		}
	}
	return nil
}

// loop is the variable of that name in a {% for %}.
type loop struct {
	items   []any
	at      int
	depth   int
	changed *list // the last arguments of loop.changed
	recurse func(in *interp, items any) (any, error)
}

// forLoop runs n over its own items, or over those that a recursive call gives.
func (in *interp) forLoop(n *node, given any, outer *loop) error {
	var items []any
	x, err := given, error(nil)
	if outer == nil {
		x, err = in.eval(n.kids[1])
	}
	if err == nil {
		items, err = in.iter(x)
	}
	if err == nil && n.kids[2] != nil {
		items, err = in.where(n, items)
	}
	if err != nil {
		return err
	}
	l := &loop{items: items, depth: 1}
	if outer != nil {
		l.depth = outer.depth + 1
	}
	if n.flag {
		if err := in.charge(scopeBytes); err != nil {
			return err
		}
		scope := in.scope
		l.recurse = func(in *interp, items any) (any, error) {
			s, err := in.nested(func() error { return in.within(scope, func() error { return in.forLoop(n, items, l) }) })
			return like(map[bool]any{true: markup("")}[in.escapes], s), err
		}
	}
	for i, item := range items {
		l.at = i
		if err := in.step(1); err != nil {
			return err
		}
		err := in.within(in.scope, func() error {
			in.scope.set("loop", l)
			if err := in.assign(n.kids[0], item); err != nil {
				return err
			}
			return in.exec(n.body)
		})
		if err == errBreak {
			break
		}
		if err != nil && err != errContinue {
			return err
		}
	}
	if len(items) == 0 {
		return in.within(in.scope, func() error { return in.exec(n.rest) })
	}
	return nil
}

// where keeps the items for which the loop's condition holds.
func (in *interp) where(n *node, items []any) ([]any, error) {
	var kept []any
	for _, item := range items {
		var x any
		err := in.within(in.scope, func() (err error) {
			if err = in.assign(n.kids[0], item); err == nil {
				x, err = in.eval(n.kids[2])
			}
			return err
		})
		if err == nil {
			err = in.charge(16)
		}
		if err != nil {
			return nil, err
		}
		if in.truth(x) {
			kept = append(kept, item)
		}
	}
	return kept, nil
}

// nested is capture for a call of the template's own code.
func (in *interp) nested(f func() error) (string, error) {
	if in.calls++; in.calls > maxCalls {
		return "", exceeded(fmt.Sprintf("the recursion is deeper than %d calls", maxCalls))
	}
	defer func(line int) { in.calls--; in.line = line }(in.line)
	s, err := in.capture(f)
	if err == errBreak || err == errContinue {
		err = nil
	}
	if err != nil {
		failed := in.line
		defer func() { in.line = failed }()
	}
	return s, err
}

func (in *interp) macro(n *node) *function {
	scope := in.scope
	return &function{n.text, func(in *interp, a arguments) (any, error) {
		s, err := in.nested(func() error {
			return in.within(scope, func() error {
				if err := in.bind(n, a); err != nil {
					return err
				}
				return in.exec(n.body)
			})
		})
		if in.escapes {
			return markup(s), err
		}
		return s, err
	}}
}

// bind sets the parameters of a macro.
func (in *interp) bind(n *node, a arguments) error {
	used := 0
	for i, param := range n.args {
		v, named := a.kwargs[param.name]
		switch {
		case i < len(a.args):
			if named {
				return fmt.Errorf("TypeError: macro %q got multiple values for %q", n.text, param.name)
			}
			v = a.args[i]
		case named:
			used++
		case param.node != nil:
			var err error
			if v, err = in.eval(param.node); err != nil {
				return err
			}
		default:
			v = undefined("parameter " + param.name)
		}
		in.scope.set(param.name, v)
	}
	if caller, ok := a.kwargs["caller"]; ok {
		if !slices.ContainsFunc(n.args, func(p arg) bool { return p.name == "caller" }) {
			in.scope.set("caller", caller)
			used++
		}
	} else {
		in.scope.set("caller", undefined("caller"))
	}
	extra := a.args[min(len(n.args), len(a.args)):]
	if len(extra) > 0 && !n.flag {
		return fmt.Errorf("TypeError: macro %q takes not more than %d arguments", n.text, len(n.args))
	}
	if used < len(a.kwargs) && !n.kw {
		return fmt.Errorf("TypeError: macro %q takes no such keyword argument", n.text)
	}
	if n.flag {
		in.scope.set("varargs", &list{extra, 't'})
	}
	if n.kw {
		rest := newDict()
		for _, name := range a.names {
			if !slices.ContainsFunc(n.args, func(p arg) bool { return p.name == name }) && name != "caller" {
				if err := in.setItem(rest, name, a.kwargs[name]); err != nil {
					return err
				}
			}
		}
		in.scope.set("kwargs", rest)
	}
	return nil
}

// render runs a template and returns its text. The error names the line.
func (in *interp) render(body []*node) (string, error) {
	in.out = &strings.Builder{}
	in.scope = &scope{}
	if err := in.exec(body); err != nil {
		return "", fmt.Errorf("line %d: %w", in.line, err)
	}
	return in.out.String(), nil
}
