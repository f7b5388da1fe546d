package loadtest

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
)

//go:embed report.html
var page string

var reportPage = template.Must(template.New("report").Funcs(template.FuncMap{
	"number":  number,
	"ms":      func(v float64) string { return fmt.Sprintf("%.1f", v) },
	"percent": func(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) },
	"lower":   strings.ToLower,
}).Parse(page))

type namedQuantiles struct {
	Name string
	Quantiles
}

type nameValue struct{ Name, Value string }

// WriteHTML writes the report as one page that needs nothing else. If old is not nil, it is set against it.
func (r *Report) WriteHTML(w io.Writer, old *Report) error {
	s := r.headline()
	data := struct {
		*Report
		Head           Summary // what the cards show: of a test of several rates, that at the knee
		HeadRate       float64
		Knee           string
		Server         []nameValue
		Failed         int
		Codes, Options []nameValue
		Latencies      []namedQuantiles
		Formulas       []nameValue
		Plots          []template.HTML
		Old            *Report
		Changes        []Change
		DifferentWork  []string
	}{Report: r, Head: *s, Old: old}
	if r.Knee != nil {
		data.Knee = r.Knee.sentence()
	}
	if r.AtKnee != nil {
		data.HeadRate = r.AtKnee.Rate
	}
	for _, name := range slices.Sorted(maps.Keys(r.Server)) {
		data.Server = append(data.Server, nameValue{name, r.Server[name]})
	}
	data.Failed = data.Head.Due - data.Head.OK - data.Head.Abandoned
	for _, code := range slices.Sorted(maps.Keys(r.Summary.Errors)) {
		data.Codes = append(data.Codes, nameValue{code, fmt.Sprint(r.Summary.Errors[code])})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Options)) {
		data.Options = append(data.Options, nameValue{name, r.Options[name]})
	}
	for _, f := range Formulas {
		data.Formulas = append(data.Formulas, nameValue{f.Name, f.Text})
	}
	for _, q := range []namedQuantiles{{"TTFT", s.TTFT}, {"TPOT", s.TPOT}, {"ITL", s.ITL}, {"E2E", s.E2E},
		{"TTFT from send", s.FromSend.TTFT}, {"E2E from send", s.FromSend.E2E}, {"lag of the sender", s.Lag}} {
		if q.Count > 0 {
			data.Latencies = append(data.Latencies, q)
		}
	}
	for _, name := range serverStages {
		if q := s.Server[name]; q.Count > 0 {
			data.Latencies = append(data.Latencies, namedQuantiles{"server: " + name, q})
		}
	}
	if old != nil {
		data.Changes, data.DifferentWork = r.changes(old), r.differentWork(old)
	}
	for _, p := range r.plots(old) {
		if svg := p.svg(); svg != "" {
			data.Plots = append(data.Plots, svg)
		}
	}
	return reportPage.Execute(w, data)
}

func (r *Report) plots(old *Report) []*plot {
	slo, _ := ParseSLO(r.SLO) // none, where it is empty
	list := r.ratePlots(old)
	list = append(list, r.latencyPlot(), r.loadPlot(), r.tokenPlot(old))
	for _, m := range []struct{ key, title string }{
		{"ttft", "Time to first token"}, {"tpot", "Time per output token"}, {"itl", "Time between pieces of text"},
		{"e2e", "End to end"},
	} {
		unit, scale := "ms", 1.0
		if c := r.Curves[m.key]; len(c) > 0 && c[len(c)-1][1] >= 10_000 {
			unit, scale = "s", 1000
		}
		p := &plot{title: m.title + ": distribution", x: unit, y: "% of the answers", yMax: 100, log: true}
		if r.AtKnee != nil {
			p.title += ", at " + number(r.AtKnee.Rate) + " requests/s"
		}
		if d := slo.of(m.key); d > 0 {
			p.marks = []mark{{ms(d) / scale, "SLO " + d.String()}}
		}
		if m.key == "itl" {
			p.y = "% of the gaps"
		}
		p.lines = append(p.lines, line{name: "since due", points: cdf(r.Curves[m.key], scale)})
		if m.key == "tpot" || m.key == "itl" {
			p.lines[0].name = "now"
		} else if c := r.Curves[m.key+"_from_send"]; len(c) > 0 {
			p.lines = append(p.lines, line{name: "since sent", points: cdf(c, scale), dashed: true})
		}
		if old != nil {
			p.lines = append(p.lines, line{name: "earlier", points: cdf(old.Curves[m.key], scale), old: true})
		} else if len(p.lines) == 1 {
			p.lines[0].name = ""
		}
		list = append(list, p)
	}
	return append(list, r.metricPlots()...)
}

