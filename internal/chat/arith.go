package chat

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"unicode/utf8"
)

// maxBits bounds integers.
const maxBits = 4096

var errZero = errors.New("ZeroDivisionError: division by zero")

// arith is Python's a op b.
func (in *interp) arith(op string, a, b any) (any, error) {
	x, ok := number(a)
	y, ok2 := number(b)
	if ok && ok2 {
		return in.numbers(op, x, y)
	}
	switch op {
	case "+":
		return in.concat(a, b)
	case "*":
		if !ok {
			return in.repeat(a, b)
		}
		return in.repeat(b, a)
	case "%":
		if s, isText := text(a); isText {
			args := []any{b}
			if t, isTuple := b.(*list); isTuple && t.kind == 't' {
				args = t.items
			}
			d, _ := b.(*dict)
			switch b := b.(type) { // Python lets what has items go unused
			case undefined:
				d = newDict()
			case *list:
				if b.kind != 't' {
					d = newDict()
				}
			}
			out, err := in.percent(s, args, d)
			return like(a, out), err
		}
	}
	if u, isUndefined := a.(undefined); isUndefined {
		return nil, fmt.Errorf("UndefinedError: %q is undefined", string(u))
	}
	return nil, fmt.Errorf("TypeError: unsupported operand types for %s: %s and %s", op, typeName(a), typeName(b))
}

// like returns s as markup where x is.
func like(x any, s string) any {
	if _, ok := x.(markup); ok {
		return markup(s)
	}
	return s
}

func (in *interp) concat(a, b any) (any, error) {
	s, ok := text(a)
	t, ok2 := text(b)
	if ok && ok2 {
		_, m1 := a.(markup)
		_, m2 := b.(markup)
		if m1 != m2 { // markupsafe escapes the other side
			var err error
			if m1 {
				t, err = in.escape(t)
			} else {
				s, err = in.escape(s)
			}
			if err != nil {
				return nil, err
			}
		}
		if err := in.charge(len(s) + len(t)); err != nil {
			return nil, err
		}
		if m1 || m2 {
			return markup(s + t), nil
		}
		return s + t, nil
	}
	x, ok := a.(*list)
	y, ok2 := b.(*list)
	if ok && ok2 && x.kind == y.kind && (x.kind == 'l' || x.kind == 't') {
		if err := in.times(len(x.items)+len(y.items), 16); err != nil {
			return nil, err
		}
		return &list{append(append(make([]any, 0, len(x.items)+len(y.items)), x.items...), y.items...), x.kind}, nil
	}
	return nil, fmt.Errorf("TypeError: unsupported operand types for +: %s and %s", typeName(a), typeName(b))
}

func (in *interp) repeat(x, times any) (any, error) {
	n, ok := number(times)
	k, isInt := n.(int64)
	if !ok || !isInt {
		return nil, fmt.Errorf("TypeError: unsupported operand types for *: %s and %s", typeName(x), typeName(times))
	}
	k = max(k, 0)
	if s, ok := text(x); ok {
		out, err := in.repeatText(s, int(min(k, 1<<40)))
		return like(x, out), err
	}
	l, ok := x.(*list)
	if !ok || l.kind != 'l' && l.kind != 't' {
		return nil, fmt.Errorf("TypeError: cannot repeat %s", typeName(x))
	}
	if err := in.times(int(min(k, 1<<40)), len(l.items)*16); err != nil {
		return nil, err
	}
	var out []any
	if len(l.items) > 0 {
		out = make([]any, 0, len(l.items)*int(k))
		for range k {
			out = append(out, l.items...)
		}
	}
	return &list{out, l.kind}, nil
}

