package chat

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

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