// cdf turns a curve of percents and values around.
func cdf(c [][2]float64, scale float64) [][2]float64 {
	out := make([][2]float64, len(c))
	for i, v := range c {
		out[i] = [2]float64{v[1] / scale, v[0]}
	}
	return out
}

// ratePlots are over the rates of a ramp or a search.
func (r *Report) ratePlots(old *Report) []*plot {
	stages := bestTries(r.Stages)
	if len(stages) < 2 {
		return nil
	}
	throughput := &plot{title: "Throughput against rate", x: "requests/s due", y: "requests/s"}
	latency := &plot{title: "Latency against rate", x: "requests/s due", y: "ms, p50 and p99"}
	series := func(stages []StageReport, y func(*StageReport) float64) (p [][2]float64) {
		for i := range stages {
			p = append(p, [2]float64{stages[i].Rate, y(&stages[i])})
		}
		return p
	}
	done := func(s *StageReport) float64 { return s.Throughput }
	throughput.lines = []line{
		{name: "ended", points: series(stages, done)},
		{name: "good", points: series(stages, func(s *StageReport) float64 { return s.Goodput })},
		{name: "due", points: series(stages, func(s *StageReport) float64 { return s.DueRate }), dashed: true},
	}
	latency.lines = []line{
		{name: "TTFT p50", points: series(stages, func(s *StageReport) float64 { return s.TTFT.P50 })},
		{name: "TTFT p99", points: series(stages, func(s *StageReport) float64 { return s.TTFT.P99 })},
		{name: "E2E p50", points: series(stages, func(s *StageReport) float64 { return s.E2E.P50 })},
		{name: "E2E p99", points: series(stages, func(s *StageReport) float64 { return s.E2E.P99 })},
	}
	if old != nil {
		throughput.lines = append(throughput.lines, line{name: "ended, earlier", points: series(bestTries(old.Stages), done),
			old: true})
	}
	if r.Knee != nil && r.Knee.Rate > 0 {
		m := mark{r.Knee.Rate, "knee " + number(r.Knee.Rate) + "/s"}
		throughput.marks, latency.marks = []mark{m}, []mark{m}
	}
	slo, _ := ParseSLO(r.SLO) // none, where it is empty
	for _, key := range []string{"ttft", "e2e"} {
		if d := slo.of(key); d > 0 {
			latency.levels = append(latency.levels, mark{ms(d), "SLO " + key + " " + d.String()})
		}
	}
	return []*plot{throughput, latency, tradeOffPlot(stages)}
}

// tradeOffPlot is what each rate gives and what it costs: latency over what was answered.
func tradeOffPlot(stages []StageReport) *plot {
	p := &plot{title: "Latency against throughput, a dot a rate", x: "output tokens/s", y: "ms"}
	for _, l := range []struct {
		name string
		of   func(*StageReport) float64
	}{
		{"TTFT p50", func(s *StageReport) float64 { return s.TTFT.P50 }},
		{"E2E p50", func(s *StageReport) float64 { return s.E2E.P50 }},
		{"E2E p95", func(s *StageReport) float64 { return s.E2E.P95 }},
	} {
		var points [][2]float64
		for i := range stages {
			points = append(points, [2]float64{stages[i].OutputRate, l.of(&stages[i])})
		}
		p.lines = append(p.lines, line{name: l.name, points: points})
	}
	return p
}

