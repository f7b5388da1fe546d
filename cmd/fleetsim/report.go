package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// result is what became of the calls of a run that were sent in a window.
type result struct {
	Calls, Answered, Refused, Cut, Retried int

	PerSecond             float64 // answered
	TTFT, E2E             quantiles
	ImageHits, PrefixHits float64 // parts of images and of prompt tokens that a cache had
	Busy                  float64 // part of the replicas' time in which the engine had something to do
	Replicas              int     // at the end
	Peak                  int     // with those that were starting
	CostPerMillion        float64 // answers

	promptTokens, hitIDs int
	images, cachedImages int
	first, whole         []time.Duration
}

type quantiles struct{ Mean, P50, P90, P95, P99 time.Duration }

func quantilesOf(list []time.Duration) (q quantiles) {
	if len(list) == 0 {
		return q
	}
	slices.SortFunc(list, cmp.Compare[time.Duration])
	var sum time.Duration
	for _, d := range list {
		sum += d
	}
	at := func(p float64) time.Duration { return list[max(0, int(math.Ceil(p*float64(len(list))))-1)] }
	return quantiles{sum / time.Duration(len(list)), at(0.5), at(0.9), at(0.95), at(0.99)}
}

// summarize sums up the calls that were sent in [from, to).
func summarize(calls []*call, from, to time.Duration) *result {
	r := new(result)
	for _, c := range calls {
		if c.sent < from || c.sent >= to {
			continue
		}
		r.Calls++
		if c.tries > 1 {
			r.Retried++
		}
		switch c.outcome {
		case answered:
			r.Answered++
		case refused:
			r.Refused++
			continue
		case cut:
			r.Cut++
			continue
		default:
			continue // under way at the end
		}
		r.first, r.whole = append(r.first, c.first-c.sent), append(r.whole, c.ended-c.sent)
		r.promptTokens += len(c.ids)
		r.hitIDs += c.cachedTokens
		if c.image != 0 {
			r.images++
			if c.imageCached {
				r.cachedImages++
			}
		}
	}
	r.TTFT, r.E2E = quantilesOf(r.first), quantilesOf(r.whole)
	r.PerSecond = float64(r.Answered) / (to - from).Seconds()
	r.PrefixHits, r.ImageHits = share(r.hitIDs, r.promptTokens), share(r.cachedImages, r.images)
	return r
}

func share(part, whole int) float64 { return float64(part) / float64(max(1, whole)) }

// recovered is how long after a time the p99 of first tokens, in windows of 5 s, is within 1.5 times what it was
// before, for good; 0 if it always was, below 0 if it never is again.
func recovered(calls []*call, from, at, to time.Duration) time.Duration {
	const window = 5 * time.Second
	p99 := func(a, b time.Duration) time.Duration { return summarize(calls, a, b).TTFT.P99 }
	most := p99(from, at) * 3 / 2
	var late time.Duration
	for t := at; t+window <= to; t += window {
		if p99(t, t+window) > most {
			late = t + window - at
		}
	}
	if at+late+window > to {
		return -1
	}
	return late
}

// heading and line are a table of results in Markdown.
func heading(w io.Writer) {
	fmt.Fprintln(w, "| run | replicas | answered/s | refused | cut | TTFT p50 | p95 | p99 | whole p50 | p99, ms | images cached | prompt cached | busy | $ a million |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
}

func (r *result) line(w io.Writer, name string) {
	n := fmt.Sprint(r.Replicas)
	if r.Peak > r.Replicas {
		n += fmt.Sprintf(" (most %d)", r.Peak)
	}
	fmt.Fprintf(w, "| %s | %s | %.1f | %d | %d | %d | %d | %d | %d | %d | %.0f %% | %.0f %% | %.0f %% | %.0f |\n", name, n, r.PerSecond,
		r.Refused, r.Cut, r.TTFT.P50.Milliseconds(), r.TTFT.P95.Milliseconds(), r.TTFT.P99.Milliseconds(),
		r.E2E.P50.Milliseconds(), r.E2E.P99.Milliseconds(), 100*r.ImageHits, 100*r.PrefixHits, 100*r.Busy, r.CostPerMillion)
}