func (in *interp) numbers(op string, x, y any) (any, error) {
	a, b := bigOf(x), bigOf(y)
	if a == nil || b == nil || op == "/" || op == "**" && b.Sign() < 0 {
		if op == "**" {
			if err := in.step(50); err != nil {
				return nil, err
			}
		}
		return floats(op, floatOf(x), floatOf(y))
	}
	if i, ok := x.(int64); ok {
		if j, ok := y.(int64); ok && i>>31 == i>>63 && j>>31 == j>>63 { // no overflow
			switch op {
			case "+":
				return i + j, nil
			case "-":
				return i - j, nil
			case "*":
				return i * j, nil
			}
		}
	}
	if err := in.charge(64 + (a.BitLen()+b.BitLen())/8); err != nil {
		return nil, err
	}
	out := new(big.Int)
	switch op {
	case "+":
		out.Add(a, b)
	case "-":
		out.Sub(a, b)
	case "*":
		out.Mul(a, b)
	case "//", "%":
		if b.Sign() == 0 {
			return nil, errZero
		}
		rest := new(big.Int)
		out.QuoRem(a, b, rest)
		if rest.Sign() != 0 && rest.Sign() != b.Sign() { // Python rounds down
			out.Sub(out, big.NewInt(1))
			rest.Add(rest, b)
		}
		if op == "%" {
			out = rest
		}
	case "**":
		if err := in.exp(out, a, b); err != nil {
			return nil, err
		}
	}
	if out.BitLen() > maxBits {
		return nil, exceeded(fmt.Sprintf("an integer has more than %d bits", maxBits))
	}
	return normal(out), nil
}

// exp sets out to a ** b.
func (in *interp) exp(out, a, b *big.Int) error {
	if a.BitLen() > 1 && (!b.IsInt64() || b.Int64() > maxBits || int64(a.BitLen())*b.Int64() > 2*maxBits) {
		return exceeded(fmt.Sprintf("an integer has more than %d bits", maxBits))
	}
	if a.BitLen() <= 1 && b.BitLen() > 1 {
		b = new(big.Int).Add(new(big.Int).And(b, big.NewInt(1)), big.NewInt(2))
	}
	if err := in.charge(maxBits / 8); err != nil {
		return err
	}
	out.Exp(a, b, nil)
	return nil
}

func floats(op string, x, y float64) (any, error) {
	switch op {
	case "+":
		return x + y, nil
	case "-":
		return x - y, nil
	case "*":
		return x * y, nil
	case "**":
		if x == 0 && y < 0 {
			return nil, errZero
		}
		if x < 0 && y != math.Trunc(y) {
			return nil, errors.New("a complex number is not supported")
		}
		f := power(x, y)
		if math.IsNaN(f) && !math.IsNaN(x) && !math.IsNaN(y) {
			return nil, errors.New("a power with this exponent is not supported")
		}
		if math.IsInf(f, 0) && !math.IsInf(x, 0) && !math.IsInf(y, 0) {
			return nil, errors.New("OverflowError: result too large")
		}
		return f, nil
	}
	if y == 0 {
		return nil, errZero
	}
	if op == "/" {
		return x / y, nil
	}
	mod := math.Mod(x, y)
	if mod != 0 && (mod < 0) != (y < 0) {
		mod += y
	}
	if op == "%" {
		if mod == 0 {
			return math.Copysign(0, y), nil
		}
		return mod, nil
	}
	div := (x - mod) / y
	floor := math.Floor(div)
	if div-floor > 0.5 {
		floor++
	}
	if floor == 0 {
		floor = math.Copysign(0, x/y)
	}
	return floor, nil
}

// power is x**y rounded once, as C's pow nearly always is, or NaN where that is not done.
func power(x, y float64) float64 {
	switch {
	case y == 0.5 && x >= 0:
		return math.Sqrt(x)
	case math.IsInf(x, 0) || math.IsInf(y, 0) || x == 0 || math.Abs(x) == 1 || y == 0:
		return math.Pow(x, y)
	case y != math.Trunc(y) || math.Abs(y) > 1100 || math.IsNaN(x):
		return math.NaN()
	}
	out, base := big.NewFloat(1).SetPrec(300), new(big.Float).SetPrec(300).SetFloat64(x)
	for n := int(math.Abs(y)); n > 0; n >>= 1 {
		if n&1 == 1 {
			out.Mul(out, base)
		}
		base.Mul(base, base)
	}
	if y < 0 {
		out.Quo(big.NewFloat(1).SetPrec(300), out)
	}
	f, _ := out.Float64()
	return f
}

