package loadtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Schema names the form of a report's JSON. Fields may be added under the same name.
const Schema = "mmserve.bench/1"

// Report is what is kept of a test.
type Report struct {
	Schema  string    `json:"schema"`
	Version string    `json:"version"` // of the program
	Started time.Time `json:"started"`
	Target  string    `json:"target"`
	// Options are those that the test was started with.
	Options     map[string]string `json:"options"`
	SLO         string            `json:"slo,omitempty"`
	Interrupted bool              `json:"interrupted,omitempty"`
	// Server is what was tested, as it says itself.
	Server map[string]string `json:"server,omitempty"`
	// Verdict is nil without an SLO.
	Verdict *Verdict `json:"verdict,omitempty"`
	// Summary is of all stages together.
	Summary Summary       `json:"summary"`
	Stages  []StageReport `json:"stages,omitempty"`
	Knee    *Knee         `json:"knee,omitempty"`
	// AtKnee is the stage at the knee, whose distributions Curves has; nil: Curves has all.
	AtKnee *StageReport `json:"at_knee,omitempty"`
	// Repeated are means over the stages, which are runs of the same work.
	Repeated []Interval `json:"repeated,omitempty"`
	// Timeline has equal parts of the time, Points single requests, at most maxPoints of them.
	Timeline []Part  `json:"timeline"`
	Points   []Point `json:"points"`
	// Curves are distributions: percent of the values, and the milliseconds that they do not exceed.
	Curves   map[string][][2]float64 `json:"curves"`
	Metrics  []Series                `json:"metrics,omitempty"`
	Formulas map[string]string       `json:"formulas"`
}

// StageReport is the summary of one rate.
type StageReport struct {
	Rate float64 `json:"rate"`
	From float64 `json:"from_s"`
	Summary
}

// Part is what happened in a part of the time.
type Part struct {
	From    float64 `json:"from_s"`
	Seconds float64 `json:"seconds"`
	Due     int     `json:"due"`
	OK      int     `json:"ok"`
	Failed  int     `json:"failed"`
	Tokens  int     `json:"tokens"`
	Open    int     `json:"open"` // at its end
}

// Point is a request: when it was due, in seconds, and its times in milliseconds.
type Point struct {
	Due  float64 `json:"due_s"`
	TTFT float64 `json:"ttft_ms,omitempty"`
	E2E  float64 `json:"e2e_ms"`
	Code string  `json:"code"`
}

const (
	maxPoints = 3000
	maxParts  = 240
)

// About is what a report says of its test, other than the numbers.
type About struct {
	Version, Target string
	Options         map[string]string
	SLO             SLO
	// Knee is what a search found. If it is nil and Attain above 0, the report names one: of the stages' rates, the last
	// before the first whose attainment is below it.
	Knee   *Knee
	Attain float64
	// Server is what the server says of itself.
	Server map[string]string
	// Repeats says that the stages are runs of the same work.
	Repeats bool
}

// NewReport sums a result up.
func NewReport(r *Result, a About) *Report {
	out := &Report{
		Schema: Schema, Version: a.Version, Started: r.Started.UTC(), Target: a.Target, Options: a.Options,
		SLO:         a.SLO.String(),
		Interrupted: r.Interrupted, Metrics: r.Scraped, Curves: map[string][][2]float64{}, Formulas: map[string]string{},
	}
	for _, f := range Formulas {
		out.Formulas[f.Name] = f.Text
	}
	out.Server, out.Summary = a.Server, summarize(r.Samples, r.Windows, a.SLO)
	if len(r.Windows) > 1 {
		for _, w := range r.Windows {
			out.Stages = append(out.Stages, StageReport{w.Rate, w.From.Seconds(), Summarize(r.Samples, w.From, w.To, a.SLO)})
		}
		slices.SortStableFunc(out.Stages, func(a, b StageReport) int { return int(math.Copysign(1, a.Rate-b.Rate)) })
		switch out.Knee = a.Knee; {
		case a.Repeats:
			out.Repeated = confidence(out.Stages)
		case out.Knee == nil && a.Attain > 0:
			out.Knee = kneeOf(out.Stages, a.Attain)
		}
	}
	out.Verdict = out.judge(a.Attain)
	measured := r.Windows
	if out.AtKnee = out.atKnee(); out.AtKnee != nil {
		other := func(w Window) bool { return w.From.Seconds() != out.AtKnee.From }
		measured = slices.DeleteFunc(slices.Clone(measured), other)
	}
	out.timeline(r)
	out.points(r)
	out.curves(r, measured)
	return out
}

// atKnee is the stage at the knee, the best of its tries; nil if there is none.
func (r *Report) atKnee() *StageReport {
	if r.Knee == nil || r.Knee.Rate == 0 {
		return nil
	}
	for _, g := range bestTries(r.Stages) {
		if math.Abs(g.Rate/r.Knee.Rate-1) < 1e-6 {
			return &g
		}
	}
	return nil
}

