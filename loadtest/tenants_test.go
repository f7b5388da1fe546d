package loadtest_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/loadtest"
	"github.com/mmserve/mmserve/server"
)

// asking is what a tenant asks for: so many answers a second, of so many tokens.
type asking struct {
	rate   float64
	output string
	weight float64
}

// besides is what a tenant of a paced server of 16 slots gets, alone or beside one that floods. Time is a synctest
// bubble's, so that the machine has no part in it.
func besides(t *testing.T, me, flood asking) (mine, theirs loadtest.Summary) {
	synctest.Test(t, func(t *testing.T) {
		f := newPaced(t, 16, 500*time.Microsecond, 20*time.Millisecond, batching.Options{
			MaxWaiting: 64, NoPrefixCache: true, TenantWeights: map[string]float64{"me": me.weight, "flood": flood.weight},
		}, server.Options{})
		const warmUp, d = 15 * time.Second, 65 * time.Second
		run := func(tenant string, a asking, to *loadtest.Summary) {
			r, err := loadtest.Run(t.Context(), loadtest.Config{
				Target: f.target, Schedule: loadtest.Schedule{Stages: []loadtest.Stage{{Rate: a.rate, Duration: d}},
					Process: process(t, "poisson")},
				Mix: &loadtest.Mix{Prompt: lengths(t, "uniform:20,60"), Output: lengths(t, a.output), IgnoreEOS: true,
					Name: tenant, Tenants: []loadtest.Weighted{{Value: tenant, Weight: 1}}},
				WarmUp: warmUp, Seed: 7,
			})
			if err != nil {
				t.Error(err)
				return
			}
			*to = loadtest.Summarize(r.Samples, warmUp, d, loadtest.SLO{TTFT: 2 * time.Second, TPOT: 60 * time.Millisecond})
		}
		var group sync.WaitGroup
		group.Go(func() { run("me", me, &mine) })
		if flood.rate > 0 {
			group.Go(func() { run("flood", flood, &theirs) })
		}
		group.Wait()
		t.Logf("%v beside %v: good %.2f/s, attained %5.1f %%, TTFT p50 %4.0f p99 %4.0f ms, %v; the flood got %.2f/s",
			me, flood, mine.Goodput, 100*mine.Attainment, mine.TTFT.P50, mine.TTFT.P99, mine.Errors, theirs.Throughput)
	})
	return mine, theirs
}

// TestFloodCostsOthersLittle holds that at equal weights a tenant that asks for less than its half of the server loses
// no more than a tenth of its goodput to one that asks for far more, whoever's answers are the longer ones.
func TestFloodCostsOthersLittle(t *testing.T) {
	all := []struct{ me, flood asking }{
		{asking{3.5, "uniform:20,80", 1}, asking{40, "uniform:20,80", 1}},
		{asking{4, "uniform:5,15", 1}, asking{40, "uniform:300,400", 1}},
		{asking{1, "uniform:200,300", 1}, asking{40, "uniform:5,15", 1}},
	}
	for _, c := range all[:racetest.Part(len(all))] {
		alone, _ := besides(t, c.me, asking{})
		with, theirs := besides(t, c.me, c.flood)
		if with.Goodput < 0.9*alone.Goodput {
			t.Errorf("%v beside %v: %.2f/s are good, alone %.2f/s", c.me, c.flood, with.Goodput, alone.Goodput)
		}
		if theirs.Throughput == 0 || theirs.Errors["RESOURCE_EXHAUSTED"] == 0 {
			t.Errorf("%v was no flood: %+v", c.flood, theirs)
		}
	}
}

// TestWeightsShareTheServer holds that tenants that both ask for more than there is get tokens as their weights are.
func TestWeightsShareTheServer(t *testing.T) {
	for _, weight := range []float64{3, 1}[:racetest.Part(2)] {
		mine, theirs := besides(t, asking{20, "uniform:20,80", weight}, asking{20, "uniform:20,80", 1})
		if got := mine.OutputRate / theirs.OutputRate; got < 0.85*weight || got > 1.15*weight {
			t.Errorf("with %v times the weight it gets %.2f times the tokens", weight, got)
		}
	}
}
