package constrain

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode/utf16"
)

// search is a pattern of ECMA-262: what it looks for, and what the text has to be or not to be from its start on.
type search struct {
	re    *syntax.Regexp
	ahead []ahead
}

// ahead is a look-ahead at the start of the text.
type ahead struct {
	re       *syntax.Regexp
	negative bool
}

// parseSearch parses a pattern of a schema, in ECMA-262's syntax or Go's. Look-ahead is taken at the start of a pattern
// that begins with ^, where it is about the whole text. Errors quote nothing of the pattern.
func parseSearch(expr string) (*search, error) {
	p := new(search)
	expr = wordBoundaries(expr)
	rest, anchored := strings.CutPrefix(expr, "^")
	if !anchored {
		look, inner := rest, false
		for strings.HasPrefix(look, "(?!") || strings.HasPrefix(look, "(?=") {
			end := closing(look)
			if end < 0 {
				break
			}
			look, inner = look[end+1:], true
		}
		if inner && strings.HasPrefix(look, "^") { // ^ may stand behind the look-ahead as well
			anchored = true
		}
	}
	for anchored && (strings.HasPrefix(rest, "(?!") || strings.HasPrefix(rest, "(?=")) {
		end := closing(rest)
		if end < 0 || len(p.ahead) >= 16 {
			break
		}
		re, err := parseECMA("^(?:" + rest[3:end] + ")")
		if err != nil {
			return nil, err
		}
		p.ahead = append(p.ahead, ahead{re, rest[2] == '!'})
		rest = rest[end+1:]
	}
	if len(p.ahead) > 0 {
		if topAlternative(rest) {
			return nil, errors.New("has look-ahead in one of several alternatives, which is not supported: it is at the start of the whole pattern only")
		}
		expr = "^(?:" + rest + ")"
	}
	var err error
	p.re, err = parseECMA(expr)
	return p, err
}

// wordBoundaries rewrites the word boundaries at the ends of a pattern next to a word's characters, where a search
// finds the same with what comes before and after.
func wordBoundaries(expr string) string {
	word := func(b byte) bool { return b == '_' || '0' <= b && b <= '9' || 'a' <= b|0x20 && b|0x20 <= 'z' }
	if topAlternative(expr) {
		return expr
	}
	if rest, ok := strings.CutPrefix(expr, `\b`); ok && rest != "" && word(rest[0]) &&
		(len(rest) < 2 || !strings.ContainsRune("?*{", rune(rest[1]))) {
		expr = `(?:^|\W)` + rest
	}
	if rest, ok := strings.CutSuffix(expr, `\b`); ok && len(rest) > 1 && word(rest[len(rest)-1]) &&
		word(rest[len(rest)-2]) {
		expr = rest + `(?:\W|$)`
	}
	return expr
}

// scan calls f for each byte of a pattern outside of escapes and classes, until f is false.
func scan(expr string, f func(i int, b byte) bool) {
	class := false
	for i := 0; i < len(expr); i++ {
		switch b := expr[i]; {
		case b == '\\':
			i++
		case class:
			class = b != ']'
		case b == '[':
			class = true
			if strings.HasPrefix(expr[i+1:], "^]") { // ECMA-262's any character
				i++
			}
		case !f(i, b):
			return
		}
	}
}

// closing returns the index of the parenthesis that closes the one at the start, or a negative number.
func closing(expr string) int {
	depth, end := 0, -1
	scan(expr, func(i int, b byte) bool {
		switch b {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				end = i
			}
		}
		return end < 0
	})
	return end
}

func topAlternative(expr string) (found bool) {
	depth := 0
	scan(expr, func(_ int, b byte) bool {
		switch b {
		case '(':
			depth++
		case ')':
			depth--
		case '|':
			found = found || depth == 0
		}
		return true
	})
	return found
}

// parseECMA parses a pattern after what ECMA-262 writes in other ways than Go.
func parseECMA(expr string) (*syntax.Regexp, error) {
	if len(expr) > maxPattern {
		return nil, fmt.Errorf("has %d bytes: at most %d are allowed", len(expr), maxPattern)
	}
	if err := unsupported(expr); err != nil {
		return nil, err
	}
	return parsePattern(translate(expr))
}

