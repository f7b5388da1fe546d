package chat

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Bounds on a template before it is parsed. The longest known one has 30 kB and about 5000 tokens.
const (
	maxSource = 256 << 10
	maxTokens = 60_000
)

// token is a lexical token of a template. Kinds: 'd' text outside tags, 'v' "{{", 'V' "}}", 'b' "{%", 'B' "%}",
// 's' string, 'i' integer, 'f' float, 'n' name, 'o' operator, 0 the end.
type token struct {
	kind byte
	text string
	line int
}

// syntaxError is Jinja2's TemplateSyntaxError.
func syntaxError(line int, format string, args ...any) error {
	const most = 300
	reason := fmt.Sprintf(format, args...)
	if len(reason) > most {
		reason = strings.ToValidUTF8(reason[:most], "") + "…"
	}
	return fmt.Errorf("line %d: TemplateSyntaxError: %s", line, reason)
}

var (
	rawTag     = regexp.MustCompile(`^\{%([-+]?)\s*raw\s*(?:-%\}\s*|%\})`)
	endRawTag  = regexp.MustCompile(`\{%([-+]?)\s*endraw\s*(?:\+%\}|-%\}\s*|%\}\n?)`)
	endComment = regexp.MustCompile(`\+#\}|-#\}\s*|#\}\n?`)
	endBlock   = regexp.MustCompile(`^(?:\+%\}|-%\}\s*|%\}\n?)`)
	endPrint   = regexp.MustCompile(`^(?:-\}\}\s*|\}\})`)

	tokenFloat = regexp.MustCompile(`^(?:[0-9]+_)*[0-9]+` +
		`(?:(?:\.(?:[0-9]+_)*[0-9]+)?[eE][-+]?(?:[0-9]+_)*[0-9]+|\.(?:[0-9]+_)*[0-9]+)`)
	tokenInt = regexp.MustCompile(
		`^(?:0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0[xX](?:_?[0-9a-fA-F])+|[1-9](?:_?[0-9])*|0(?:_?0)*)`)
	tokenName = regexp.MustCompile(`^[\pL_][\pL\pN\p{Mn}_]*`)
	tokenOp   = regexp.MustCompile(`^(?:\*\*|//|==|!=|<=|>=|[-+/*%~\[\](){}<>=.:|,;])`)
)

// lexer cuts a template into tokens as Jinja2 does with trim_blocks and lstrip_blocks.
type lexer struct {
	rest      string
	line      int
	lineStart bool // the last tag took the line end behind it
	toks      []token
}

// lex returns the tokens of a template.
func lex(source string) ([]token, error) {
	source = strings.ReplaceAll(source, "\r\n", "\n")
	source = strings.TrimSuffix(strings.ReplaceAll(source, "\r", "\n"), "\n")
	l := &lexer{rest: source, line: 1, lineStart: true}
	for l.rest != "" {
		if err := l.next(); err != nil {
			return nil, err
		}
	}
	return append(l.toks, token{0, "", l.line}), nil
}

// take removes n bytes from the rest and returns them.
func (l *lexer) take(n int) string {
	s := l.rest[:n]
	l.rest = l.rest[n:]
	l.line += strings.Count(s, "\n")
	return s
}

func (l *lexer) add(kind byte, text string, line int) error {
	if len(l.toks) >= maxTokens {
		return syntaxError(line, "more than %d tokens", maxTokens)
	}
	l.toks = append(l.toks, token{kind, text, line})
	return nil
}

// data adds the text before a tag that begins with sign.
func (l *lexer) data(text, sign string, print bool, line int) error {
	switch {
	case sign == "-":
		text = strings.TrimRightFunc(text, isSpace)
	case sign != "+" && !print:
		at := strings.LastIndexByte(text, '\n') + 1
		if (at > 0 || l.lineStart) && strings.TrimFunc(text[at:], isSpace) == "" {
			text = text[:at]
		}
	}
	if text == "" {
		return nil
	}
	return l.add('d', text, line)
}

// next reads the text up to the next tag, and the tag.
func (l *lexer) next() error {
	line, start := l.line, nextTag(l.rest)
	text := l.take(start)
	if l.rest == "" {
		return l.add('d', text, line)
	}
	sign := ""
	if len(l.rest) > 2 && (l.rest[2] == '-' || l.rest[2] == '+') {
		sign = l.rest[2:3]
	}
	open := l.rest[:2]
	if open == "{{" && sign == "+" {
		sign = ""
	}
	if err := l.data(text, sign, open == "{{", line); err != nil {
		return err
	}
	line = l.line
	if open == "{#" {
		at := endComment.FindStringIndex(l.rest[2:])
		if at == nil {
			return syntaxError(line, "a comment is not closed")
		}
		l.lineStart = strings.HasSuffix(l.take(at[1]+2), "\n")
		return nil
	}
	if m := rawTag.FindString(l.rest); m != "" {
		return l.raw(m)
	}
	l.take(2 + len(sign))
	kind, end := byte('b'), endBlock
	if open == "{{" {
		kind, end = 'v', endPrint
	}
	if err := l.add(kind, open, line); err != nil {
		return err
	}
	return l.tag(kind, end)
}