// bestTries leaves of each rate, of stages in their order, the one with the highest attainment.
func bestTries(stages []StageReport) (best []StageReport) {
	for _, g := range stages {
		n := len(best)
		switch {
		case n == 0 || best[n-1].Rate != g.Rate:
			best = append(best, g)
		case g.Attainment > best[n-1].Attainment:
			best[n-1] = g
		}
	}
	return best
}

func (r *Report) latencyPlot() *plot {
	unit, scale, top := "ms", 1.0, 0.0
	for _, p := range r.Points {
		top = max(top, p.E2E)
	}
	if top >= 10_000 {
		unit, scale = "s", 1000
	}
	first, whole, failed := line{name: "TTFT", dots: true}, line{name: "E2E", dots: true},
		line{name: "failed", dots: true, bad: true}
	for _, p := range r.Points {
		switch {
		case p.Code == codeOK:
			whole.points = append(whole.points, [2]float64{p.Due, p.E2E / scale})
			if p.TTFT > 0 {
				first.points = append(first.points, [2]float64{p.Due, p.TTFT / scale})
			}
		case p.Code != codeAbandoned:
			failed.points = append(failed.points, [2]float64{p.Due, p.E2E / scale})
		}
	}
	return &plot{title: "Latency over time, a dot a request", x: "s", y: unit, lines: []line{first, whole, failed}}
}

func (r *Report) loadPlot() *plot {
	open, due, ok, failed := line{name: "open"}, line{name: "due/s"}, line{name: "OK/s"}, line{name: "failed/s", bad: true}
	for _, t := range r.Timeline {
		middle := t.From + t.Seconds/2
		open.points = append(open.points, [2]float64{t.From + t.Seconds, float64(t.Open)})
		due.points = append(due.points, [2]float64{middle, float64(t.Due) / t.Seconds})
		ok.points = append(ok.points, [2]float64{middle, float64(t.OK) / t.Seconds})
		failed.points = append(failed.points, [2]float64{middle, float64(t.Failed) / t.Seconds})
	}
	p := &plot{title: "Requests over time", x: "s", y: "requests", lines: []line{open, due, ok}}
	if r.Summary.Due > r.Summary.OK+r.Summary.Abandoned {
		p.lines = append(p.lines, failed)
	}
	return p
}

func (r *Report) tokenPlot(old *Report) *plot {
	p := &plot{title: "Output tokens received over time", x: "s", y: "tokens/s"}
	add := func(l line, timeline []Part) {
		for _, t := range timeline {
			l.points = append(l.points, [2]float64{t.From + t.Seconds/2, float64(t.Tokens) / t.Seconds})
		}
		p.lines = append(p.lines, l)
	}
	if old == nil {
		add(line{}, r.Timeline)
		return p
	}
	add(line{name: "now"}, r.Timeline)
	add(line{name: "earlier", old: true}, old.Timeline)
	return p
}

// metricPlots are of what was scraped: a plot each of batch sizes and KV use, and one for every other metric.
func (r *Report) metricPlots() []*plot {
	batch := &plot{title: "Requests at the server (scraped)", x: "s", y: "requests"}
	kv := &plot{title: "Use of the KV cache (scraped)", x: "s", y: "fraction"}
	list := []*plot{batch, kv}
	for _, m := range r.Metrics {
		l := line{name: m.Name, points: m.Points, steps: true}
		switch m.Kind {
		case "batch":
			batch.lines = append(batch.lines, l)
		case "kv":
			kv.lines = append(kv.lines, l)
		default:
			l.name = ""
			list = append(list, &plot{title: m.Name + " (scraped)", x: "s", lines: []line{l}})
		}
	}
	return list
}
