package chat

import (
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"unicode"
)

// Values of a template are nil (None), bool, int64, *big.Int, float64, string, markup, bytes and these.
type (
	markup    string // a string that needs no escaping
	bytes     string
	undefined string // what is undefined
	// list is a Python sequence.
	list struct {
		items []any
		kind  byte // 'l' list, 't' tuple, 'g' generator, 'k' keys, 'v' values or 'i' items of a dict, 'r' range
	}
	// dict keeps the order in which its keys came. Keys are strings, ints, floats, bools, None or tuples of them.
	dict struct {
		keys []any
		vals map[any]any // by hashKey
	}
	namespace struct{ vars map[string]any }
	function  struct {
		name string
		call func(in *interp, a arguments) (any, error)
	}
)

func newDict() *dict { return &dict{vals: map[any]any{}} }

func dictOf(pairs ...any) *dict {
	d := newDict()
	for i := 0; i < len(pairs); i += 2 {
		d.keys = append(d.keys, pairs[i])
		d.vals[pairs[i]] = pairs[i+1]
	}
	return d
}

type tupleKey string

// hashKey is what x is found by in a dict: equal values have equal keys.
func (in *interp) hashKey(x any) (any, error) {
	switch x := x.(type) {
	case string:
		in.looked(len(x))
		return in.plain(x), nil
	case markup:
		in.looked(len(x))
		return in.plain(string(x)), nil
	case bool:
		if x {
			return int64(1), nil
		}
		return int64(0), nil
	case float64:
		if x == math.Trunc(x) && math.Abs(x) < 1<<62 {
			return int64(x), nil
		}
		return x, nil
	case *big.Int:
		return tupleKey(x.String()), nil
	case bytes:
		return bytes(in.plain(string(x))), nil
	case nil, int64:
		return x, nil
	case *list:
		if x.kind == 't' {
			s, err := in.repr(x)
			return tupleKey(s), err
		}
	case undefined:
		return x, nil
	}
	return nil, fmt.Errorf("TypeError: unhashable type: %s", typeName(x))
}

func (in *interp) setItem(d *dict, key, v any) error {
	k, err := in.hashKey(key)
	if err != nil {
		return err
	}
	if _, ok := d.vals[k]; !ok {
		size := 100
		if len(d.keys) == 0 {
			size = 400 // of the first table of a map
		}
		if s, ok := text(key); ok {
			size += len(s) // of the key without guards
		}
		if err := in.charge(size); err != nil {
			return err
		}
		d.keys = append(d.keys, key)
	}
	d.vals[k] = v
	return nil
}

func (in *interp) getItem(d *dict, key any) (any, bool) {
	k, err := in.hashKey(key)
	if err != nil {
		return nil, false
	}
	v, ok := d.vals[k]
	return v, ok
}

func typeName(x any) string {
	switch x := x.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case int64, *big.Int:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case markup:
		return "Markup"
	case bytes:
		return "bytes"
	case undefined:
		return "Undefined"
	case *list:
		return map[byte]string{'l': "list", 't': "tuple", 'g': "generator", 'k': "dict_keys", 'v': "dict_values",
			'i': "dict_items", 'r': "range"}[x.kind]
	case *dict:
		return "dict"
	case *namespace:
		return "Namespace"
	case *loop:
		return "LoopContext"
	}
	return "function"
}

func text(x any) (string, bool) {
	switch x := x.(type) {
	case string:
		return x, true
	case markup:
		return string(x), true
	}
	return "", false
}

func normal(n *big.Int) any {
	if n.IsInt64() {
		return n.Int64()
	}
	return n
}

// truth is Python's bool(x).
func (in *interp) truth(x any) bool {
	switch x := x.(type) {
	case nil, undefined:
		return false
	case bool:
		return x
	case int64:
		return x != 0
	case float64:
		return x != 0
	case string:
		return !in.empty(x)
	case markup:
		return !in.empty(string(x))
	case bytes:
		return x != ""
	case *list:
		return x.kind == 'g' || len(x.items) > 0
	case *dict:
		return len(x.keys) > 0
	}
	return true
}

// iter returns the items of x: characters of a string, keys of a dict.
func (in *interp) iter(x any) ([]any, error) {
	switch x := x.(type) {
	case undefined:
		return nil, nil
	case *list:
		items := x.items
		if x.kind == 'g' {
			x.items = nil
		}
		return items, in.step(len(items))
	case *dict:
		return x.keys, in.step(len(x.keys))
	}
	s, ok := text(x)
	if !ok {
		return nil, fmt.Errorf("TypeError: %q object is not iterable", typeName(x))
	}
	p := in.plain(s)
	if err := in.times(len(p), 64); err != nil {
		return nil, err
	}
	spans := make([]span, 0, len(p))
	for i, r := range p {
		spans = append(spans, span{i, i + len(string(r))})
	}
	chars, err := in.cut(s, spans...)
	if err != nil {
		return nil, err
	}
	out := make([]any, len(spans))
	for i, c := range chars {
		out[i] = c
	}
	return out, nil
}

