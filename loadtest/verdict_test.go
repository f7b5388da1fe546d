package loadtest_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

// ran is a run of three windows of 20 s with so many of the samples each.
func ran(samples []loadtest.Sample, rates ...float64) *loadtest.Result {
	r := &loadtest.Result{Started: time.Unix(1700000000, 0), Samples: samples, Took: time.Minute}
	for i, rate := range rates {
		from := time.Duration(i) * 20 * time.Second
		r.Windows = append(r.Windows, loadtest.Window{Rate: rate, From: from, To: from + 20*time.Second})
	}
	return r
}

// A verdict is what the SLO says of a rate, and of several what it says of the lowest.
func TestVerdict(t *testing.T) {
	slo := func(d time.Duration) loadtest.SLO { return loadtest.SLO{E2E: d * time.Millisecond} }
	for name, c := range map[string]struct {
		rates []float64
		slo   loadtest.SLO
		want  string
		kept  bool
	}{
		"kept":              {[]float64{1}, slo(80), "SLO kept: 100 % of the requests kept e2e=80ms, wanted 90 %", true},
		"not kept":          {[]float64{1}, slo(40), "SLO not kept: 50 % of the requests kept e2e=40ms, wanted 90 %", false},
		"kept by the first": {[]float64{1, 2}, slo(80), "SLO kept up to 1 requests/s (e2e=80ms, by 90 % of the requests or more)", true},
		"kept by none":      {[]float64{1, 2}, slo(40), "SLO not kept at 1 requests/s, the lowest rate (e2e=40ms, wanted of 90 %)", false},
		"none":              {[]float64{1}, loadtest.SLO{}, "", true},
	} {
		r := loadtest.NewReport(ran(sampled(40), c.rates...), loadtest.About{SLO: c.slo, Attain: 0.9})
		if c.want == "" {
			if r.Verdict != nil {
				t.Errorf("%s: %+v", name, r.Verdict)
			}
			continue
		}
		if r.Verdict == nil || r.Verdict.Text != c.want || r.Verdict.Kept != c.kept {
			t.Errorf("%s: %+v, want %q", name, r.Verdict, c.want)
		}
	}
}

// Distributions are those at the knee; gaps between rates count for no rate.
func TestReportAtKnee(t *testing.T) {
	slo := loadtest.SLO{E2E: 165 * time.Millisecond}
	r := loadtest.NewReport(ran(sampled(60), 1, 2, 3), loadtest.About{SLO: slo, Attain: 0.9})
	if r.AtKnee == nil || r.AtKnee.Rate != 2 || r.AtKnee.TTFT.P50 != 30 {
		t.Fatalf("at the knee: %+v", r.AtKnee)
	}
	if c := r.Curves["ttft"]; c[0][1] != 21 || c[len(c)-1][1] != 40 {
		t.Errorf("the curve goes from %v to %v ms, want the second rate's 21 to 40", c[0][1], c[len(c)-1][1])
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "at 2 requests/s:") {
		t.Errorf("%v: %s", err, &text)
	}
	gaps := ran(sampled(60), 1, 2)
	gaps.Windows[1].From, gaps.Windows[1].To = 40*time.Second, time.Minute
	if s := loadtest.NewReport(gaps, loadtest.About{}).Summary; s.WindowSeconds != 40 || s.Due != 40 || s.Throughput != 1 {
		t.Errorf("%v requests due in %v s, %v/s", s.Due, s.WindowSeconds, s.Throughput)
	}
}

