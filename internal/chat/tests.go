package chat

import (
	"errors"
	"fmt"
)

// test is one of Jinja2's tests.
type test func(in *interp, x any, a arguments) (bool, error)

var tests map[string]test

// plainTest is a test of the value alone.
func plainTest(f func(x any) bool) test {
	return func(_ *interp, x any, _ arguments) (bool, error) { return f(x), nil }
}

func comparison(op string) test {
	return func(in *interp, x any, a arguments) (bool, error) {
		if len(a.args) != 1 {
			return false, fmt.Errorf("TypeError: the test %q takes one argument", op)
		}
		return in.compares(op, x, a.args[0])
	}
}

func isType(names ...string) test {
	return plainTest(func(x any) bool {
		for _, n := range names {
			if typeName(x) == n {
				return true
			}
		}
		return false
	})
}

// modulo tests what x leaves when divided by 2 or by the argument.
func modulo(want int64, by any) test {
	return func(in *interp, x any, a arguments) (bool, error) {
		d := by
		if d == nil {
			if len(a.args) != 1 {
				return false, errors.New("TypeError: divisibleby takes one argument")
			}
			d = a.args[0]
		}
		rest, err := in.arith("%", x, d)
		if err != nil {
			return false, err
		}
		return in.equal(rest, want)
	}
}

func named(has func(name string) bool) test {
	return func(in *interp, x any, _ arguments) (bool, error) {
		s, ok := text(x)
		return ok && has(in.plain(s)), nil
	}
}

func init() {
	isUndefined := func(x any) bool { _, ok := x.(undefined); return ok }
	lower := func(method string) test {
		return func(in *interp, x any, _ arguments) (bool, error) {
			s, err := in.str(x)
			if err != nil {
				return false, err
			}
			ok, err := stringMethods[method](in, s, arguments{})
			return ok == true, err
		}
	}
	tests = map[string]test{
		"defined":   plainTest(func(x any) bool { return !isUndefined(x) }),
		"undefined": plainTest(isUndefined),
		"none":      plainTest(func(x any) bool { return x == nil }),
		"true":      plainTest(func(x any) bool { return x == true }),
		"false":     plainTest(func(x any) bool { return x == false }),
		"boolean":   isType("bool"), "integer": isType("int"), "float": isType("float"),
		"number": isType("int", "float", "bool"), "string": isType("str", "Markup"), "mapping": isType("dict"),
		"sequence": isType("str", "Markup", "bytes", "list", "tuple", "range", "dict", "Undefined"),
		"iterable": isType("str", "Markup", "bytes", "list", "tuple", "range", "dict", "Undefined", "generator",
			"dict_keys", "dict_values", "dict_items", "LoopContext"),
		"callable": isType("function", "LoopContext", "Undefined"), "escaped": isType("Markup"),
		"odd": modulo(1, int64(2)), "even": modulo(0, int64(2)), "divisibleby": modulo(0, nil),
		"lower": lower("islower"), "upper": lower("isupper"),
		"filter": named(func(n string) bool { return filters[n] != nil }),
		"test":   named(func(n string) bool { return tests[n] != nil }),
		"in":     comparison("in"),
		"sameas": func(in *interp, x any, a arguments) (bool, error) {
			if len(a.args) != 1 {
				return false, errors.New("TypeError: sameas takes one argument")
			}
			switch x.(type) {
			case *list, *dict, *namespace, *function, *loop:
				return x == a.args[0], nil
			}
			if typeName(x) != typeName(a.args[0]) {
				return false, nil
			}
			return in.equal(x, a.args[0])
		},
	}
	for op, names := range map[string][]string{"==": {"eq", "equalto"}, "!=": {"ne"}, "<": {"lt", "lessthan"},
		"<=": {"le"}, ">": {"gt", "greaterthan"}, ">=": {"ge"}} {
		for _, name := range append(names, op) {
			tests[name] = comparison(op)
		}
	}
}
