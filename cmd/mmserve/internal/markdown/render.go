package markdown

import (
	"fmt"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	extast "github.com/yuin/goldmark/extension/ast"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"
)

// Styles are arguments of SGR. They name attributes and the 16 colours that users choose themselves.
const (
	bold      = "1"
	dim       = "2"
	italic    = "3"
	underline = "4"
	struck    = "9"
	codeStyle = "36"
	titleTop  = "1;4"
)

// maxDepth bounds how deep quotes and lists may lie in each other and still be indented.
const maxDepth = 8

var parser = goldmark.New(
	goldmark.WithExtensions(extension.Table, extension.Strikethrough, extension.TaskList)).Parser()

// render gives the lines of a document, none wider than width columns.
func render(source string, width int) []line {
	src := []byte(source)
	r := renderer{src: src}
	return r.blocks(parser.Parse(text.NewReader(src)), max(width, 1), 0)
}

type renderer struct{ src []byte }

// blocks renders the children of a node, with an empty line between those that are not tight.
func (r renderer) blocks(parent ast.Node, width, depth int) (out []line) {
	for n := parent.FirstChild(); n != nil; n = n.NextSibling() {
		lines := r.block(n, width, depth)
		if lines == nil {
			continue
		}
		if out != nil && !tight(parent, n) {
			out = append(out, nil)
		}
		out = append(out, lines...)
	}
	return out
}

// tight tells that no empty line goes before n.
func tight(parent, n ast.Node) bool {
	if l, ok := parent.(*ast.List); ok {
		return l.IsTight
	}
	if _, ok := parent.(*ast.ListItem); ok {
		if l, ok := parent.Parent().(*ast.List); ok && l.IsTight {
			return true
		}
	}
	return false
}

func (r renderer) block(n ast.Node, width, depth int) []line {
	switch n := n.(type) {
	case *ast.Heading:
		return r.heading(n, width)
	case *ast.Paragraph, *ast.TextBlock:
		return wrap(r.inlines(n, ""), width)
	case *ast.CodeBlock, *ast.FencedCodeBlock:
		return r.code(n, width)
	case *ast.HTMLBlock:
		return wrap([]span{{text: r.raw(n)}}, width)
	case *ast.Blockquote:
		return indent(r.blocks(n, inner(width, 2, depth), depth+1), "│ ", "│ ", depth, width)
	case *ast.List:
		return r.list(n, width, depth)
	case *ast.ThematicBreak:
		return []line{{{text: strings.Repeat("─", min(width, 40)), style: dim, frame: true}}}
	case *extast.Table:
		return r.table(n, width)
	case *ast.LinkReferenceDefinition:
		return nil
	}
	return r.blocks(n, width, depth)
}

// inner is the width inside of a mark of some columns.
func inner(width, columns, depth int) int {
	if depth >= maxDepth || width-columns < 4 {
		return width
	}
	return width - columns
}

// indent sets a mark before lines: first before the first, rest before the others.
func indent(lines []line, first, rest string, depth, width int) []line {
	if inner(width, Width(first), depth) == width {
		return lines
	}
	for i := range lines {
		mark := rest
		if i == 0 {
			mark = first
		}
		lines[i] = append(line{{text: mark, style: dim, frame: true}}, lines[i]...)
	}
	return lines
}

// heading keeps the number signs, so that its level is seen where there are no styles.
func (r renderer) heading(n *ast.Heading, width int) []line {
	style := bold
	if n.Level == 1 {
		style = titleTop
	}
	mark := span{text: strings.Repeat("#", n.Level) + " ", style: dim, frame: true}
	return wrap(append([]span{mark}, r.inlines(n, style)...), width)
}

func (r renderer) code(n ast.Node, width int) []line {
	body := strings.TrimRight(r.raw(n), "\n")
	var out []line
	for _, row := range strings.Split(body, "\n") {
		out = append(out, chop(span{text: strings.ReplaceAll(row, "\t", "    "), style: codeStyle}, inner(width, 2, 0))...)
	}
	return indent(out, "  ", "  ", 0, width)
}

