package markdown

import (
	"slices"
	"strings"

	"github.com/rivo/uniseg"
	extast "github.com/yuin/goldmark/extension/ast"
)

const (
	leastColumn = 3 // columns of a terminal that a table's column has at least
	between     = 3 // columns between two of them
)

// table draws a table within width, with cells wrapped; where not even that fits, a line for each cell.
func (r renderer) table(t *extast.Table, width int) []line {
	var rows [][][]span
	columns := 0
	for row := t.FirstChild(); row != nil; row = row.NextSibling() {
		var cells [][]span
		style := ""
		if row.Kind() == extast.KindTableHeader {
			style = bold
		}
		for cell := row.FirstChild(); cell != nil; cell = cell.NextSibling() {
			cells = append(cells, r.inlines(cell, style))
		}
		rows = append(rows, cells)
		columns = max(columns, len(cells))
	}
	widths := r.widths(rows, columns, width)
	if widths == nil {
		return r.cellLines(rows, width)
	}
	var out []line
	for i, cells := range rows {
		out = append(out, tableRow(cells, widths, t.Alignments)...)
		if i == 0 {
			var rule []string
			for _, w := range widths {
				rule = append(rule, strings.Repeat("─", w))
			}
			out = append(out, line{{text: strings.Join(rule, "─┼─"), style: dim, frame: true}})
		}
	}
	return out
}

// widths are those of the columns: what they want, the widest made narrower until all fit; nil if they cannot.
func (r renderer) widths(rows [][][]span, columns, width int) []int {
	room := width - between*(columns-1)
	if columns == 0 || room < leastColumn*columns {
		return nil
	}
	widths := make([]int, columns)
	sum := 0
	for c := range widths {
		widths[c] = leastColumn
		for _, cells := range rows {
			if c < len(cells) {
				widths[c] = max(widths[c], min(line(cells[c]).width(), width))
			}
		}
		sum += widths[c]
	}
	for ; sum > room; sum-- {
		widest := 0
		for c := range widths {
			if widths[c] > widths[widest] {
				widest = c
			}
		}
		widths[widest]--
	}
	return widths
}

func tableRow(cells [][]span, widths []int, align []extast.Alignment) (out []line) {
	wrapped := make([][]line, len(widths))
	height := 1
	for c := range widths {
		if c < len(cells) {
			wrapped[c] = wrap(cells[c], widths[c])
		}
		height = max(height, len(wrapped[c]))
	}
	for y := range height {
		var row line
		for c, w := range widths {
			if c > 0 {
				row = append(row, span{text: " │ ", style: dim, frame: true})
			}
			var cell line
			if y < len(wrapped[c]) {
				cell = wrapped[c][y]
			}
			free := max(0, w-cell.width())
			left := 0
			if c < len(align) && align[c] == extast.AlignRight {
				left = free
			} else if c < len(align) && align[c] == extast.AlignCenter {
				left = free / 2
			}
			row = append(row, span{text: strings.Repeat(" ", left)})
			row = append(row, cell...)
			if c < len(widths)-1 {
				row = append(row, span{text: strings.Repeat(" ", free-left)})
			}
		}
		out = append(out, row)
	}
	return out
}

// cellLines writes "header: cell" for each cell.
func (r renderer) cellLines(rows [][][]span, width int) (out []line) {
	for i := 1; i < len(rows); i++ {
		if i > 1 {
			out = append(out, nil)
		}
		for c, cell := range rows[i] {
			var spans []span
			if c < len(rows[0]) {
				spans = append(slices.Clone(rows[0][c]), span{text: ": "})
			}
			out = append(out, wrap(append(spans, cell...), width)...)
		}
	}
	if len(rows) == 1 {
		for _, cell := range rows[0] {
			out = append(out, wrap(cell, width)...)
		}
	}
	return out
}

func clusters(text string) (list []string) {
	for g := uniseg.NewGraphemes(text); g.Next(); {
		list = append(list, g.Str())
	}
	return list
}
