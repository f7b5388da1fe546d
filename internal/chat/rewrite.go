package chat

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The functions that rewritten templates call; see rewrite.
const (
	fnMethod   = "__method"   // __method(x, 'strip', args…)  for x.strip(args…)
	fnItem     = "__item"     // __item(x, i)                 for x[i]
	fnSlice    = "__slice"    // __slice(x, i, j, step)       for x[i:j:step]
	fnContains = "__contains" // __contains('a', x)           for 'a' in x
)

// rewrite turns source, a template as Jinja2 and transformers read it, into one that
// means the same to MiniJinja: calls of Python's methods, subscripts and searches in
// strings become calls of the functions above, which know Python's semantics and the
// guards; {% generation %} blocks become plain ones; line ends become "\n". It calls
// check for the name of each filter ("|"), test ("is") and method (".").
func rewrite(source string, check func(kind, name string) error) (string, error) {
	source = strings.ReplaceAll(source, "\r\n", "\n")
	source = strings.ReplaceAll(source, "\r", "\n")
	var out strings.Builder
	for {
		start := nextTag(source)
		out.WriteString(source[:start])
		source = source[start:]
		if source == "" {
			return out.String(), nil
		}
		open, closing := "{{", "}}"
		switch {
		case strings.HasPrefix(source, "{#"):
			end := strings.Index(source, "#}")
			if end < 0 {
				return "", fmt.Errorf("a comment is not closed: %.40q", source)
			}
			out.WriteString(source[:end+2])
			source = source[end+2:]
			continue
		case rawTag.MatchString(source):
			end := endRawTag.FindStringIndex(source)
			if end == nil {
				return "", fmt.Errorf("a raw block is not closed: %.40q", source)
			}
			out.WriteString(source[:end[1]])
			source = source[end[1]:]
			continue
		case strings.HasPrefix(source, "{%"):
			open, closing = "{%", "%}"
		}
		body, rest, err := tokens(source[len(open):], closing)
		if err != nil {
			return "", err
		}
		source = rest
		r := rewriter{toks: body, check: check}
		out.WriteString(open)
		if open == "{%" {
			if err := r.statement(); err != nil {
				return "", err
			}
		}
		expr, err := r.expressions("")
		if err != nil {
			return "", err
		}
		out.WriteString(r.out + expr + closing)
	}
}

var (
	rawTag    = regexp.MustCompile(`^\{%[-+]?\s*raw\s*[-+]?%\}`)
	endRawTag = regexp.MustCompile(`\{%[-+]?\s*endraw\s*[-+]?%\}`)
)

// nextTag returns where the next "{{", "{%" or "{#" of source is, or its end.
func nextTag(source string) int {
	for i := 0; i+1 < len(source); i++ {
		if source[i] == '{' && strings.IndexByte("{%#", source[i+1]) >= 0 {
			return i
		}
	}
	return len(source)
}

// token is a lexical token of a tag, or a run of white space.
type token struct {
	kind byte // 's' string, 'n' number, 'w' name, ' ' space, 'o' operator
	text string
}

var (
	tokenSpace  = regexp.MustCompile(`^\s+`)
	tokenName   = regexp.MustCompile(`^[\pL_][\pL\pN_]*`)
	tokenNumber = regexp.MustCompile(`^[0-9][0-9_]*(\.[0-9]+)?([eE][-+]?[0-9]+)?`)
	tokenPair   = regexp.MustCompile(`^(==|!=|<=|>=|//|\*\*)`)
	tokenString = regexp.MustCompile(`^(?s:'([^'\\]|\\.)*'|"([^"\\]|\\.)*")`)
)

// tokens reads the tokens of a tag up to closing, and returns what follows it. A "-"
// or "+" before closing is a token like any other.
func tokens(source, closing string) (toks []token, rest string, err error) {
	start := source
	depth := 0 // of braces: "}}" may also end two dicts
	for source != "" {
		if depth == 0 && strings.HasPrefix(source, closing) {
			return toks, source[len(closing):], nil
		}
		t := token{'o', source[:1]}
		if m := tokenSpace.FindString(source); m != "" {
			t = token{' ', m}
		} else if m := tokenName.FindString(source); m != "" {
			t = token{'w', m}
		} else if m := tokenNumber.FindString(source); m != "" {
			t = token{'n', m}
		} else if m := tokenString.FindString(source); m != "" {
			t = token{'s', m}
		} else if m := tokenPair.FindString(source); m != "" {
			t.text = m
		} else if source[0] == '{' {
			depth++
		} else if source[0] == '}' {
			depth--
		}
		toks = append(toks, t)
		source = source[len(t.text):]
	}
	return nil, "", fmt.Errorf("a tag is not closed with %q: %.40q", closing, start)
}

