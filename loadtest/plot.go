package loadtest

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// plot is a diagram drawn as SVG: a script that draws would be a hundred times the size, and a page without one can be
// read anywhere.
type plot struct {
	title, x, y string
	lines       []line
	marks       []mark  // vertical lines
	levels      []mark  // horizontal ones
	yMax        float64 // 0: as high as the values
	log         bool    // x is logarithmic
}

// line is a series. Its colour is that of its place in the plot, unless it is old: then it is grey.
type line struct {
	name   string
	points [][2]float64
	dots   bool // single points instead of a line
	dashed bool
	old    bool
	bad    bool // in the colour of failures
	steps  bool // keeps its value until the next point
}

type mark struct {
	at   float64
	text string
}

const (
	plotWidth, plotHeight                    = 620, 270
	plotLeft, plotRight, plotTop, plotBottom = 58, 14, 40, 40
	plotInnerWidth                           = plotWidth - plotLeft - plotRight
	plotInnerHeight                          = plotHeight - plotTop - plotBottom
)

// svg draws the plot; it is empty if there is nothing to draw.
func (p *plot) svg() template.HTML {
	minX, maxX, maxY, points := math.Inf(1), math.Inf(-1), p.yMax, 0
	for _, l := range p.lines {
		for _, v := range l.points {
			if p.log && v[0] <= 0 {
				continue
			}
			minX, maxX, points = min(minX, v[0]), max(maxX, v[0]), points+1
			if p.yMax == 0 {
				maxY = max(maxY, v[1])
			}
		}
	}
	if points == 0 {
		return ""
	}
	for _, m := range p.marks {
		minX, maxX = min(minX, m.at), max(maxX, m.at)
	}
	for _, m := range p.levels {
		maxY = max(maxY, m.at)
	}
	if maxX <= minX {
		maxX = minX + max(math.Abs(minX), 1)
	}
	yTicks := ticks(0, maxY, 5)
	if p.yMax == 0 {
		maxY = max(yTicks[len(yTicks)-1], maxY)
	}
	rows, down := p.legend(nil)-1, 0
	if rows > 0 {
		down = rows * legendRow
	}
	at := func(x, y float64) (float64, float64) {
		f := (x - minX) / (maxX - minX)
		if p.log {
			f = math.Log(x/minX) / math.Log(maxX/minX)
		}
		return plotLeft + f*plotInnerWidth, plotTop + (1-min(y/maxY, 1))*plotInnerHeight
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 %d %d %d" role="img" aria-label="%s">`, -down, plotWidth, plotHeight+down,
		html.EscapeString(p.title))
	fmt.Fprintf(&b, `<text class="title" x="%d" y="%d">%s</text>`, plotLeft, 14-down, html.EscapeString(p.title))
	p.legend(&b)
	xTicks := ticks(minX, maxX, 7)
	if p.log {
		xTicks = logTicks(minX, maxX)
	}
	p.drawAxes(&b, at, xTicks, yTicks)
	p.drawMarks(&b, at)
	p.drawLines(&b, at)
	b.WriteString("</svg>")
	return template.HTML(b.String())
}

// place is where a point of a plot lies in its drawing.
type place func(x, y float64) (px, py float64)

func (p *plot) drawAxes(b *strings.Builder, at place, xTicks, yTicks []float64) {
	for _, y := range yTicks {
		_, py := at(0, y)
		fmt.Fprintf(b, `<path class="grid" d="M%d %.1fh%d"/><text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`, plotLeft, py, plotInnerWidth, plotLeft-6, py+3.5, number(y))
	}
	for _, x := range xTicks {
		px, _ := at(x, 0)
		fmt.Fprintf(b, `<path class="grid" d="M%.1f %dv4"/><text class="tick" x="%.1f" y="%d" text-anchor="middle">%s</text>`,
			px, plotHeight-plotBottom, px, plotHeight-plotBottom+16, number(x))
	}
	fmt.Fprintf(b, `<path class="axis" d="M%d %dv%dh%d"/>`, plotLeft, plotTop, plotInnerHeight, plotInnerWidth)
	fmt.Fprintf(b, `<text class="label" x="%d" y="%d" text-anchor="end">%s</text>`, plotWidth-plotRight, plotHeight-6, html.EscapeString(p.x))
	fmt.Fprintf(b, `<text class="label" transform="translate(12 %d) rotate(-90)" text-anchor="end">%s</text>`, plotTop, html.EscapeString(p.y))
}

func (p *plot) drawMarks(b *strings.Builder, at place) {
	for _, m := range p.marks {
		px, _ := at(m.at, 0)
		anchor, dx := "start", 4.0
		if px > plotLeft+plotInnerWidth*0.7 {
			anchor, dx = "end", -4
		}
		fmt.Fprintf(b, `<path class="mark" d="M%.1f %dv%d"/><text class="marktext" x="%.1f" y="%d" text-anchor="%s">%s</text>`,
			px, plotTop, plotInnerHeight, px+dx, plotTop+11, anchor, html.EscapeString(m.text))
	}
	for _, m := range p.levels {
		_, py := at(0, m.at)
		fmt.Fprintf(b, `<path class="mark" d="M%d %.1fh%d"/><text class="marktext" x="%d" y="%.1f" text-anchor="end">%s</text>`,
			plotLeft, py, plotInnerWidth, plotWidth-plotRight-2, py-4, html.EscapeString(m.text))
	}
}