// str is Python's str(x), and "" for what is undefined.
func (in *interp) str(x any) (string, error) {
	if s, ok := text(x); ok {
		return s, nil
	}
	if _, ok := x.(undefined); ok {
		return "", nil
	}
	return in.repr(x)
}

// repr is Python's repr(x).
func (in *interp) repr(x any) (string, error) {
	var b strings.Builder
	err := in.writeRepr(&b, x, 0)
	return b.String(), err
}

func (in *interp) writeRepr(b *strings.Builder, x any, depth int) error {
	if depth > maxRepr {
		return exceeded(fmt.Sprintf("a value nests deeper than %d", maxRepr))
	}
	if err := in.charge(16); err != nil {
		return err
	}
	switch x := x.(type) {
	case nil:
		b.WriteString("None")
	case bool:
		b.WriteString(map[bool]string{true: "True", false: "False"}[x])
	case int64:
		b.WriteString(strconv.FormatInt(x, 10))
	case *big.Int:
		if err := in.charge(x.BitLen()); err != nil {
			return err
		}
		b.WriteString(x.String())
	case float64:
		b.WriteString(floatRepr(x))
	case string:
		return in.quote(b, x)
	case markup:
		b.WriteString("Markup(")
		if err := in.quote(b, string(x)); err != nil {
			return err
		}
		b.WriteString(")")
	case bytes:
		b.WriteString("b")
		return in.quote(b, string(x))
	case undefined:
		b.WriteString("Undefined")
	case *list:
		return in.listRepr(b, x, depth)
	case *dict:
		b.WriteString("{")
		for i, k := range x.keys {
			if i > 0 {
				b.WriteString(", ")
			}
			if err := in.writeRepr(b, k, depth+1); err != nil {
				return err
			}
			b.WriteString(": ")
			v, _ := in.getItem(x, k)
			if err := in.writeRepr(b, v, depth+1); err != nil {
				return err
			}
		}
		b.WriteString("}")
	default:
		return fmt.Errorf("the text of a value of type %s is not supported", typeName(x))
	}
	return nil
}

func (in *interp) listRepr(b *strings.Builder, x *list, depth int) error {
	open, end := "[", "]"
	switch x.kind {
	case 't':
		open, end = "(", ")"
		if len(x.items) == 1 {
			end = ",)"
		}
	case 'k', 'v', 'i':
		open, end = typeName(x)+"([", "])"
	case 'g', 'r':
		return fmt.Errorf("the text of a %s is not supported", typeName(x))
	}
	b.WriteString(open)
	for i, item := range x.items {
		if i > 0 {
			b.WriteString(", ")
		}
		if err := in.writeRepr(b, item, depth+1); err != nil {
			return err
		}
	}
	b.WriteString(end)
	return nil
}