// chop breaks a text that keeps its spaces.
func chop(s span, width int) (out []line) {
	var row strings.Builder
	col := 0
	for _, c := range clusters(s.text) {
		if n := Width(c); col+n > width && col > 0 {
			out = append(out, line{{row.String(), s.style, s.frame}})
			row.Reset()
			col = 0
		}
		row.WriteString(c)
		col += Width(c)
	}
	return append(out, line{{row.String(), s.style, s.frame}})
}

// raw is the source of a block as it is.
func (r renderer) raw(n ast.Node) string {
	var b strings.Builder
	for i := range n.Lines().Len() {
		at := n.Lines().At(i)
		b.Write(at.Value(r.src))
	}
	if h, ok := n.(*ast.HTMLBlock); ok && h.HasClosure() {
		b.Write(h.ClosureLine.Value(r.src))
	}
	return Clean(strings.TrimRight(b.String(), "\n"))
}

func (r renderer) list(l *ast.List, width, depth int) (out []line) {
	number := l.Start
	for item := l.FirstChild(); item != nil; item = item.NextSibling() {
		mark := "• "
		if l.IsOrdered() {
			mark = fmt.Sprintf("%d. ", number)
			number++
		}
		if out != nil && !l.IsTight {
			out = append(out, nil)
		}
		lines := r.blocks(item, inner(width, Width(mark), depth), depth+1)
		if lines == nil {
			lines = []line{nil}
		}
		out = append(out, indent(lines, mark, strings.Repeat(" ", Width(mark)), depth, width)...)
	}
	return out
}

// inlines gives the text of a block, each piece in its style on top of the given one.
func (r renderer) inlines(parent ast.Node, style string) (out []span) {
	put := func(text, style string) {
		if text = Clean(text); text != "" {
			out = append(out, span{text: text, style: style})
		}
	}
	for n := parent.FirstChild(); n != nil; n = n.NextSibling() {
		switch n := n.(type) {
		case *ast.Text:
			put(unescape(n.Value(r.src)), style)
			if n.HardLineBreak() || n.SoftLineBreak() { // models mean the ends of their lines
				put("\n", style)
			}
		case *ast.String:
			put(string(n.Value), style)
		case *ast.CodeSpan:
			put(r.plain(n), join(style, codeStyle))
		case *ast.Emphasis:
			out = append(out, r.inlines(n, join(style, map[bool]string{true: bold, false: italic}[n.Level > 1]))...)
		case *extast.Strikethrough:
			out = append(out, r.inlines(n, join(style, struck))...)
		case *extast.TaskCheckBox:
			put(map[bool]string{true: "☑ ", false: "☐ "}[n.IsChecked], style)
		case *ast.AutoLink:
			put(string(n.URL(r.src)), join(style, underline))
		case *ast.Link:
			out = append(out, r.inlines(n, join(style, underline))...)
			if to := string(n.Destination); to != r.plain(n) {
				put(" ("+to+")", join(style, dim))
			}
		case *ast.Image:
			put("["+r.plain(n)+"] ("+string(n.Destination)+")", join(style, dim))
		case *ast.RawHTML:
			for i := range n.Segments.Len() {
				at := n.Segments.At(i)
				put(string(at.Value(r.src)), style)
			}
		default:
			out = append(out, r.inlines(n, style)...)
		}
	}
	return out
}

// plain is the text within a node.
func (r renderer) plain(parent ast.Node) string {
	var b strings.Builder
	for n := parent.FirstChild(); n != nil; n = n.NextSibling() {
		if t, ok := n.(*ast.Text); ok {
			b.Write(t.Value(r.src))
			continue
		}
		b.WriteString(r.plain(n))
	}
	return strings.ReplaceAll(b.String(), "\n", " ")
}

// unescape resolves backslashes and entities, as a page would show them. What they stand for is cleaned after that.
func unescape(text []byte) string {
	return string(util.ResolveEntityNames(util.ResolveNumericReferences(util.UnescapePunctuations(text))))
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + ";" + b
}
