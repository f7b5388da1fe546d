package loadtest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/loadtest"
	"github.com/mmserve/mmserve/server"
)

// goodput loads a paced server that has room for 8 sequences at a rate, each call with a deadline, and counts the
// answers that were whole by then. Time is a synctest bubble's: the same run always gives the same number.
func goodput(t *testing.T, rate float64, perToken time.Duration, output string,
	deadline time.Duration) loadtest.Summary {
	var s loadtest.Summary
	synctest.Test(t, func(t *testing.T) {
		f := newPaced(t, 8, perToken, 20*time.Millisecond, batching.Options{MaxWaiting: 64, NoPrefixCache: true},
			server.Options{})
		mix := &loadtest.Mix{Prompt: lengths(t, "uniform:20,60"), Output: lengths(t, output), IgnoreEOS: true, Name: "o"}
		const warmUp, d = 15 * time.Second, 75 * time.Second
		r, err := loadtest.Run(t.Context(), loadtest.Config{
			Target: f.target, Schedule: loadtest.Schedule{Stages: []loadtest.Stage{{Rate: rate, Duration: d}},
				Process: process(t, "poisson")},
			Mix: mix, WarmUp: warmUp, Deadline: deadline,
		})
		if err != nil {
			t.Fatal(err)
		}
		s = loadtest.Summarize(r.Samples, warmUp, d, loadtest.SLO{E2E: deadline})
		st := f.engine.Stats()
		t.Logf("due %5.2f/s: good %5.2f/s, attained %5.1f %%, TTFT p50 %4.0f p99 %4.0f ms, %v, wasted %d of %d tokens",
			s.DueRate, s.Goodput, 100*s.Attainment, s.TTFT.P50, s.TTFT.P99, s.Errors,
			st.WastedTokens, st.GeneratedTokens+st.PromptTokens)
	})
	return s
}

// overload gives the goodput at twice the rate where it is best, against that best.
func overload(t *testing.T, perToken time.Duration, output string, rates ...float64) float64 {
	const deadline = 3 * time.Second
	var peak, saturating float64
	for _, rate := range rates {
		if s := goodput(t, rate, perToken, output, deadline); s.Goodput > peak {
			peak, saturating = s.Goodput, rate
		}
	}
	over := goodput(t, 2*saturating, perToken, output, deadline)
	t.Logf("best goodput %.2f/s at %.2f/s due; at twice that rate %.2f/s, %.1f %%", peak, saturating, over.Goodput, 100*over.Goodput/peak)
	return over.Goodput / peak
}

// TestGoodputUnderOverload holds that a server that gets twice what it can carry goes on doing what it can, whether an
// answer is its first token or takes a large part of the deadline.
func TestGoodputUnderOverload(t *testing.T) {
	all := []struct {
		perToken time.Duration
		output   string
		rates    []float64 // the best is among them
	}{
		{2 * time.Millisecond, "1", []float64{5, 6}},
		{500 * time.Microsecond, "uniform:1,4", []float64{14, 17}},
		{500 * time.Microsecond, "uniform:10,50", []float64{7, 8}},
	}
	for _, c := range all[:racetest.Part(len(all))] {
		if share := overload(t, c.perToken, c.output, c.rates...); share < 0.95 {
			t.Errorf("answers of %s tokens: goodput at twice the saturating rate is %.1f %% of the best, want 95 %% or more", c.output, 100*share)
		}
	}
}

// TestKnee holds that a search finds, within one step, the knee that trying every rate finds.
func TestKnee(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the same server again and again; make test runs this without the race detector")
	}
	attained := func(rate float64, seed uint64) (share float64) {
		synctest.Test(t, func(t *testing.T) {
			f := newPaced(t, 4, 500*time.Microsecond, 20*time.Millisecond,
				batching.Options{MaxWaiting: 1000, NoPrefixCache: true}, server.Options{})
			mix := &loadtest.Mix{Prompt: lengths(t, "uniform:20,60"), Output: lengths(t, "uniform:5,15"), IgnoreEOS: true,
				Name: "k"}
			const warmUp, d = 5 * time.Second, 30 * time.Second
			r, err := loadtest.Run(t.Context(), loadtest.Config{
				Target: f.target, Schedule: loadtest.Schedule{Stages: []loadtest.Stage{{Rate: rate, Duration: d}},
					Process: process(t, "poisson")}, Mix: mix, WarmUp: warmUp, Seed: seed,
			})
			if err != nil {
				t.Fatal(err)
			}
			share = loadtest.Summarize(r.Samples, warmUp, d, loadtest.SLO{TTFT: time.Second}).Attainment
		})
		t.Logf("%.2f requests/s: %.1f %%", rate, 100*share)
		return share
	}
	search := loadtest.Search{From: 3, To: 40, Ratio: 1.3, Attain: 0.95}
	found, err := search.Find(t.Context(), func(_ context.Context, rate float64) (float64,
		error) {
		return attained(rate, 1), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var swept float64
	for rate := search.From; attained(rate, 2) >= search.Attain; rate *= search.Ratio {
		swept = rate
	}
	t.Logf("the search says %.2f requests/s, the sweep %.2f", found.Rate, swept)
	if found.Rate > swept*search.Ratio*1.001 || found.Rate < swept/search.Ratio/1.001 {
		t.Errorf("the search says %.2f requests/s, the sweep %.2f: more than a step of %v apart", found.Rate, swept, search.Ratio)
	}
}
