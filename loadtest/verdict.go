package loadtest

import (
	"fmt"
	"math"
	"slices"
)

// Verdict says whether a test kept its SLO.
type Verdict struct {
	Kept bool   `json:"kept"`
	Text string `json:"text"`
}

// judge is the verdict on a report with an SLO: nil where it has none. A test of several rates keeps it if the lowest
// does.
func (r *Report) judge(attain float64) *Verdict {
	switch {
	case r.SLO == "" || attain <= 0 || r.Summary.Due == 0:
		return nil
	case r.Knee != nil && r.Knee.Rate > 0:
		return &Verdict{true, fmt.Sprintf("SLO kept up to %s requests/s (%s, by %.4g %% of the requests or more)",
			number(r.Knee.Rate), r.SLO, 100*attain)}
	case r.Knee != nil:
		return &Verdict{false, fmt.Sprintf("SLO not kept at %s requests/s, the lowest rate (%s, wanted of %.4g %%)",
			number(r.Knee.Above), r.SLO, 100*attain)}
	}
	word, kept := "not kept", r.Summary.Attainment >= attain
	if kept {
		word = "kept"
	}
	return &Verdict{kept, fmt.Sprintf("SLO %s: %.4g %% of the requests kept %s, wanted %.4g %%", word,
		100*r.Summary.Attainment, r.SLO, 100*attain)}
}

// Interval is a mean over repeated runs, and what lies to both sides of it with a confidence of 95 %.
type Interval struct {
	Name string  `json:"name"`
	Mean float64 `json:"mean"`
	Half float64 `json:"half"`
}

// confidence sums repeated runs up; nil for fewer than two. The intervals are Student's: of means that scatter
// normally.
func confidence(runs []StageReport) []Interval {
	if len(runs) < 2 {
		return nil
	}
	var list []Interval
	for _, m := range []struct {
		name string
		of   func(*StageReport) float64
	}{
		{"requests/s", func(s *StageReport) float64 { return s.Throughput }},
		{"goodput, requests/s", func(s *StageReport) float64 { return s.Goodput }},
		{"output tokens/s", func(s *StageReport) float64 { return s.OutputRate }},
		{"TTFT p50, ms", func(s *StageReport) float64 { return s.TTFT.P50 }},
		{"TTFT p99, ms", func(s *StageReport) float64 { return s.TTFT.P99 }},
		{"TPOT p50, ms", func(s *StageReport) float64 { return s.TPOT.P50 }},
		{"E2E p50, ms", func(s *StageReport) float64 { return s.E2E.P50 }},
		{"E2E p99, ms", func(s *StageReport) float64 { return s.E2E.P99 }},
	} {
		var values []float64
		for i := range runs {
			values = append(values, m.of(&runs[i]))
		}
		if slices.Max(values) > 0 {
			list = append(list, interval(m.name, values))
		}
	}
	return list
}

func interval(name string, values []float64) Interval {
	n, sum, squares := float64(len(values)), 0.0, 0.0
	for _, v := range values {
		sum += v
	}
	mean := sum / n
	for _, v := range values {
		squares += (v - mean) * (v - mean)
	}
	return Interval{name, mean, student(len(values)-1) * math.Sqrt(squares/(n-1)/n)}
}

// student is the 97.5th percentile of Student's t distribution with so many degrees of freedom, from tables.
func student(freedom int) float64 {
	table := []float64{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
		2.131, 2.120, 2.110, 2.101, 2.093, 2.086}
	if freedom <= len(table) {
		return table[freedom-1]
	}
	return 2.08 // between 21 degrees and infinitely many it is 2.080 to 1.960
}

// Regressions are the numbers that are worse than those of an earlier report by more than tolerance percent. Of fewer
// than a hundred requests a 99th percentile is a single one, and does not count.
func (r *Report) Regressions(old *Report, tolerance float64) (list []Change) {
	few := min(r.Summary.OK, old.Summary.OK) < 100
	for _, c := range r.changes(old) {
		if c.Worse() && math.Abs(c.Percent()) > tolerance && !(few && c.tail) {
			list = append(list, c)
		}
	}
	return list
}