// classes are the lines' styles, in their order.
func (p *plot) classes() (list []string) {
	colour := 0
	for _, l := range p.lines {
		class := "s" + strconv.Itoa(colour%6)
		switch {
		case l.old:
			class = "old"
		case l.bad:
			class = "bad"
		default:
			colour++
		}
		if l.dashed {
			class += " dashed"
		}
		list = append(list, class)
	}
	return list
}

const (
	legendRow   = 16  // pixels between rows of a legend
	legendGlyph = 6.2 // about the width of a letter
)

// legend names the lines above the plot, in as many rows as they take, which it counts. The last row is the lowest. A
// nil builder draws nothing.
func (p *plot) legend(b *strings.Builder) (rows int) {
	type entry struct {
		x     float64
		row   int
		class string
		name  string
	}
	var list []entry
	x, row := float64(plotLeft), 0
	for i, class := range p.classes() {
		l := p.lines[i]
		if len(l.points) == 0 || l.name == "" {
			continue
		}
		width := 32 + legendGlyph*float64(len([]rune(l.name)))
		if x+width > plotWidth && x > plotLeft {
			x, row = plotLeft, row+1
		}
		list = append(list, entry{x, row, class, l.name})
		x += width
	}
	if b != nil {
		for _, e := range list {
			y := 27 - float64((row-e.row)*legendRow)
			fmt.Fprintf(b, `<path class="line %s" d="M%.0f %.0fh14"/><text class="tick" x="%.0f" y="%.1f">%s</text>`, e.class, e.x, y,
				e.x+18, y+3.5, html.EscapeString(e.name))
		}
	}
	return row + 1
}

// drawLines draws the lines.
func (p *plot) drawLines(b *strings.Builder, at place) {
	for i, class := range p.classes() {
		if len(p.lines[i].points) > 0 {
			p.lines[i].draw(b, class, at, p.log)
		}
	}
}

func (l line) draw(b *strings.Builder, class string, at place, log bool) {
	if l.dots {
		fmt.Fprintf(b, `<path class="dots %s" d="`, class)
		for _, v := range l.points {
			x, y := at(v[0], v[1])
			fmt.Fprintf(b, "M%.1f %.1fh0", x, y)
		}
		b.WriteString(`"/>`)
		return
	}
	fmt.Fprintf(b, `<path class="line %s" d="`, class)
	before, first := 0.0, true
	for _, v := range l.points {
		if log && v[0] <= 0 {
			continue
		}
		x, y := at(v[0], v[1])
		switch {
		case first:
			fmt.Fprintf(b, "M%.1f %.1f", x, y)
		case l.steps:
			fmt.Fprintf(b, "L%.1f %.1fL%.1f %.1f", x, before, x, y)
		default:
			fmt.Fprintf(b, "L%.1f %.1f", x, y)
		}
		before, first = y, false
	}
	b.WriteString(`"/>`)
	if len(l.points) > 40 {
		return
	}
	for _, v := range l.points {
		if log && v[0] <= 0 {
			continue
		}
		x, y := at(v[0], v[1])
		fmt.Fprintf(b, `<circle class="point %s" cx="%.1f" cy="%.1f" r="2.6"><title>%s: %s, %s</title></circle>`, class, x, y,
			html.EscapeString(l.name), number(v[0]), number(v[1]))
	}
}

// ticks are round numbers that cover [from, to]: about n steps of 1, 2 or 5 times a power of ten.
func ticks(from, to float64, n int) []float64 {
	if !(to > from) {
		to = from + 1
	}
	raw := (to - from) / float64(n)
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	step := 10 * unit
	for _, f := range []float64{1, 2, 5} {
		if f*unit >= raw*0.999 {
			step = f * unit
			break
		}
	}
	var list []float64
	for i := math.Ceil(from/step - 1e-9); i*step <= to*(1+1e-9); i++ {
		list = append(list, i*step)
	}
	if len(list) == 0 {
		list = []float64{from}
	}
	return list
}

// logTicks are 1, 2 and 5 times the powers of ten in [from, to].
func logTicks(from, to float64) (list []float64) {
	for e := math.Floor(math.Log10(from)); e <= math.Log10(to); e++ {
		for _, f := range []float64{1, 2, 5} {
			if v := f * math.Pow(10, e); v >= from*0.999 && v <= to*1.001 {
				list = append(list, v)
			}
		}
	}
	if len(list) > 9 { // many decades: the powers alone
		var powers []float64
		for _, v := range list {
			if l := math.Log10(v); math.Abs(l-math.Round(l)) < 1e-9 {
				powers = append(powers, v)
			}
		}
		return powers
	}
	return list
}

// number is v with at most four digits that count.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a < 1e-12:
		return "0"
	case a >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 3, 64) + "M"
	case a >= 1e4:
		return strconv.FormatFloat(v/1e3, 'g', 4, 64) + "k"
	case a >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}