// rewriter rewrites the tokens of one tag.
type rewriter struct {
	toks  []token
	pos   int
	depth int
	check func(kind, name string) error
	out   string // what statement wrote
}

// statement rewrites the name of a block.
func (r *rewriter) statement() error {
	for r.pos < len(r.toks) && r.toks[r.pos].kind != 'w' {
		r.out += r.toks[r.pos].text
		r.pos++
	}
	if r.pos == len(r.toks) {
		return nil
	}
	name := r.toks[r.pos].text
	r.pos++
	switch name {
	case "include", "import", "from", "extends":
		return fmt.Errorf("{%% %s %%} is not supported: a chat template stands alone", name)
	case "generation":
		// transformers marks the assistant's tokens with it, for training.
		name = "if true"
	case "endgeneration":
		name = "endif"
	}
	r.out += name
	return nil
}

// keywords are the names that are no variables.
var keywords = []string{"if", "elif", "else", "for", "in", "not", "and", "or", "is", "recursive", "as"}

// peek returns the index of the next token that is not space, and the token.
func (r *rewriter) peek(from int) (int, token) {
	for from < len(r.toks) && r.toks[from].kind == ' ' {
		from++
	}
	if from == len(r.toks) {
		return from, token{}
	}
	return from, r.toks[from]
}

const maxDepth = 100

// expressions rewrites tokens up to the closing bracket, which it consumes, or to the
// end if that is "".
func (r *rewriter) expressions(closing string) (string, error) {
	if r.depth++; r.depth > maxDepth {
		return "", fmt.Errorf("brackets nest deeper than %d", maxDepth)
	}
	defer func() { r.depth-- }()
	var out strings.Builder
	last := token{'o', "("} // the last token that is not space
	for r.pos < len(r.toks) {
		t := r.toks[r.pos]
		switch {
		case t.kind == 'o' && t.text == closing:
			r.pos++
			return out.String(), nil
		case t.kind == ' ':
			out.WriteString(t.text)
			r.pos++
			continue
		case t.kind == 'w' && last.text == "|":
			if err := r.check("filter", t.text); err != nil {
				return "", err
			}
			out.WriteString(t.text)
			r.pos++
		case t.kind == 'w' && last.text == "is" && t.text != "not":
			if err := r.check("test", t.text); err != nil {
				return "", err
			}
			out.WriteString(t.text)
			r.pos++
		case last.text == "is" && t.text == "not":
			out.WriteString(t.text)
			r.pos++
			continue // "is not defined": a test is still to come
		case t.kind == 'w' && slices.Contains(keywords, t.text), t.kind == 'o' && !strings.Contains("([{", t.text):
			out.WriteString(t.text)
			r.pos++
		default:
			expr, err := r.contains(last)
			if err == nil && expr == "" {
				expr, err = r.operand()
			}
			if err != nil {
				return "", err
			}
			out.WriteString(expr)
		}
		last = t
	}
	if closing != "" {
		return "", fmt.Errorf("%q is missing", closing)
	}
	return out.String(), nil
}

// contains rewrites 'literal' in x and 'literal' not in x where both sides are whole
// operands of the operator; it returns "" for anything else.
func (r *rewriter) contains(last token) (string, error) {
	literal := r.toks[r.pos]
	if literal.kind != 's' || !delimits(last) {
		return "", nil
	}
	not := ""
	i, t := r.peek(r.pos + 1)
	if t.text == "not" {
		not = "not "
		i, t = r.peek(i + 1)
	}
	if t.kind == 'w' && t.text == "in" {
		i, t = r.peek(i + 1)
		if t.kind == 'w' || t.kind == 's' {
			r.pos = i
			in, err := r.operand()
			if err != nil {
				return "", err
			}
			if _, after := r.peek(r.pos); !delimits(after) {
				return fmt.Sprintf("%s %sin %s", literal.text, not, in), nil
			}
			return fmt.Sprintf("%s%s(%s, %s)", not, fnContains, literal.text, in), nil
		}
	}
	return "", nil
}