// Means over repeated runs have Student's intervals: of 10, 20 and 30 it is 20 ± 4.303 × 10 ÷ √3.
func TestConfidence(t *testing.T) {
	got := loadtest.IntervalOf("x", []float64{10, 20, 30})
	if got.Mean != 20 || math.Abs(got.Half-24.843) > 0.001 {
		t.Errorf("%+v", got)
	}
	r := loadtest.NewReport(ran(sampled(60), 1, 1, 1), loadtest.About{Repeats: true, Attain: 0.9,
		SLO: loadtest.SLO{E2E: time.Second}})
	if len(r.Repeated) == 0 || r.Repeated[0].Name != "requests/s" || r.Knee != nil || r.Summary.Due != 60 {
		t.Errorf("%+v, knee %v", r.Repeated, r.Knee)
	}
	var text, page bytes.Buffer
	if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "over 3 runs") {
		t.Errorf("%v: %s", err, &text)
	}
	if err := r.WriteHTML(&page, nil); err != nil || !strings.Contains(page.String(), "Over 3 runs") ||
		!strings.Contains(page.String(), "SLO kept") {
		t.Errorf("%v", err)
	}
}

// What is worse by more than the tolerance is a regression, but no 99th percentile of few values.
func TestRegressions(t *testing.T) {
	of := func(n int, factor float64) *loadtest.Report {
		r := loadtest.NewReport(ran(sampled(n), 1), loadtest.About{})
		r.Summary.OK = n
		r.Summary.TTFT.P99 *= factor
		r.Summary.E2E.P50 *= factor
		return r
	}
	names := func(list []loadtest.Change) (out string) {
		for _, c := range list {
			out += c.Name + ";"
		}
		return out
	}
	for _, c := range []struct {
		n                 int
		factor, tolerance float64
		want              string
	}{
		{100, 1.2, 10, "TTFT p99, ms;E2E p50, ms;"}, {99, 1.2, 10, "E2E p50, ms;"}, {100, 1.2, 25, ""}, {100, 0.5, 10, ""},
		{100, 1.01, 0, ""},
	} {
		if got := names(of(c.n, c.factor).Regressions(of(c.n, 1), c.tolerance)); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// A ledger that was written is read again, and set against the lines of its own test only.
func TestLedger(t *testing.T) {
	samples := sampled(12)
	var log []loadtest.Entry
	for i := range samples {
		samples[i].ID = fmt.Sprintf("bench-a1-%d", 10+i)
		log = append(log, loadtest.Entry{ID: samples[i].ID, Code: "OK", Completion: 4})
	}
	var b bytes.Buffer
	if err := loadtest.WriteLedger(&b, &loadtest.Result{Samples: samples}); err != nil {
		t.Fatal(err)
	}
	read, err := loadtest.ReadLedger(&b)
	if err != nil || len(read) != 12 {
		t.Fatalf("%d, %v", len(read), err)
	}
	others := append(log, loadtest.Entry{ID: "bench-a-10", Code: "OK"}, loadtest.Entry{ID: "x", Code: "OK"})
	if a := loadtest.Reconcile(read, loadtest.OfTest(others, read)); len(a.Problems) > 0 || a.Matched != 12 ||
		a.AnsweredTokens != 48 || a.LoggedTokens != 48 {
		t.Errorf("%+v", a)
	}
	others = append(others, loadtest.Entry{ID: "bench-a1-99", Code: "OK"})
	if a := loadtest.Reconcile(read, loadtest.OfTest(others, read)); len(a.Problems) != 1 {
		t.Errorf("a request of the test that nobody sent: %+v", a.Problems)
	}
	if got := loadtest.OfTest(log, nil); got != nil {
		t.Error(got)
	}
	for _, bad := range []string{"{}", "no", `{"id":"x"}`, "\n"} {
		if _, err := loadtest.ReadLedger(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is a ledger", bad)
		}
	}
}

func FuzzReadLedger(f *testing.F) {
	f.Add([]byte(`{"id":"a-1","code":"OK","output_tokens":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if samples, err := loadtest.ReadLedger(bytes.NewReader(b)); err == nil {
			loadtest.Reconcile(samples, loadtest.OfTest([]loadtest.Entry{{ID: "a-1", Code: "OK"}}, samples))
		}
	})
}
