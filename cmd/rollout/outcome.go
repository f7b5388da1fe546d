package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

// outcome is a stream as its sender saw it. Times are milliseconds of the wall clock, 0 where it did not happen.
type outcome struct {
	ID         string  `json:"id"`
	Code       string  `json:"code"` // OK, or gRPC's name of the error
	Error      string  `json:"error"`
	Sent       float64 `json:"sent"`
	First      float64 `json:"first"` // its first event
	Ended      float64 `json:"ended"`
	Starts     int     `json:"starts"`
	Finishes   int     `json:"finishes"`
	Received   int     `json:"received"`   // tokens that its deltas told of
	Completion int     `json:"completion"` // tokens by its finish
}

// verdict counts what became of the streams of a run.
type verdict struct {
	Sent, OK int
	// Lost streams ended with an error, before the first token (Unbegun) or after it (Cut); of those, Mid were under way
	// when a server was killed.
	Lost, Unbegun, Cut, Mid int
	// Repeated streams were answered by two servers, or had an event twice; Short ones lack tokens.
	Repeated, Short int
	// P99Before is that of the time to the end of streams sent before the kill, P99After of those sent recovery after it.
	P99Before, P99After time.Duration
	Problems            []string
}

// recovery is how long after a kill latencies have to be what they were.
const recovery = 10 * time.Second

// judge sets the outcomes against the servers' logs. killed is when a server was killed, in milliseconds; 0: none was.
func judge(outcomes []outcome, log []loadtest.Entry, tokens int, killed float64) verdict {
	v := verdict{Sent: len(outcomes)}
	answered := map[string]int{}
	for _, e := range log {
		if e.Code == "OK" {
			answered[e.ID]++
		}
	}
	for _, o := range outcomes {
		switch {
		case o.Code != "OK":
			v.lose(o, killed)
		case o.Starts > 1 || o.Finishes > 1 || o.Received > tokens || answered[o.ID] > 1:
			v.Repeated++
			v.problem("%s: %d starts, %d finishes, %d tokens, %d lines in the logs", o.ID, o.Starts, o.Finishes, o.Received,
				answered[o.ID])
		case o.Starts != 1 || o.Finishes != 1 || o.Received != tokens || o.Completion != tokens || answered[o.ID] != 1:
			v.Short++
			v.problem("%s: %d starts, %d finishes, %d tokens of %d, %d lines in the logs", o.ID, o.Starts, o.Finishes,
				o.Received, tokens, answered[o.ID])
		default:
			v.OK++
		}
	}
	if killed > 0 {
		v.P99Before = p99(outcomes, func(o outcome) bool { return o.Ended < killed })
		v.P99After = p99(outcomes, func(o outcome) bool { return o.Sent > killed+ms(recovery) })
	}
	return v
}

func (v *verdict) lose(o outcome, killed float64) {
	v.Lost++
	began := "before its first token"
	if o.First > 0 {
		v.Cut++
		began = "in its text"
	} else {
		v.Unbegun++
	}
	if o.First > 0 && o.First <= killed && o.Ended >= killed {
		v.Mid++
		return
	}
	v.problem("%s: %s %s, %.0f ms after it was sent: %s", o.ID, o.Code, began, o.Ended-o.Sent, o.Error)
}

func (v *verdict) problem(format string, args ...any) {
	if len(v.Problems) < 20 {
		v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
	}
}

// failures are what must not be. sent is how many streams there had to be.
func (v verdict) failures(sent int, killed bool) (list []string) {
	fail := func(bad bool, format string, args ...any) {
		if bad {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	fail(v.Sent != sent, "%d streams ended, want %d", v.Sent, sent)
	fail(v.Lost > v.Mid, "%d lost that were not in their text at a killed server", v.Lost-v.Mid)
	fail(v.Repeated > 0, "%d repeated", v.Repeated)
	fail(v.Short > 0, "%d not whole", v.Short)
	if killed {
		// One stream in a hundred decides; the machine runs the senders too.
		most := max(3*v.P99Before/2, v.P99Before+200*time.Millisecond)
		fail(v.P99After > most, "p99 is %v, %v after the kill; it was %v", v.P99After, recovery, v.P99Before)
		fail(v.P99Before == 0 || v.P99After == 0, "no stream ended before the kill, or none was sent %v after it", recovery)
	}
	return list
}

// p99 is the 99th percentile of the times from send to end of whole answers, 0 if there is none.
func p99(outcomes []outcome, of func(outcome) bool) time.Duration {
	var list []float64
	for _, o := range outcomes {
		if o.Code == "OK" && of(o) {
			list = append(list, o.Ended-o.Sent)
		}
	}
	if len(list) == 0 {
		return 0
	}
	slices.SortFunc(list, cmp.Compare[float64])
	i := int(math.Ceil(0.99*float64(len(list)))) - 1
	return time.Duration(list[i] * float64(time.Millisecond)).Round(time.Millisecond)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