// indices returns the places that Python's x[start:stop:step] takes of n.
func (in *interp) indices(n int, bounds [3]any) ([]int, error) {
	var given [3]*int
	for i, v := range bounds {
		if v == nil {
			continue
		}
		num, _ := number(v)
		k, ok := num.(int64)
		if !ok {
			return nil, errors.New("TypeError: slice indices must be integers or None")
		}
		small := int(max(min(k, math.MaxInt32), math.MinInt32))
		given[i] = &small
	}
	step := 1
	if given[2] != nil {
		step = *given[2]
	}
	if step == 0 {
		return nil, errors.New("ValueError: slice step cannot be zero")
	}
	low, high := 0, n // the range of start and stop
	if step < 0 {
		low, high = -1, n-1
	}
	bound := func(v *int, absent int) int {
		if v == nil {
			return absent
		}
		i := *v
		if i < 0 {
			i += n
		}
		return max(low, min(i, high))
	}
	start, stop := bound(given[0], low), bound(given[1], high)
	if step < 0 {
		start, stop = bound(given[0], high), bound(given[1], low)
	}
	count := 0
	if step > 0 && stop > start {
		count = (stop - start + step - 1) / step
	} else if step < 0 && start > stop {
		count = (start - stop - step - 1) / -step
	}
	if err := in.times(count, 8); err != nil {
		return nil, err
	}
	out := make([]int, count)
	for i := range out {
		out[i] = start + i*step
	}
	return out, nil
}

// slice is Python's x[start:stop:step].
func (in *interp) slice(x any, bounds [3]any) (any, error) {
	if s, ok := text(x); ok {
		out, err := in.sliceText(s, bounds)
		return like(x, out), err
	}
	l, ok := x.(*list)
	if !ok || l.kind != 'l' && l.kind != 't' && l.kind != 'r' {
		if u, ok := x.(undefined); ok {
			return nil, fmt.Errorf("UndefinedError: %q is undefined", string(u))
		}
		return undefined("slice"), nil
	}
	at, err := in.indices(len(l.items), bounds)
	if err == nil {
		err = in.times(len(at), 16)
	}
	if err != nil {
		return nil, err
	}
	out := make([]any, len(at))
	for i, j := range at {
		out[i] = l.items[j]
	}
	return &list{out, l.kind}, nil
}

func (in *interp) sliceText(s string, bounds [3]any) (string, error) {
	plain := in.plain(s)
	n := utf8.RuneCountInString(plain)
	step, stepped := bounds[2].(int64)
	if stepped && step != 1 || n != len(plain) && bounds[2] != nil {
		return in.stepText(s, plain, n, bounds)
	}
	bounds[2] = int64(math.MaxInt32) // for the first place only
	first, err := in.indices(n, bounds)
	if err != nil || len(first) == 0 {
		return "", err
	}
	last := n
	if k, ok := bounds[1].(int64); ok {
		if k < 0 {
			k += int64(n)
		}
		last = int(min(k, int64(n)))
	} else if bounds[1] != nil {
		return in.stepText(s, plain, n, [3]any{bounds[0], bounds[1], nil})
	}
	from := byteOffset(plain, first[0])
	return in.part(s, span{from, from + byteOffset(plain[from:], last-first[0])})
}

// stepText takes single characters.
func (in *interp) stepText(s, plain string, n int, bounds [3]any) (string, error) {
	if err := in.times(n, 4); err != nil {
		return "", err
	}
	runes := []rune(plain)
	at, err := in.indices(len(runes), bounds)
	if err == nil {
		err = in.times(len(at), 8)
	}
	if err != nil {
		return "", err
	}
	out := make([]rune, len(at))
	for i, j := range at {
		out[i] = runes[j]
	}
	return in.protect(string(out)), nil
}

// byteOffset returns where the first n characters of s end.
func byteOffset(s string, n int) int {
	at := 0
	for ; n > 0 && at < len(s); n-- {
		_, size := utf8.DecodeRuneInString(s[at:])
		at += size
	}
	return at
}