func (l *lexer) raw(tag string) error {
	line := l.line
	l.lineStart = strings.HasSuffix(l.take(len(tag)), "\n")
	at := endRawTag.FindStringSubmatchIndex(l.rest)
	if at == nil {
		return syntaxError(line, "a raw block is not closed")
	}
	if err := l.data(l.rest[:at[0]], l.rest[at[2]:at[3]], false, line); err != nil {
		return err
	}
	l.lineStart = strings.HasSuffix(l.take(at[1]), "\n")
	return nil
}

// tag reads the tokens of a tag, up to its end.
func (l *lexer) tag(kind byte, end *regexp.Regexp) error {
	start := l.line
	var open []byte // brackets
	for l.rest != "" {
		if len(open) == 0 {
			if m := end.FindString(l.rest); m != "" {
				l.lineStart = strings.HasSuffix(m, "\n")
				line := l.line
				l.take(len(m))
				return l.add(kind-'a'+'A', m, line)
			}
		}
		n := len(l.rest) - len(strings.TrimLeftFunc(l.rest, isSpace))
		if n > 0 {
			l.take(n)
			continue
		}
		k, text, err := l.token()
		if err != nil {
			return err
		}
		if k == 'o' && strings.Contains("([{", text) {
			open = append(open, map[byte]byte{'(': ')', '[': ']', '{': '}'}[text[0]])
		} else if k == 'o' && strings.Contains(")]}", text) {
			if len(open) == 0 || open[len(open)-1] != text[0] {
				return syntaxError(l.line, "unexpected %q", text)
			}
			open = open[:len(open)-1]
		}
		if err := l.add(k, text, l.line); err != nil {
			return err
		}
	}
	if len(open) > 0 {
		return syntaxError(start, "%q is missing", open[len(open)-1:])
	}
	return syntaxError(start, "a tag is not closed")
}

// token reads one token inside a tag.
func (l *lexer) token() (kind byte, text string, err error) {
	c := l.rest[0]
	afterDot := len(l.toks) > 0 && l.toks[len(l.toks)-1].text == "."
	switch {
	case c >= '0' && c <= '9':
		if m := tokenFloat.FindString(l.rest); m != "" && !afterDot {
			return 'f', l.take(len(m)), nil
		}
		m := tokenInt.FindString(l.rest)
		return 'i', l.take(len(m)), nil
	case c == '\'' || c == '"':
		for i := 1; i < len(l.rest); i++ {
			if l.rest[i] == '\\' {
				i++
			} else if l.rest[i] == c {
				s, err := unescape(l.take(i + 1)[1:i], l.line)
				return 's', s, err
			}
		}
		return 0, "", syntaxError(l.line, "a string is not closed")
	}
	if m := tokenName.FindString(l.rest); m != "" {
		return 'n', l.take(len(m)), nil
	}
	if m := tokenOp.FindString(l.rest); m != "" {
		return 'o', l.take(len(m)), nil
	}
	r, _ := utf8.DecodeRuneInString(l.rest)
	return 0, "", syntaxError(l.line, "unexpected char %q", r)
}

// nextTag returns where the next "{{", "{%" or "{#" of source is, or its end.
func nextTag(source string) int {
	for i := 0; i+1 < len(source); i++ {
		if source[i] == '{' && strings.IndexByte("{%#", source[i+1]) >= 0 {
			return i
		}
	}
	return len(source)
}

// unescape reads the escapes of a string literal as Python's unicode-escape codec does.
func unescape(s string, line int) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if j := strings.IndexByte(`abfnrtv\'"`, s[i]); j >= 0 {
			b.WriteByte("\a\b\f\n\r\t\v\\'\""[j])
			continue
		}
		digits, base := 0, rune(16)
		switch c := s[i]; {
		case c == '\n':
			continue
		case c >= '0' && c <= '7':
			for digits < 3 && i+digits < len(s) && s[i+digits] >= '0' && s[i+digits] <= '7' {
				digits++
			}
			base, i = 8, i-1
		case c == 'x':
			digits = 2
		case c == 'u':
			digits = 4
		case c == 'U':
			digits = 8
		case c == 'N':
			return "", syntaxError(line, `the escape \N{…} is not supported`)
		default:
			b.WriteByte('\\')
			b.WriteByte(c)
			continue
		}
		if i+digits >= len(s) {
			return "", syntaxError(line, "a string's escape is cut short")
		}
		r := rune(0)
		for _, c := range s[i+1 : i+1+digits] {
			d := strings.IndexRune("0123456789abcdef", c|0x20)
			if d < 0 || r > utf8.MaxRune {
				return "", syntaxError(line, "a string's escape is malformed")
			}
			r = r*base + rune(d)
		}
		if r > utf8.MaxRune || 0xd800 <= r && r < 0xe000 || isGuard(r) {
			return "", syntaxError(line, "the escape of U+%04X in a string is not supported", r)
		}
		b.WriteRune(r)
		i += digits
	}
	return b.String(), nil
}