// unsupported names what no automaton does.
func unsupported(expr string) (err error) {
	scan(expr, func(i int, b byte) bool {
		if b != '(' {
			return true
		}
		switch rest := expr[i:]; {
		case strings.HasPrefix(rest, "(?<=") || strings.HasPrefix(rest, "(?<!"):
			err = errors.New("has look-behind (?<= or (?<!, which is not supported")
		case strings.HasPrefix(rest, "(?=") || strings.HasPrefix(rest, "(?!"):
			err = errors.New("has look-ahead (?= or (?! within the pattern, which is supported at its start, after ^, only")
		}
		return err == nil
	})
	for i := 0; i+1 < len(expr) && err == nil; i++ {
		if expr[i] != '\\' {
			continue
		}
		i++
		switch b := expr[i]; {
		case '1' <= b && b <= '9', b == 'k':
			err = errors.New(`has a back reference such as \1, which is not supported`)
		}
	}
	return err
}

// translate rewrites the escapes that Go does not know.
func translate(expr string) string {
	var out strings.Builder
	class := false
	for i := 0; i < len(expr); {
		b := expr[i]
		switch {
		case b == '\\' && i+1 < len(expr):
			n := escape(&out, expr[i:])
			i += n
			continue
		case class && b == '[':
			out.WriteString(`\[`)
			i++
			continue
		case class:
			class = b != ']'
		case strings.HasPrefix(expr[i:], "[^]"):
			out.WriteString(`(?s:.)`)
			i += 3
			continue
		case strings.HasPrefix(expr[i:], "[]") && !strings.Contains(expr[i+2:], "]"):
			out.WriteString(`[^\x00-\x{10FFFF}]`)
			i += 2
			continue
		case b == '[' && !strings.HasPrefix(expr[i:], "[[:"):
			class = true
			if strings.HasPrefix(expr[i:], "[^") {
				out.WriteString("[^")
				i += 2
				continue
			}
		}
		out.WriteByte(b)
		i++
	}
	return out.String()
}

// escape writes the escape at the start of expr in Go's way and returns its length.
func escape(out *strings.Builder, expr string) int {
	unit := func(at int) (rune, bool) {
		if len(expr) < at+6 || expr[at] != '\\' || expr[at+1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(expr[at+2:at+6], 16, 16)
		return rune(n), err == nil
	}
	switch b := expr[1]; {
	case b == 'u' && strings.HasPrefix(expr, `\u{`):
		if end := strings.IndexByte(expr, '}'); end > 0 {
			out.WriteString(`\x` + expr[2:end+1])
			return end + 1
		}
	case b == 'u':
		r, ok := unit(0)
		if !ok {
			break
		}
		if low, ok := unit(6); ok && utf16.IsSurrogate(r) {
			fmt.Fprintf(out, `\x{%x}`, utf16.DecodeRune(r, low))
			return 12
		}
		fmt.Fprintf(out, `\x{%x}`, r)
		return 6
	case b == 'c' && len(expr) > 2:
		fmt.Fprintf(out, `\x%02x`, expr[2]&31)
		return 3
	case (b == 'p' || b == 'P') && strings.HasPrefix(expr[2:], "{"):
		end := strings.IndexByte(expr, '}')
		if end < 0 {
			break
		}
		name := expr[3:end]
		if _, value, ok := strings.Cut(name, "="); ok {
			name = value
		}
		if short, ok := categories[name]; ok {
			name = short
		}
		out.WriteString(`\` + string(b) + `{` + name + `}`)
		return end + 1
	case b == 'd' || b == 'D' || b == 'w' || b == 'W' || b == 's' || b == 'S':
		if b == 's' { // ECMA-262's white space that every reader has
			out.WriteString(`\s`)
			return 2
		}
	}
	out.WriteString(expr[:2])
	return 2
}

// categories are the long names of general categories.
var categories = map[string]string{
	"Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Titlecase_Letter": "Lt", "Modifier_Letter": "Lm",
	"Other_Letter": "Lo",
	"Mark":         "M", "Number": "N", "Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z",
	"Space_Separator": "Zs", "Other": "C",
}