func (in *interp) quote(b *strings.Builder, s string) error {
	if err := in.charge(len(s) * 4); err != nil {
		return err
	}
	quote := '\''
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	b.WriteRune(quote)
	for _, r := range s {
		switch {
		case r == quote || r == '\\':
			b.WriteString(in.protect(`\` + string(r)))
		case r == ' ' || isGuard(r) || unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100 && !strings.ContainsRune("\n\r\t", r):
			b.WriteString(in.protect(fmt.Sprintf(`\x%02x`, r)))
		default: // \n, \r, \t, \uNNNN, \UNNNNNNNN
			b.WriteString(in.protect(strings.Trim(strconv.QuoteRuneToASCII(r), "'")))
		}
	}
	b.WriteRune(quote)
	return nil
}

// floatRepr is Python's repr of a float: the shortest text that reads back the same.
func floatRepr(f float64) string {
	switch {
	case math.IsInf(f, 0):
		return map[bool]string{true: "inf", false: "-inf"}[f > 0]
	case math.IsNaN(f):
		return "nan"
	}
	s := strconv.FormatFloat(f, 'e', -1, 64)
	exp, _ := strconv.Atoi(s[strings.IndexByte(s, 'e')+1:])
	if exp < -4 || exp >= 16 {
		return s
	}
	if s = strconv.FormatFloat(f, 'f', -1, 64); !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// number returns x as an int64, *big.Int or float64.
func number(x any) (any, bool) {
	switch x := x.(type) {
	case bool:
		if x {
			return int64(1), true
		}
		return int64(0), true
	case int64, *big.Int, float64:
		return x, true
	}
	return nil, false
}

func bigOf(x any) *big.Int {
	switch x := x.(type) {
	case int64:
		return big.NewInt(x)
	case *big.Int:
		return x
	}
	return nil
}

func floatOf(x any) float64 {
	switch x := x.(type) {
	case float64:
		return x
	case int64:
		return float64(x)
	case *big.Int:
		f, _ := new(big.Float).SetInt(x).Float64()
		return f
	}
	return math.NaN()
}

// compareNumbers returns -1, 0 or 1, or 2 where one is NaN.
func compareNumbers(a, b any) int {
	if x, y := bigOf(a), bigOf(b); x != nil && y != nil {
		return x.Cmp(y)
	}
	x, y := floatOf(a), floatOf(b)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	case x == y:
		return 0
	}
	return 2
}

// equal is Python's a == b.
func (in *interp) equal(a, b any) (bool, error) { return in.equalAt(a, b, 0) }

func (in *interp) equalAt(a, b any, depth int) (bool, error) {
	if depth > maxRepr {
		return false, exceeded(fmt.Sprintf("a value nests deeper than %d", maxRepr))
	}
	if err := in.step(1); err != nil {
		return false, err
	}
	if x, ok := number(a); ok {
		y, ok := number(b)
		return ok && compareNumbers(x, y) == 0, nil
	}
	if s, ok := text(a); ok {
		t, ok := text(b)
		if !ok {
			return false, nil
		}
		if err := in.work(len(s) + len(t)); err != nil {
			return false, err
		}
		return in.plain(s) == in.plain(t), nil
	}
	switch x := a.(type) {
	case undefined:
		_, ok := b.(undefined)
		return ok, nil
	case bytes:
		y, ok := b.(bytes)
		return ok && in.plain(string(x)) == in.plain(string(y)), nil
	case *list:
		y, ok := b.(*list)
		if !ok || x.kind != y.kind || len(x.items) != len(y.items) || x.kind == 'g' && x != y {
			return false, nil
		}
		for i := range x.items {
			if same, err := in.equalAt(x.items[i], y.items[i], depth+1); !same || err != nil {
				return false, err
			}
		}
		return true, nil
	case *dict:
		y, ok := b.(*dict)
		if !ok || len(x.keys) != len(y.keys) {
			return false, nil
		}
		for _, k := range x.keys {
			v, _ := in.getItem(x, k)
			w, ok := in.getItem(y, k)
			if !ok {
				return false, nil
			}
			if same, err := in.equalAt(v, w, depth+1); !same || err != nil {
				return false, err
			}
		}
		return true, nil
	}
	return a == nil && b == nil || a != nil && b != nil && reflect.TypeOf(a) == reflect.TypeOf(b) && a == b, nil
}

// less is Python's a < b.
func (in *interp) less(a, b any, depth int) (bool, error) {
	if err := in.step(1); err != nil {
		return false, err
	}
	x, ok := number(a)
	y, ok2 := number(b)
	if ok && ok2 {
		return compareNumbers(x, y) == -1, nil
	}
	s, ok := text(a)
	t, ok2 := text(b)
	if ok && ok2 {
		if err := in.work(len(s) + len(t)); err != nil {
			return false, err
		}
		return in.plain(s) < in.plain(t), nil
	}
	v, ok := a.(*list)
	w, ok2 := b.(*list)
	if ok && ok2 && v.kind == w.kind && (v.kind == 'l' || v.kind == 't') && depth < maxRepr {
		for i := range min(len(v.items), len(w.items)) {
			same, err := in.equalAt(v.items[i], w.items[i], depth+1)
			if err != nil {
				return false, err
			}
			if !same {
				return in.less(v.items[i], w.items[i], depth+1)
			}
		}
		return len(v.items) < len(w.items), nil
	}
	return false, fmt.Errorf("TypeError: < is not supported between %s and %s", typeName(a), typeName(b))
}

// contains is Python's needle in x.
func (in *interp) contains(x, needle any) (bool, error) {
	switch x := x.(type) {
	case *dict:
		_, err := in.hashKey(needle)
		_, ok := in.getItem(x, needle)
		return ok, err
	case *list, undefined:
		items, err := in.iter(x)
		for i := 0; i < len(items) && err == nil; i++ {
			var same bool
			if same, err = in.equal(items[i], needle); same {
				return true, err
			}
		}
		return false, err
	}
	s, ok := text(x)
	t, ok2 := text(needle)
	if !ok || !ok2 {
		return false, fmt.Errorf("TypeError: cannot search %s for %s", typeName(x), typeName(needle))
	}
	if err := in.work(len(s) + len(t)); err != nil {
		return false, err
	}
	return strings.Contains(in.plain(s), in.plain(t)), nil
}
