package chat

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

var directive = regexp.MustCompile(`^%(?:\((\w+)\))?([-0+ ]*)(\d*)(?:\.(\d+))?([a-zA-Z%])`)

// percent is Python's s % args, or s % d.
func (in *interp) percent(s string, args []any, d *dict) (string, error) {
	var b strings.Builder
	used := 0
	for {
		i := strings.IndexByte(s, '%')
		if i < 0 {
			i = len(s)
		}
		if err := in.charge(i + 16); err != nil {
			return "", err
		}
		b.WriteString(s[:i])
		if s = s[i:]; s == "" {
			break
		}
		m := directive.FindStringSubmatch(s)
		if m == nil {
			return "", fmt.Errorf("ValueError: a directive of %% formatting is malformed or not supported")
		}
		s = s[len(m[0]):]
		if m[5] == "%" {
			b.WriteByte('%')
			continue
		}
		var x any
		if m[1] != "" {
			v, ok := any(nil), false
			if d != nil {
				v, ok = in.getItem(d, m[1])
			}
			if !ok {
				return "", fmt.Errorf("KeyError: %q", cut64(m[1]))
			}
			x, used = v, len(args)
		} else if used < len(args) {
			x = args[used]
			used++
		} else {
			return "", fmt.Errorf("TypeError: not enough arguments for format string")
		}
		out, err := in.formatOne(x, m[2], m[3], m[4], m[5])
		if err == nil {
			err = in.charge(len(out))
		}
		if err != nil {
			return "", err
		}
		b.WriteString(out)
	}
	if used < len(args) && d == nil {
		return "", fmt.Errorf("TypeError: not all arguments converted during string formatting")
	}
	return b.String(), nil
}

// formatOne formats x as %[flags][width][.precision]verb does.
func (in *interp) formatOne(x any, flags, width, precision, verb string) (string, error) {
	w, err := strconv.Atoi("0" + width)
	p, err2 := strconv.Atoi("0" + precision)
	if err != nil || err2 != nil || w > 1<<30 || p > 300 && verb != "s" {
		return "", exceeded("a width or precision of % formatting is beyond the budget of bytes")
	}
	if precision == "" {
		p = -1
	}
	out := ""
	switch verb {
	case "s", "r":
		if out, err = in.str(x); verb == "r" {
			out, err = in.repr(x)
		}
		if err == nil && p >= 0 {
			out, err = in.sliceText(out, [3]any{nil, int64(p), nil})
		}
		flags = strings.ReplaceAll(flags, "0", "")
	default:
		out, err = formatNumber(x, p, verb)
	}
	if err != nil {
		return "", err
	}
	sign := ""
	if verb != "s" && verb != "r" {
		if strings.HasPrefix(out, "-") {
			sign, out = "-", out[1:]
		} else if strings.Contains(flags, "+") {
			sign = "+"
		} else if strings.Contains(flags, " ") {
			sign = " "
		}
	}
	missing := w - len(sign) - utf8.RuneCountInString(in.plain(out))
	zeros := strings.Contains(flags, "0") && !strings.Contains(flags, "-")
	fill, err := in.repeatText(map[bool]string{true: "0", false: " "}[zeros], missing)
	switch {
	case err != nil:
		return "", err
	case strings.Contains(flags, "-"):
		return sign + out + fill, nil
	case zeros:
		return sign + fill + out, nil
	}
	return fill + sign + out, nil
}

// formatNumber formats x with a verb of % for numbers. The precision p is -1 if there is none.
func formatNumber(x any, p int, verb string) (string, error) {
	n, ok := number(x)
	switch verb {
	case "d", "i", "x", "X", "o":
		if f, isFloat := n.(float64); isFloat && verb == "d" {
			n = int64(f)
		}
		if !ok || bigOf(n) == nil || p >= 0 {
			return "", fmt.Errorf("TypeError: %%%s format: an integer is required, not %s", verb, typeName(x))
		}
		out := bigOf(n).Text(map[string]int{"d": 10, "i": 10, "x": 16, "X": 16, "o": 8}[verb])
		if verb == "X" {
			out = strings.ToUpper(out)
		}
		return out, nil
	case "f", "e":
		if !ok {
			return "", fmt.Errorf("TypeError: must be real number, not %s", typeName(x))
		}
		if p < 0 {
			p = 6
		}
		return strconv.FormatFloat(floatOf(n), verb[0], p, 64), nil
	}
	return "", fmt.Errorf("%%%s is not supported", verb)
}

