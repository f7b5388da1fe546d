package main

import (
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

func whole(id string, sent, first, ended float64) outcome {
	return outcome{ID: id, Code: "OK", Sent: sent, First: first, Ended: ended, Starts: 1, Finishes: 1, Received: 5,
		Completion: 5}
}

// Each way in which a stream can go wrong is seen.
func TestJudge(t *testing.T) {
	change := func(do func(*outcome)) outcome {
		o := whole("a", 100, 110, 200)
		do(&o)
		return o
	}
	lost := func(first float64) outcome {
		return change(func(o *outcome) { o.Code, o.First, o.Finishes, o.Received = "UNAVAILABLE", first, 0, 2 })
	}
	once, twice := []loadtest.Entry{{ID: "a", Code: "OK"}}, []loadtest.Entry{{ID: "a", Code: "OK"}, {ID: "a", Code: "OK"}}
	retried := []loadtest.Entry{{ID: "a", Code: "Unavailable"}, {ID: "a", Code: "OK"}}
	for name, c := range map[string]struct {
		o      outcome
		log    []loadtest.Entry
		killed float64
		want   string // part of the failures; empty: none
		v      verdict
	}{
		"whole":               {whole("a", 100, 110, 200), once, 0, "", verdict{Sent: 1, OK: 1}},
		"whole after a retry": {whole("a", 100, 110, 200), retried, 0, "", verdict{Sent: 1, OK: 1}},
		"answered twice":      {whole("a", 100, 110, 200), twice, 0, "1 repeated", verdict{Sent: 1, Repeated: 1}},
		"two starts": {change(func(o *outcome) { o.Starts = 2 }), once, 0, "1 repeated",
			verdict{Sent: 1, Repeated: 1}},
		"two finishes": {change(func(o *outcome) { o.Finishes = 2 }), once, 0, "1 repeated",
			verdict{Sent: 1, Repeated: 1}},
		"too many tokens": {change(func(o *outcome) { o.Received = 6 }), once, 0, "1 repeated",
			verdict{Sent: 1, Repeated: 1}},
		"too few tokens": {change(func(o *outcome) { o.Received = 4 }), once, 0, "1 not whole",
			verdict{Sent: 1, Short: 1}},
		"counted short": {change(func(o *outcome) { o.Completion = 4 }), once, 0, "1 not whole",
			verdict{Sent: 1, Short: 1}},
		"no finish": {change(func(o *outcome) { o.Finishes = 0 }), once, 0, "1 not whole",
			verdict{Sent: 1, Short: 1}},
		"no start": {change(func(o *outcome) { o.Starts = 0 }), once, 0, "1 not whole",
			verdict{Sent: 1, Short: 1}},
		"in no log":            {whole("a", 100, 110, 200), nil, 0, "1 not whole", verdict{Sent: 1, Short: 1}},
		"lost":                 {lost(0), nil, 0, "1 lost", verdict{Sent: 1, Lost: 1, Unbegun: 1}},
		"cut":                  {lost(110), nil, 0, "1 lost", verdict{Sent: 1, Lost: 1, Cut: 1}},
		"lost at the kill":     {lost(0), nil, 150, "1 lost", verdict{Sent: 1, Lost: 1, Unbegun: 1}},
		"cut by the kill":      {lost(110), nil, 150, "", verdict{Sent: 1, Lost: 1, Cut: 1, Mid: 1}},
		"cut before the kill":  {lost(110), nil, 250, "1 lost", verdict{Sent: 1, Lost: 1, Cut: 1}},
		"begun after the kill": {lost(160), nil, 150, "1 lost", verdict{Sent: 1, Lost: 1, Cut: 1}},
	} {
		v := judge([]outcome{c.o}, c.log, 5, c.killed)
		got := strings.Join(v.failures(1, false), "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: failures %q, want %q", name, got, c.want)
		}
		v.Problems, v.P99Before, v.P99After = nil, 0, 0
		if v.Sent != c.v.Sent || v.OK != c.v.OK || v.Lost != c.v.Lost || v.Unbegun != c.v.Unbegun || v.Cut != c.v.Cut ||
			v.Mid != c.v.Mid || v.Repeated != c.v.Repeated || v.Short != c.v.Short {
			t.Errorf("%s: %+v, want %+v", name, v, c.v)
		}
	}
	if got := judge(nil, nil, 5, 0).failures(1, false); len(got) != 1 {
		t.Errorf("nothing came: %q", got)
	}
}

// Latencies count from ten seconds after a kill, against those before it.
func TestJudgeRecovery(t *testing.T) {
	const killed = 20_000
	run := func(after float64) []string {
		var list []outcome
		var log []loadtest.Entry
		for i := range 400 {
			sent := float64(i) * 100
			took := 500.0
			switch {
			case sent > killed+ms(recovery):
				took = after
			case sent+took >= killed:
				took = 8000 // while it recovers all is allowed
			}
			o := whole(string(rune('a'+i)), sent, sent+10, sent+took)
			list, log = append(list, o), append(log, loadtest.Entry{ID: o.ID, Code: "OK"})
		}
		v := judge(list, log, 5, killed)
		if v.P99Before != 500*time.Millisecond || v.P99After != time.Duration(after)*time.Millisecond {
			t.Errorf("p99 %v and %v", v.P99Before, v.P99After)
		}
		return v.failures(400, true)
	}
	if got := run(600); len(got) > 0 {
		t.Error(got)
	}
	if got := run(900); len(got) != 1 || !strings.Contains(got[0], "p99 is 900ms") {
		t.Error(got)
	}
}
