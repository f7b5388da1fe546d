package loadtest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"text/tabwriter"
)

// Change is a number of two reports.
type Change struct {
	Name     string
	Old, New float64
	// Lower says that less is better.
	Lower bool
	tail  bool // it is a 99th percentile
}

// Percent is the change, against Old.
func (c Change) Percent() float64 { return 100 * (c.New/c.Old - 1) }

// Better says whether the change is for the better; a change below 2 % is neither that nor Worse.
func (c Change) Better() bool { return c.matters() && (c.New < c.Old) == c.Lower }

// Worse is the opposite of Better.
func (c Change) Worse() bool { return c.matters() && (c.New < c.Old) != c.Lower }

func (c Change) matters() bool { return math.Abs(c.Percent()) >= 2 }

// changes sets the reports' numbers side by side, those that both have.
func (r *Report) changes(old *Report) []Change {
	a, b := &old.Summary, &r.Summary
	list := []Change{
		{Name: "requests/s", Old: a.Throughput, New: b.Throughput},
		{Name: "goodput, requests/s", Old: a.Goodput, New: b.Goodput},
		{Name: "attainment, %", Old: 100 * a.Attainment, New: 100 * b.Attainment},
		{Name: "output tokens/s", Old: a.OutputRate, New: b.OutputRate},
		{Name: "images/s", Old: a.ImageRate, New: b.ImageRate},
	}
	for _, m := range []struct {
		name     string
		old, new Quantiles
	}{{"TTFT", a.TTFT, b.TTFT}, {"TPOT", a.TPOT, b.TPOT}, {"ITL", a.ITL, b.ITL}, {"E2E", a.E2E, b.E2E}} {
		list = append(list, Change{m.name + " p50, ms", m.old.P50, m.new.P50, true, false},
			Change{m.name + " p90, ms", m.old.P90, m.new.P90, true, false},
			Change{m.name + " p95, ms", m.old.P95, m.new.P95, true, false},
			Change{m.name + " p99, ms", m.old.P99, m.new.P99, true, true})
	}
	if old.Knee != nil && r.Knee != nil {
		list = append(list, Change{Name: "knee, requests/s", Old: old.Knee.Rate, New: r.Knee.Rate})
	}
	return slices.DeleteFunc(list, func(c Change) bool { return c.Old == 0 || c.New == 0 })
}

// differentWork names the options that are not the same in both: numbers of different work say little.
func (r *Report) differentWork(old *Report) []string {
	var list []string
	names := maps.Clone(r.Options)
	if names == nil {
		names = map[string]string{}
	}
	maps.Copy(names, old.Options)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if a, b := old.Options[name], r.Options[name]; a != b {
			list = append(list, fmt.Sprintf("%s: %q, now %q", name, a, b))
		}
	}
	if old.SLO != r.SLO {
		list = append(list, fmt.Sprintf("slo: %q, now %q", old.SLO, r.SLO))
	}
	return list
}

// WriteDifference writes how the report differs from an earlier one.
func (r *Report) WriteDifference(out io.Writer, old *Report) error {
	w := new(bytes.Buffer)
	fmt.Fprintf(w, "against %s of %s (version %s):\n", old.Target, old.Started.Format("2006-01-02 15:04:05 MST"),
		old.Version)
	for _, d := range r.differentWork(old) {
		fmt.Fprintf(w, "  not the same work: %s\n", d)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tthen\tnow\tchange\t\t")
	for _, c := range r.changes(old) {
		word := ""
		switch {
		case c.Better():
			word = "better"
		case c.Worse():
			word = "worse"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%+.1f %%\t%s\t\n", c.Name, number(c.Old), number(c.New), c.Percent(), word)
	}
	t.Flush()
	_, err := out.Write(w.Bytes())
	return err
}