var (
	field     = regexp.MustCompile(`^\{(\w*)(?:!([rs]))?(?::([^{}]*))?\}`)
	fieldSpec = regexp.MustCompile(`^(?:(.)?([<>^]))?(0?)(\d*)(?:\.(\d+))?([sdfxX]?)$`)
)

// format is Python's str.format, for fields of names and numbers.
func (in *interp) format(s string, a arguments) (string, error) {
	var b strings.Builder
	auto := 0
	for {
		i := strings.IndexAny(s, "{}")
		if i < 0 {
			i = len(s)
		}
		if err := in.charge(i + 16); err != nil {
			return "", err
		}
		b.WriteString(s[:i])
		if s = s[i:]; s == "" {
			return b.String(), nil
		}
		if strings.HasPrefix(s, "{{") || strings.HasPrefix(s, "}}") {
			b.WriteByte(s[0])
			s = s[2:]
			continue
		}
		m := field.FindStringSubmatch(s)
		if m == nil {
			return "", fmt.Errorf("ValueError: a field of str.format is malformed or not supported")
		}
		s = s[len(m[0]):]
		x, ok := a.kwargs[m[1]]
		if m[1] == "" {
			m[1] = strconv.Itoa(auto)
			auto++
		}
		if n, err := strconv.Atoi(m[1]); err == nil && n >= 0 && n < len(a.args) {
			x, ok = a.args[n], true
		}
		if !ok {
			return "", fmt.Errorf("IndexError: str.format has no argument %q", cut64(m[1]))
		}
		out, err := in.formatField(x, m[2], m[3])
		if err != nil {
			return "", err
		}
		if err := in.charge(len(out)); err != nil {
			return "", err
		}
		b.WriteString(out)
	}
}

func (in *interp) formatField(x any, conversion, spec string) (string, error) {
	if conversion == "r" {
		s, err := in.repr(x)
		if err != nil {
			return "", err
		}
		x = s
	} else if conversion == "s" {
		s, err := in.str(x)
		if err != nil {
			return "", err
		}
		x = s
	}
	m := fieldSpec.FindStringSubmatch(spec)
	if m == nil {
		return "", fmt.Errorf("a format of str.format is not supported")
	}
	if spec == "" {
		return in.str(x)
	}
	n, isNumber := number(x)
	if _, isBool := x.(bool); isBool || x == nil {
		return "", fmt.Errorf("a format of %s in str.format is not supported", typeName(x))
	}
	verb := m[6]
	if _, isFloat := n.(float64); verb == "" && isFloat {
		return "", fmt.Errorf("a format of a float without a type in str.format is not supported")
	}
	if verb == "" {
		verb = map[bool]string{true: "d", false: "s"}[isNumber]
	}
	if _, ok := text(x); ok != (verb == "s") {
		return "", fmt.Errorf("ValueError: format %q does not fit %s", verb, typeName(x))
	}
	zeros := m[3]
	width := m[4]
	if m[2] != "" {
		width = ""
	}
	if verb == "s" && m[2] == "" {
		zeros += "-"
	}
	out, err := in.formatOne(x, zeros, width, m[5], verb)
	if err != nil || m[2] == "" {
		return out, err
	}
	return in.align(out, m[1], m[2], m[4])
}

// align pads out to width with fill, as "<", ">" and "^" of str.format do.
func (in *interp) align(out, fill, how, width string) (string, error) {
	if fill == "" {
		fill = " "
	}
	w, err := strconv.Atoi("0" + width)
	if err != nil {
		return "", exceeded("a width of str.format is beyond the budget of bytes")
	}
	if how == "^" {
		missing := max(w-utf8.RuneCountInString(in.plain(out)), 0)
		left, err := in.repeatText(fill, missing/2)
		if err != nil {
			return "", err
		}
		right, err := in.repeatText(fill, missing-missing/2)
		return left + out + right, err
	}
	return in.pad(map[string]string{"<": "ljust", ">": "rjust"}[how], out, arguments{args: []any{int64(w), fill}})
}