func (r *Report) timeline(run *Result) {
	width := max(1, math.Ceil(run.Took.Seconds()/maxParts))
	// The last part is shorter, or longer if almost nothing would be left for it.
	took := run.Took.Seconds()
	parts := make([]Part, max(1, int(took/width+0.75)))
	for i := range parts {
		parts[i].From, parts[i].Seconds = float64(i)*width, width
	}
	if last := &parts[len(parts)-1]; took > last.From {
		last.Seconds = took - last.From
	}
	at := func(t time.Duration) *Part {
		return &parts[min(max(int(t.Seconds()/width), 0), len(parts)-1)]
	}
	for i := range run.Samples {
		s := &run.Samples[i]
		at(s.Due).Due++
		if s.Code == codeNotSent {
			at(s.Due).Failed++
			continue
		}
		at(s.Sent).Open++
		at(s.Ended).Open--
		if s.ok() {
			at(s.Ended).OK++
		} else if s.Code != codeAbandoned {
			at(s.Ended).Failed++
		}
		for _, d := range s.Deltas {
			at(d.At).Tokens += d.Tokens
		}
	}
	for i := range parts[1:] {
		parts[i+1].Open += parts[i].Open
	}
	r.Timeline = parts
}

func (r *Report) points(run *Result) {
	step := (len(run.Samples) + maxPoints - 1) / maxPoints
	for i := 0; i < len(run.Samples); i += step {
		s := &run.Samples[i]
		p := Point{Due: s.Due.Seconds(), E2E: ms(s.E2E()), Code: s.Code}
		if d, ok := s.TTFT(); ok {
			p.TTFT = ms(d)
		}
		r.Points = append(r.Points, p)
	}
}

// curves are the distributions of what was due in some windows.
func (r *Report) curves(run *Result, windows []Window) {
	values := map[string][]time.Duration{}
	add := func(name string, d time.Duration) { values[name] = append(values[name], d) }
	for i := range run.Samples {
		s := &run.Samples[i]
		measured := slices.ContainsFunc(windows, func(w Window) bool { return s.Due >= w.From && s.Due < w.To })
		if s.WarmUp || !s.ok() || !measured {
			continue
		}
		add("e2e", s.E2E())
		add("e2e_from_send", s.Ended-s.Sent)
		if d, ok := s.TTFT(); ok {
			add("ttft", d)
			add("ttft_from_send", s.Deltas[0].At-s.Sent)
		}
		if d, ok := s.TPOT(); ok {
			add("tpot", d)
		}
		for j := 1; j < len(s.Deltas); j++ {
			add("itl", s.Deltas[j].At-s.Deltas[j-1].At)
		}
	}
	for name, d := range values {
		slices.Sort(d)
		for p := 0.0; p <= 99.5; p += 0.5 {
			r.Curves[name] = append(r.Curves[name], [2]float64{p, ms(rank(d, p/100))})
		}
		r.Curves[name] = append(r.Curves[name], [2]float64{99.9, ms(rank(d, 0.999))}, [2]float64{100, ms(d[len(d)-1])})
	}
}

// WriteJSON writes the report for machines.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// ReadReport reads what WriteJSON wrote.
func ReadReport(r io.Reader) (*Report, error) {
	var out Report
	if err := json.NewDecoder(r).Decode(&out); err != nil {
		return nil, fmt.Errorf("not a report: %w", err)
	}
	if out.Schema != Schema {
		return nil, fmt.Errorf("schema %q; want %q", out.Schema, Schema)
	}
	return &out, nil
}

// WriteLedger writes one JSON line a request: what a server's own log can be compared with.
func WriteLedger(w io.Writer, r *Result) error {
	e := json.NewEncoder(w)
	var err error
	for i := range r.Samples {
		s := &r.Samples[i]
		err = errors.Join(err, e.Encode(struct {
			ID       string  `json:"id"`
			Code     string  `json:"code"`
			Finish   string  `json:"finish,omitempty"`
			Error    string  `json:"error,omitempty"`
			Due      float64 `json:"due_s"`
			Sent     float64 `json:"sent_s"`
			Ended    float64 `json:"ended_s"`
			Images   int     `json:"images"`
			Prompt   int     `json:"prompt_tokens"`
			Output   int     `json:"output_tokens"`
			Received int     `json:"received_tokens"`
		}{s.ID, s.Code, s.Answer.Finish, s.Error, s.Due.Seconds(), s.Sent.Seconds(), s.Ended.Seconds(), s.Images,
			s.Answer.Prompt, s.Answer.Completion, s.received()}))
	}
	return err
}

// headline is the summary that the report is about: that at the knee, where there is one.
func (r *Report) headline() *Summary {
	if r.AtKnee != nil {
		return &r.AtKnee.Summary
	}
	return &r.Summary
}

// p999 is the 99.9th percentile as text: a dash where there are too few values for one.
func (q Quantiles) p999() string {
	if q.P999 == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f", q.P999)
}

