package chat

import (
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// maxNesting bounds the parser's recursion, and so the depth of the tree that is evaluated.
const maxNesting = 300

// node is an expression or a statement.
type node struct {
	op   string // what it is: "name", "+", "for", …
	text string // a name, or the text outside tags
	val  any    // of a literal
	kids []*node
	args []arg // of calls, filters and tests; the defaults of a macro
	body []*node
	rest []*node // of "else"
	line int
	flag bool // "for … recursive", "is not", a macro that reads varargs
	kw   bool // a macro that reads kwargs
}

// arg is an argument. Names are "" for positional ones, "*" and "**" for unpacked ones.
type arg struct {
	name string
	node *node
}

type parser struct {
	toks    []token
	pos     int
	depth   int
	loops   int
	blocks  map[string]bool
	special map[string]bool // which of varargs, kwargs and caller were read
}

// parseTemplate returns the statements of a template.
func parseTemplate(source string) (body []*node, err error) {
	toks, err := lex(source)
	if err != nil {
		return nil, err
	}
	p := &parser{toks: toks, blocks: map[string]bool{}, special: map[string]bool{}}
	defer func() {
		if e := recover(); e != nil {
			failed, ok := e.(parseFailure)
			if !ok {
				panic(e)
			}
			err = failed.err
		}
	}()
	body = p.statements()
	if p.peek().kind != 0 {
		p.fail("unknown or misplaced tag %q", p.toks[min(p.pos+1, len(p.toks)-1)].text)
	}
	return body, nil
}

type parseFailure struct{ err error }

func (p *parser) fail(format string, args ...any) {
	panic(parseFailure{syntaxError(p.peek().line, format, args...)})
}

func (p *parser) peek() token { return p.toks[p.pos] }

func (p *parser) is(kind byte, text string) bool {
	return p.peek().kind == kind && p.peek().text == text
}

func (p *parser) accept(kind byte, text string) bool {
	if p.is(kind, text) {
		p.pos++
		return true
	}
	return false
}

func (p *parser) expect(kind byte, text string) {
	if !p.accept(kind, text) {
		p.fail("expected %q, got %q", text, p.peek().text)
	}
}

func (p *parser) name() string {
	t := p.peek()
	if t.kind != 'n' {
		p.fail("expected a name, got %q", t.text)
	}
	p.pos++
	return t.text
}

// deeper counts a level of the tree. The function that it returns takes all levels back.
func (p *parser) deeper() func() {
	was := p.depth
	p.level()
	return func() { p.depth = was }
}

func (p *parser) level() {
	if p.depth++; p.depth > maxNesting {
		p.fail("expressions or blocks nest deeper than %d", maxNesting)
	}
}

func (p *parser) node(op string, kids ...*node) *node {
	return &node{op: op, kids: kids, line: p.peek().line}
}

// statements parses up to a tag with one of the names in ends, whose name it leaves.
func (p *parser) statements(ends ...string) []*node {
	defer p.deeper()()
	var out []*node
	for {
		t := p.peek()
		switch t.kind {
		case 'd':
			out = append(out, &node{op: "text", text: t.text, line: t.line})
			p.pos++
		case 'v':
			p.pos++
			n := p.node("print", p.tuple(true))
			n.line = t.line
			if p.peek().kind != 'V' {
				p.fail("expected the end of a print statement, got %q", p.peek().text)
			}
			p.pos++
			out = append(out, n)
		case 'b':
			if next := p.toks[p.pos+1]; next.kind == 'n' && slices.Contains(ends, next.text) {
				p.pos++
				return out
			}
			p.pos++
			if p.peek().kind != 'n' {
				p.fail("tag name expected")
			}
			n := p.statement()
			n.line = t.line
			out = append(out, n)
			p.blockEnd()
		default:
			if len(ends) > 0 {
				p.fail("unexpected end of template: %s is missing", strings.Join(ends, " or "))
			}
			return out
		}
	}
}

func (p *parser) blockEnd() {
	if p.peek().kind != 'B' {
		p.fail("expected the end of a block tag, got %q", p.peek().text)
	}
	p.pos++
}

// bodyTo parses the body of a block up to the tag end, whose name it consumes.
func (p *parser) bodyTo(end string) []*node {
	p.blockEnd()
	body := p.statements(end)
	p.expect('n', end)
	return body
}

func (p *parser) statement() *node {
	name := p.name()
	n := p.node(name)
	switch name {
	case "for":
		return p.forLoop(n)
	case "if":
		return p.ifBlock(n)
	case "set":
		return p.set(n)
	case "macro", "call":
		return p.macro(n)
	case "filter":
		n.kids = []*node{p.filters(nil, true)}
		n.body = p.bodyTo("endfilter")
	case "generation": // transformers marks the assistant's tokens with it, for training
		n.op = "with"
		n.body = p.bodyTo("endgeneration")
	case "with":
		for p.peek().kind != 'B' {
			if len(n.args) > 0 {
				p.expect('o', ",")
			}
			target := p.name()
			p.expect('o', "=")
			n.args = append(n.args, arg{target, p.expression(true)})
		}
		n.body = p.bodyTo("endwith")
	case "autoescape":
		n.kids = []*node{p.expression(true)}
		n.body = p.bodyTo("endautoescape")
	case "block":
		block := p.name()
		if p.loops > 0 || p.blocks[block] {
			p.fail("{%% block %%} in a loop or macro, or twice with a name, is not supported")
		}
		p.blocks[block] = true
		n.op = "with"
		n.body = p.bodyTo("endblock")
		if p.peek().kind == 'n' {
			p.expect('n', block)
		}
	case "break", "continue":
		if p.loops == 0 {
			p.fail("%s outside of a loop", name)
		}
	case "include", "import", "from", "extends":
		p.fail("{%% %s %%} is not supported: a chat template stands alone", name)
	default:
		p.fail("encountered unknown tag %q", name)
	}
	return n
}

func (p *parser) forLoop(n *node) *node {
	n.kids = []*node{p.target(), nil, nil}
	p.expect('n', "in")
	n.kids[1] = p.tuple(false)
	if p.accept('n', "if") {
		n.kids[2] = p.expression(true)
	}
	n.flag = p.accept('n', "recursive")
	p.blockEnd()
	p.loops++
	n.body = p.statements("endfor", "else")
	p.loops--
	if p.accept('n', "else") {
		n.rest = p.bodyTo("endfor")
	} else {
		p.expect('n', "endfor")
	}
	return n
}

func (p *parser) ifBlock(n *node) *node {
	n.kids = []*node{p.tuple(false)}
	n.args = nil
	branch := p.node("branch", n.kids[0])
	for {
		p.blockEnd()
		branch.body = p.statements("elif", "else", "endif")
		n.body = append(n.body, branch)
		switch p.name() {
		case "elif":
			branch = p.node("branch", p.tuple(false))
		case "else":
			n.rest = p.bodyTo("endif")
			return n
		default:
			return n
		}
	}
}

func (p *parser) set(n *node) *node {
	target := p.target()
	n.kids = []*node{target}
	if p.accept('o', "=") {
		n.kids = append(n.kids, p.tuple(true))
		return n
	}
	n.op = "capture"
	if p.is('o', "|") {
		n.kids = append(n.kids, p.filters(nil, false))
	}
	n.body = p.bodyTo("endset")
	return n
}

// target parses what is assigned to: a name, ns.name, or several of them.
func (p *parser) target() *node {
	defer p.deeper()()
	one := func() *node {
		if p.accept('o', "(") {
			t := p.target()
			p.expect('o', ")")
			return t
		}
		n := p.node("name")
		n.text = p.name()
		if slices.Contains([]string{"true", "false", "none", "True", "False", "None"}, n.text) {
			p.fail("cannot assign to %q", n.text)
		}
		if p.accept('o', ".") {
			n = p.node("nsref", n)
			n.text = p.name()
		}
		return n
	}
	first := one()
	if !p.is('o', ",") {
		return first
	}
	n := p.node("tuple", first)
	for p.accept('o', ",") {
		if p.is('n', "in") || p.is('o', "=") || p.is('o', ")") {
			break
		}
		n.kids = append(n.kids, one())
	}
	return n
}

// macro parses {% macro f(a, b=1) %} and {% call(a) f() %}.
func (p *parser) macro(n *node) *node {
	if n.op == "macro" {
		n.text = p.name()
		if !p.is('o', "(") {
			p.fail("expected %q", "(")
		}
	}
	if p.accept('o', "(") {
		for !p.accept('o', ")") {
			if len(n.args) > 0 {
				p.expect('o', ",")
			}
			a := arg{name: p.name()}
			if p.accept('o', "=") {
				a.node = p.expression(true)
			} else if len(n.args) > 0 && n.args[len(n.args)-1].node != nil {
				p.fail("non-default argument follows default argument")
			}
			n.args = append(n.args, a)
		}
	}
	if n.op == "call" {
		call := p.expression(true)
		if call.op != "call" {
			p.fail("expected a call")
		}
		n.kids = []*node{call}
	}
	outer, loops := p.special, p.loops
	p.special, p.loops = map[string]bool{}, 0
	p.blocks[""] = true
	n.body = p.bodyTo("end" + n.op)
	n.flag, n.kw = p.special["varargs"], p.special["kwargs"]
	p.special, p.loops = outer, loops
	return n
}

// tuple parses an expression, or several with commas between them.
func (p *parser) tuple(condition bool) *node {
	defer p.deeper()()
	first := p.expression(condition)
	if !p.is('o', ",") {
		return first
	}
	n := p.node("tuple", first)
	for p.accept('o', ",") {
		t := p.peek()
		if t.kind == 'V' || t.kind == 'B' || t.kind == 'o' && t.text == ")" || t.kind == 'n' && t.text == "recursive" {
			break
		}
		n.kids = append(n.kids, p.expression(condition))
	}
	return n
}

func (p *parser) expression(condition bool) *node {
	defer p.deeper()()
	if !condition {
		return p.binary(0)
	}
	n := p.binary(0)
	for p.accept('n', "if") {
		p.level()
		test := p.binary(0)
		var other *node
		if p.accept('n', "else") {
			other = p.expression(true)
		}
		n = p.node("cond", test, n, other)
	}
	return n
}

// levels are the binary operators, those that bind weakest first.
var levels = [][]string{{"or"}, {"and"}, nil, {"==", "!=", "<", "<=", ">", ">=", "in", "not in"},
	{"+", "-"}, {"~"}, {"*", "/", "//", "%"}, {"**"}}

func (p *parser) operator(level int) string {
	t := p.peek()
	if t.kind != 'o' && t.kind != 'n' {
		return ""
	}
	if t.text == "not" && level == 3 && p.toks[p.pos+1].kind == 'n' && p.toks[p.pos+1].text == "in" {
		p.pos += 2
		return "not in"
	}
	if slices.Contains(levels[level], t.text) && (t.kind == 'n') == (t.text[0] >= 'a' && t.text[0] <= 'z') {
		p.pos++
		return t.text
	}
	return ""
}

func (p *parser) binary(level int) *node {
	if level == len(levels) {
		return p.unary(true)
	}
	if level == 2 {
		if p.accept('n', "not") {
			defer p.deeper()()
			return p.node("not", p.binary(2))
		}
		level++
	}
	was := p.depth
	defer func() { p.depth = was }()
	left := p.binary(level + 1)
	if level == 3 {
		var compare *node
		for op := p.operator(level); op != ""; op = p.operator(level) {
			if compare == nil {
				compare = p.node("compare", left)
			}
			p.level()
			compare.args = append(compare.args, arg{op, p.binary(level + 1)})
		}
		if compare != nil {
			return compare
		}
		return left
	}
	for op := p.operator(level); op != ""; op = p.operator(level) {
		p.level()
		left = p.node(op, left, p.binary(level+1))
	}
	return left
}

func (p *parser) unary(filters bool) *node {
	defer p.deeper()()
	var n *node
	switch {
	case p.accept('o', "-"):
		n = p.node("neg", p.unary(false))
	case p.accept('o', "+"):
		n = p.node("pos", p.unary(false))
	default:
		n = p.primary()
	}
	n = p.postfix(n)
	if filters {
		n = p.filterExpression(n)
	}
	return n
}

func (p *parser) literal(v any) *node {
	n := p.node("literal")
	n.val = v
	return n
}

func (p *parser) primary() *node {
	t := p.peek()
	p.pos++
	switch t.kind {
	case 'n':
		switch t.text {
		case "true", "True":
			return p.literal(true)
		case "false", "False":
			return p.literal(false)
		case "none", "None":
			return p.literal(nil)
		}
		if t.text == "self" || t.text == "super" {
			p.fail("%q is not supported", t.text)
		}
		if t.text == "varargs" || t.text == "kwargs" || t.text == "caller" {
			p.special[t.text] = true
		}
		n := p.node("name")
		n.text = t.text
		return n
	case 's':
		parts := []string{t.text}
		for p.peek().kind == 's' {
			parts = append(parts, p.peek().text)
			p.pos++
		}
		return p.literal(strings.Join(parts, ""))
	case 'i', 'f':
		return p.number(t)
	case 'o':
		switch t.text {
		case "(":
			if p.accept('o', ")") {
				return p.node("tuple")
			}
			n := p.tuple(true)
			p.expect('o', ")")
			return n
		case "[":
			return p.items("list", "]")
		case "{":
			return p.items("dict", "}")
		}
	}
	p.pos--
	p.fail("unexpected %q", t.text)
	return nil
}

func (p *parser) number(t token) *node {
	digits := strings.ReplaceAll(t.text, "_", "")
	if t.kind == 'f' {
		f, _ := strconv.ParseFloat(digits, 64)
		return p.literal(f)
	}
	if len(digits) > 1000 {
		p.fail("an integer has more than 1000 digits")
	}
	if strings.Trim(digits, "0") == "" {
		return p.literal(int64(0))
	}
	n, ok := new(big.Int).SetString(digits, 0)
	if !ok {
		p.fail("malformed integer %q", t.text)
	}
	return p.literal(normal(n))
}

func (p *parser) items(op, end string) *node {
	n := p.node(op)
	for !p.accept('o', end) {
		if len(n.kids) > 0 {
			p.expect('o', ",")
			if p.accept('o', end) {
				break
			}
		}
		n.kids = append(n.kids, p.expression(true))
		if op == "dict" {
			p.expect('o', ":")
			n.kids = append(n.kids, p.expression(true))
		}
	}
	return n
}

func (p *parser) postfix(n *node) *node {
	was := p.depth
	defer func() { p.depth = was }()
	for p.peek().kind == 'o' {
		switch p.peek().text {
		case ".":
			p.level()
			p.pos++
			t := p.peek()
			p.pos++
			switch t.kind {
			case 'n':
				n = p.node("attr", n)
				n.text = t.text
			case 'i':
				n = p.node("item", n, p.number(t))
			default:
				p.fail("expected a name or number after %q", ".")
			}
		case "[":
			p.level()
			p.pos++
			n = p.subscript(n)
		case "(":
			p.level()
			n = p.node("call", n)
			n.args = p.arguments()
		default:
			return n
		}
	}
	return n
}

func (p *parser) subscript(n *node) *node {
	one := func() *node {
		var bounds [3]*node
		i := 0
		for !p.is('o', "]") && !p.is('o', ",") {
			if p.accept('o', ":") {
				if i++; i > 2 {
					p.fail("a slice has at most three parts")
				}
				continue
			}
			bounds[i] = p.expression(true)
			if !p.is('o', ":") && !p.is('o', "]") && !p.is('o', ",") {
				p.fail("expected %q, got %q", "]", p.peek().text)
			}
		}
		if i == 0 {
			if bounds[0] == nil {
				p.fail("expected subscript expression")
			}
			return bounds[0]
		}
		return p.node("slice", bounds[:]...)
	}
	key := one()
	if p.is('o', ",") {
		p.fail("a subscript of several values is not supported")
	}
	p.expect('o', "]")
	return p.node("item", n, key)
}

func (p *parser) arguments() []arg {
	p.expect('o', "(")
	var out []arg
	for !p.accept('o', ")") {
		if len(out) > 0 {
			p.expect('o', ",")
			if p.accept('o', ")") {
				break
			}
		}
		a := arg{}
		switch {
		case p.accept('o', "*"):
			a.name = "*"
		case p.accept('o', "**"):
			a.name = "**"
		case p.peek().kind == 'n' && p.toks[p.pos+1].kind == 'o' && p.toks[p.pos+1].text == "=":
			a.name = p.name()
			p.pos++
		case len(out) > 0 && out[len(out)-1].name != "" && out[len(out)-1].name != "*":
			p.fail("a positional argument follows a named one")
		}
		a.node = p.expression(true)
		out = append(out, a)
	}
	return out
}

func (p *parser) filterExpression(n *node) *node {
	was := p.depth
	defer func() { p.depth = was }()
	for {
		switch {
		case p.is('o', "|"):
			n = p.filters(n, false)
		case p.accept('n', "is"):
			p.level()
			n = p.test(n)
		case p.is('o', "("):
			p.level()
			n = p.node("call", n)
			n.args = p.arguments()
		default:
			return n
		}
	}
}

// filters parses x|f|g; with bare, what follows {% filter: the first without "|".
func (p *parser) filters(n *node, bare bool) *node {
	was := p.depth
	defer func() { p.depth = was }()
	for bare || p.accept('o', "|") {
		bare = false
		p.level()
		f := p.node("filter", n)
		f.text = p.name()
		if filters[f.text] == nil {
			p.fail("filter %q is not supported", f.text)
		}
		if p.is('o', "(") {
			f.args = p.arguments()
		}
		n = f
	}
	return n
}

func (p *parser) test(n *node) *node {
	t := p.node("test", n)
	t.flag = p.accept('n', "not")
	t.text = p.name()
	if tests[t.text] == nil {
		p.fail("test %q is not supported", t.text)
	}
	next := p.peek()
	switch {
	case p.is('o', "("):
		t.args = p.arguments()
	case next.kind == 'n' && slices.Contains([]string{"else", "or", "and"}, next.text):
	case p.is('n', "is"):
		p.fail("you cannot chain multiple tests with is")
	case next.kind == 's' || next.kind == 'i' || next.kind == 'f' || next.kind == 'o' && strings.Contains("[{", next.text),
		next.kind == 'n' && !slices.Contains([]string{"if", "in", "not", "recursive"}, next.text):
		t.args = []arg{{"", p.postfix(p.primary())}}
	}
	return t
}
