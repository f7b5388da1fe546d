package constrain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// jsonObject is a JSON object that knows the order of its members.
type jsonObject struct {
	keys   []string
	values map[string]any
}

func (o *jsonObject) has(key string) bool {
	_, ok := o.values[key]
	return ok
}

// maxNesting bounds the nesting of a schema's own text.
const maxNesting = 128

// parseJSON parses one JSON text into nil, bool, string, json.Number, []any and *jsonObject.
func parseJSON(text []byte) (any, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if err != nil {
		var wrong *json.SyntaxError
		switch {
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		case errors.As(err, &wrong): // its text quotes a character
			err = fmt.Errorf("is no JSON after its first %d bytes", d.InputOffset())
		}
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("has more than one JSON value")
	}
	return v, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	tok, err := d.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxNesting {
		return nil, fmt.Errorf("is nested deeper than %d levels", maxNesting)
	}
	switch tok {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	case json.Delim('{'):
		o := &jsonObject{values: make(map[string]any)}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			name := key.(string) // the decoder sees to it
			if o.has(name) {
				return nil, fmt.Errorf("has an object of two members of one name, the later its %d. member, before byte %d",
					len(o.keys)+1, d.InputOffset())
			}
			o.keys = append(o.keys, name)
			o.values[name] = v
		}
		_, err := d.Token()
		return o, err
	}
	return tok, nil
}

// appendJSON appends v, a value of parseJSON, without white space.
func appendJSON(dst []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...)
	case bool:
		return fmt.Append(dst, v)
	case json.Number:
		return append(dst, v...)
	case string:
		return appendQuoted(dst, v)
	case []any:
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSON(dst, e)
		}
		return append(dst, ']')
	default:
		o := v.(*jsonObject)
		dst = append(dst, '{')
		for i, key := range o.keys {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendQuoted(dst, key), ':')
			dst = appendJSON(dst, o.values[key])
		}
		return append(dst, '}')
	}
}

// equalJSON is the equality of JSON Schema 2020-12 (core, section 4.2.2): of numbers that of their values, of objects
// that of their members in any order.
func equalJSON(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		if !ok {
			return false
		}
		x, errX := decimal(a)
		y, errY := decimal(b)
		return a == b || errX == nil && errY == nil && x.Cmp(y) == 0
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equalJSON)
	case *jsonObject:
		b, ok := b.(*jsonObject)
		if !ok || len(a.keys) != len(b.keys) {
			return false
		}
		for key, v := range a.values {
			if w, ok := b.values[key]; !ok || !equalJSON(v, w) {
				return false
			}
		}
		return true
	default: // nil, a bool or a string, which no list is compared with
		return a == b
	}
}

// maxExponent bounds the digits and the decimal exponent of a schema's numbers, whose values are computed exactly.
const maxExponent = 400

// decimal returns the value of n.
func decimal(n json.Number) (*big.Rat, error) {
	exponent := 0
	if i := strings.IndexAny(string(n), "eE"); i >= 0 {
		var err error
		if exponent, err = strconv.Atoi(string(n[i+1:])); err != nil {
			exponent = maxExponent + 1
		}
	}
	if len(n) > maxExponent || max(exponent, -exponent) > maxExponent {
		return nil, errors.New("is a number of too many digits")
	}
	r, _ := new(big.Rat).SetString(string(n)) // every JSON number is one
	return r, nil
}

// appendQuoted appends s, which is UTF-8, as a JSON string, escaped as nfa.runes does.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, r := range s {
		dst = appendEscaped(dst, r)
	}
	return append(dst, '"')
}

// appendEscaped appends a character of a JSON string: escaped only if it must be, and then as short as possible.
func appendEscaped(dst []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(dst, '\\', byte(r))
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	}
	if r < ' ' {
		return fmt.Appendf(dst, `\u%04x`, r)
	}
	return utf8.AppendRune(dst, r)
}