// delimits reports whether t cannot be part of an operand of "in" that binds tighter.
func delimits(t token) bool {
	switch t.kind {
	case 0: // the end
		return true
	case 'w':
		return slices.Contains([]string{"and", "or", "not", "if", "elif", "else"}, t.text)
	case 'o':
		return strings.Contains("()[]{},:=-", t.text) // "-" is the end of "{{-" or "-}}"
	}
	return false
}

// operand rewrites a primary expression with its attributes, calls and subscripts.
func (r *rewriter) operand() (string, error) {
	t := r.toks[r.pos]
	r.pos++
	base := t.text
	if t.kind == 'o' { // a bracket
		closing := map[string]string{"(": ")", "[": "]", "{": "}"}[t.text]
		inner, err := r.expressions(closing)
		if err != nil {
			return "", err
		}
		base += inner + closing
	}
	if t.kind == 's' { // 'a' 'b' is one string
		for i, next := r.peek(r.pos); next.kind == 's'; i, next = r.peek(r.pos) {
			base = "(" + base + "~" + next.text + ")"
			r.pos = i + 1
		}
	}
	for {
		i, next := r.peek(r.pos)
		if next.kind != 'o' {
			return base, nil
		}
		switch next.text {
		case ".":
			i, name := r.peek(i + 1)
			if name.kind != 'w' && name.kind != 'n' {
				return "", fmt.Errorf("a name is missing after %q", base+".")
			}
			r.pos = i + 1
			if i, t := r.peek(r.pos); t.text == "(" && isMethod(name.text) {
				if err := r.check("method", name.text); err != nil {
					return "", err
				}
				r.pos = i + 1
				args, err := r.expressions(")")
				if err != nil {
					return "", err
				}
				if strings.TrimSpace(args) != "" {
					args = ", " + args
				}
				base = fmt.Sprintf("%s(%s, '%s'%s)", fnMethod, base, name.text, args)
				continue
			}
			base += "." + name.text
		case "(":
			r.pos = i + 1
			args, err := r.expressions(")")
			if err != nil {
				return "", err
			}
			base += "(" + args + ")"
		case "[":
			r.pos = i + 1
			var err error
			if base, err = r.subscript(base); err != nil {
				return "", err
			}
		default:
			return base, nil
		}
	}
}

// subscript rewrites base[…] from after the opening bracket.
func (r *rewriter) subscript(base string) (string, error) {
	bounds := []string{""}
	for {
		i, t := r.peek(r.pos)
		if t.kind == 0 {
			return "", fmt.Errorf("%q is missing", "]")
		}
		if t.text == "]" {
			r.pos = i + 1
			break
		}
		if t.text == ":" {
			r.pos = i + 1
			bounds = append(bounds, "")
			continue
		}
		part, err := r.bound()
		if err != nil {
			return "", err
		}
		bounds[len(bounds)-1] = part
	}
	if len(bounds) == 1 {
		return fmt.Sprintf("%s(%s, %s)", fnItem, base, bounds[0]), nil
	}
	for len(bounds) < 3 {
		bounds = append(bounds, "")
	}
	for i := range bounds {
		if bounds[i] == "" {
			bounds[i] = "none"
		}
	}
	return fmt.Sprintf("%s(%s, %s)", fnSlice, base, strings.Join(bounds, ", ")), nil
}

// bound rewrites one expression of a subscript: up to ":" or "]", which it leaves.
func (r *rewriter) bound() (string, error) {
	depth, end := 0, r.pos
	for ; end < len(r.toks); end++ {
		t := r.toks[end]
		if t.kind != 'o' {
			continue
		}
		if depth == 0 && (t.text == ":" || t.text == "]") {
			break
		}
		switch t.text {
		case "(", "[", "{":
			depth++
		case ")", "]", "}":
			depth--
		}
	}
	sub := rewriter{toks: r.toks[r.pos:end], depth: r.depth, check: r.check}
	r.pos = end
	return sub.expressions("")
}