// about writes what was tested, and the verdict.
func (r *Report) about(w io.Writer) {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(r.Server)) {
		parts = append(parts, name+" "+r.Server[name])
	}
	if len(parts) > 0 {
		fmt.Fprintln(w, "server:", strings.Join(parts, ", "))
	}
	if r.Verdict != nil {
		fmt.Fprintln(w, r.Verdict.Text)
	}
}

// WriteText writes the report for a terminal.
func (r *Report) WriteText(out io.Writer) error {
	w := new(bytes.Buffer)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	s := &r.Summary
	r.about(w)
	fmt.Fprintf(w, "%s: %d requests due in %.1f s (%.3g/s), %d OK, %d abandoned, %d failed\n", r.Target, s.Due,
		s.WindowSeconds, s.DueRate, s.OK, s.Abandoned, s.Due-s.OK-s.Abandoned)
	if r.Interrupted {
		fmt.Fprintln(w, "The test was interrupted.")
	}
	for _, code := range slices.Sorted(maps.Keys(s.Errors)) {
		fmt.Fprintf(w, "  %s %d\n", code, s.Errors[code])
	}
	if n := s.Errors[codeNotSent]; n > 0 {
		fmt.Fprintf(w, "%d requests were due while the most were open, and were not sent: raise --max-open\n", n)
	}
	if s = r.headline(); r.AtKnee != nil {
		fmt.Fprintf(w, "at %s requests/s:\n", number(r.AtKnee.Rate))
	}
	fmt.Fprintln(t, "ms\tn\tmean\tp50\tp90\tp95\tp99\tp99.9\tmax\t")
	row := func(name string, q Quantiles) {
		if q.Count > 0 {
			fmt.Fprintf(t, "%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%s\t%.1f\t\n", name, q.Count, q.Mean, q.P50, q.P90, q.P95,
				q.P99, q.p999(), q.Max)
		}
	}
	row("TTFT", s.TTFT)
	row("TPOT", s.TPOT)
	row("ITL", s.ITL)
	row("E2E", s.E2E)
	row("TTFT from send", s.FromSend.TTFT)
	row("E2E from send", s.FromSend.E2E)
	row("lag", s.Lag)
	for _, name := range serverStages {
		row("server "+name, s.Server[name])
	}
	t.Flush()
	fmt.Fprintf(w, "throughput %.3g requests/s, %.4g output tokens/s, %.4g prompt tokens/s, %.3g images/s\n", s.Throughput, s.OutputRate, s.PromptRate, s.ImageRate)
	if r.SLO != "" {
		fmt.Fprintf(w, "goodput %.3g requests/s (%s), attainment %.1f %%\n", s.Goodput, r.SLO, 100*s.Attainment)
	}
	k := &s.Tokens
	fmt.Fprintf(w, "tokens: prompt %d (%d of images, %d cached), output %d by the server, %d received; %d answers differ, by %d that were not received and %d too many\n",
		k.Prompt, k.Image, k.Cached, k.Output, k.OutputReceived, k.Mismatches, k.Missing, k.Extra)
	if len(r.Stages) > 0 {
		fmt.Fprintln(t, "rate\tOK/due\tgoodput\tattained\trequests/s\ttokens/s\tTTFT p50\tp99\tTPOT p50\tp99\tE2E p50\tp99\t")
		for _, g := range r.Stages {
			fmt.Fprintf(t, "%.3g\t%d/%d\t%.3g\t%.1f %%\t%.3g\t%.4g\t%.0f\t%.0f\t%.1f\t%.1f\t%.0f\t%.0f\t\n", g.Rate, g.OK, g.Due,
				g.Goodput, 100*g.Attainment, g.Throughput, g.OutputRate,
				g.TTFT.P50, g.TTFT.P99, g.TPOT.P50, g.TPOT.P99, g.E2E.P50, g.E2E.P99)
		}
		t.Flush()
	}
	if r.Knee != nil {
		fmt.Fprintln(w, r.Knee.sentence())
	}
	if len(r.Repeated) > 0 {
		fmt.Fprintf(w, "over %d runs, with a confidence of 95 %%:\n", len(r.Stages))
		for _, v := range r.Repeated {
			fmt.Fprintf(t, "%s\t%s\t± %s\t\n", v.Name, number(v.Mean), number(v.Half))
		}
		t.Flush()
	}
	fmt.Fprintln(w, "where")
	for _, f := range Formulas {
		fmt.Fprintf(w, "  %s = %s\n", f.Name, f.Text)
	}
	_, err := out.Write(w.Bytes())
	return err
}

// serverStages in the order in which a request goes through them.
var serverStages = strings.Fields("preprocess tokenize encode queue prefill decode ttft total")

func (k *Knee) sentence() string {
	switch {
	case k.Rate == 0:
		return fmt.Sprintf("knee: below the lowest rate, %.4g requests/s", k.Above)
	case k.Above == 0:
		return fmt.Sprintf("knee: not reached at the highest rate, %.4g requests/s", k.Rate)
	}
	return fmt.Sprintf("knee: %.4g requests/s are sustained, %.4g are not", k.Rate, k.Above)
}
