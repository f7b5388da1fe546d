package chat

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

var entities = map[rune]string{'&': "&amp;", '<': "&lt;", '>': "&gt;", '\'': "&#39;", '"': "&#34;"}

// escape is markupsafe's. An entity that a user's character becomes gets the guards of the user's text.
func (in *interp) escape(s string) (string, error) {
	if err := in.charge(len(s)); err != nil || !strings.ContainsAny(s, `&<>'"`) {
		return s, err
	}
	var b strings.Builder
	for _, r := range s {
		e, ok := entities[r]
		if !ok {
			b.WriteRune(r)
			continue
		}
		e = in.protect(e)
		if err := in.charge(2 * len(e)); err != nil {
			return "", err
		}
		b.WriteString(e)
	}
	return b.String(), nil
}

func escapeFilter(in *interp, x any, _ arguments) (any, error) {
	if _, ok := x.(markup); ok {
		return x, nil
	}
	s, err := in.str(x)
	if err == nil {
		s, err = in.escape(s)
	}
	return markup(s), err
}

func indent(in *interp, x any, a arguments) (any, error) {
	width, _ := a.at(0, "width")
	if width == nil {
		width = int64(4)
	}
	by, ok := text(width)
	if !ok {
		n, err := a.int(0, "width", 4)
		if err == nil {
			by, err = in.repeatText(" ", n)
		}
		if err != nil {
			return nil, err
		}
	}
	s, ok := text(x)
	if !ok {
		return nil, fmt.Errorf("TypeError: indent needs a string, not %s", typeName(x))
	}
	blank, _ := a.at(2, "blank")
	first, _ := a.at(1, "first")
	if err := in.charge(2 * len(s)); err != nil {
		return nil, err
	}
	split, err := splitlines(in, s+"\n", arguments{})
	if err != nil {
		return nil, err
	}
	rows := split.(*list).items
	if err := in.times(len(rows)+1, len(by)+17); err != nil {
		return nil, err
	}
	var b strings.Builder
	for i, row := range rows {
		line := row.(string)
		if i > 0 {
			b.WriteByte('\n')
		}
		if i == 0 && in.truth(first) || i > 0 && (line != "" || in.truth(blank)) {
			b.WriteString(by)
		}
		if err := in.charge(len(line)); err != nil {
			return nil, err
		}
		b.WriteString(line)
	}
	return like(x, b.String()), nil
}

func truncate(in *interp, x any, a arguments) (any, error) {
	s, ok := text(x)
	if !ok {
		if n, err := length(in, x, a); err != nil || n.(int64) > 6 {
			return nil, errors.Join(err, fmt.Errorf("truncate of a %s is not supported", typeName(x)))
		}
		return x, nil
	}
	most, err := a.int(0, "length", 255)
	if err != nil {
		return nil, err
	}
	kill, _ := a.at(1, "killwords")
	end, given, err := a.str(2, "end")
	if err != nil {
		return nil, err
	}
	if !given {
		end = "..."
	}
	leeway, err := a.int(3, "leeway", 5)
	tail := utf8.RuneCountInString(in.plain(end))
	if err != nil || most < tail || leeway < 0 {
		return nil, errors.Join(err, errors.New("AssertionError: truncate: the length is too small"))
	}
	if utf8.RuneCountInString(in.plain(s)) <= most+leeway {
		return x, nil
	}
	cut, err := in.sliceText(s, [3]any{nil, int64(most - tail), nil})
	if err != nil {
		return nil, err
	}
	if p := in.plain(cut); !in.truth(kill) {
		if i := strings.LastIndexByte(p, ' '); i >= 0 {
			if cut, err = in.part(cut, span{0, i}); err != nil {
				return nil, err
			}
		}
	}
	return in.concat(like(x, cut), end)
}

func wordcount(in *interp, x any, _ arguments) (any, error) {
	s, err := in.str(x)
	if err != nil {
		return nil, err
	}
	n, within := int64(0), false
	for _, r := range in.plain(s) {
		word := unicode.IsLetter(r) || unicode.IsNumber(r) || r == '_'
		if word && !within {
			n++
		}
		within = word
	}
	return n, in.work(4 * len(s))
}

func filesize(in *interp, x any, a arguments) (any, error) {
	v, err := floatFilter(in, x, arguments{args: []any{nil}})
	if err != nil || v == nil {
		return nil, errors.Join(err, fmt.Errorf("TypeError: filesizeformat needs a number, not %s", typeName(x)))
	}
	binary, _ := a.at(0, "binary")
	n, base, suffix := v.(float64), 1000.0, "B"
	if in.truth(binary) {
		base, suffix = 1024, "iB"
	}
	switch {
	case n == 1:
		return "1 Byte", nil
	case n < base:
		return strconv.Itoa(int(n)) + " Bytes", nil
	}
	for i, prefix := range "kMGTPEZY" {
		unit := math.Pow(base, float64(i+2))
		if n < unit || prefix == 'Y' {
			if suffix == "iB" && prefix == 'k' {
				prefix = 'K'
			}
			return strconv.FormatFloat(base*n/unit, 'f', 1, 64) + " " + string(prefix) + suffix, nil
		}
	}
	return nil, nil
}

func xmlattr(in *interp, x any, a arguments) (any, error) {
	d, ok := x.(*dict)
	if !ok {
		return nil, errors.New("TypeError: xmlattr needs a mapping")
	}
	space, given := a.at(0, "autospace")
	var b strings.Builder
	for _, k := range d.keys {
		v, _ := in.getItem(d, k)
		if _, ok := v.(undefined); ok || v == nil {
			continue
		}
		name, ok := text(k)
		if !ok || strings.ContainsAny(in.plain(name), " \t\n\r\f\v/>=") {
			return nil, errors.New("ValueError: invalid character in attribute name")
		}
		key, err := in.escape(name)
		if err != nil {
			return nil, err
		}
		e, err := escapeFilter(in, v, arguments{})
		if err != nil {
			return nil, err
		}
		value, _ := text(e)
		if err := in.charge(2 * (len(key) + len(value) + 4)); err != nil {
			return nil, err
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(key + `="` + value + `"`)
	}
	out := b.String()
	if (!given || in.truth(space)) && out != "" {
		out = " " + out
	}
	if in.escapes {
		return markup(out), nil
	}
	return out, nil
}
