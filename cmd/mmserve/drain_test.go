package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// What a shutdown takes by default fits into what the process is given, and what does not fit is refused.
func TestDrainTimes(t *testing.T) {
	of := func(d time.Duration) *time.Duration { return &d }
	const s = time.Second
	for _, c := range []struct {
		name   string
		flags  drainFlags
		pod    bool
		want   drainTimes
		refuse string // the error says it
		warns  bool
	}{
		{"alone", drainFlags{}, false, drainTimes{0, 30 * s}, "", false},
		{"alone, given", drainFlags{DrainDelay: of(2 * s), Grace: of(9 * s)}, false, drainTimes{2 * s, 9 * s}, "", false},
		{"in a pod", drainFlags{}, true, drainTimes{5 * s, 20 * s}, "", false},
		{"in a pod, no delay", drainFlags{DrainDelay: of(0)}, true, drainTimes{0, 25 * s}, "", false},
		{"in a pod, more than it may have", drainFlags{Grace: of(60 * s)}, true, drainTimes{5 * s, 60 * s}, "", true},
		{"in a pod, only delay", drainFlags{DrainDelay: of(60 * s)}, true, drainTimes{60 * s, 30 * s}, "", true},
		{"a period", drainFlags{TerminationGracePeriod: 120 * s}, true, drainTimes{5 * s, 110 * s}, "", false},
		{"a period without a pod", drainFlags{TerminationGracePeriod: 12 * s}, false, drainTimes{2 * s, 5 * s}, "", false},
		{"that just fits", drainFlags{TerminationGracePeriod: 20 * s, DrainDelay: of(5 * s), Grace: of(10 * s)}, false,
			drainTimes{5 * s, 10 * s}, "", false},
		{"one that does not", drainFlags{TerminationGracePeriod: 20 * s, DrainDelay: of(5 * s), Grace: of(11 * s)}, false,
			drainTimes{}, "--termination-grace-period 20s: want at least --drain-delay 5s, --grace 11s and 5s", false},
		{"too short", drainFlags{TerminationGracePeriod: 5 * s}, false, drainTimes{}, "--termination-grace-period 5s: want", false},
		{"too long", drainFlags{TerminationGracePeriod: 48 * time.Hour}, false, drainTimes{}, "want 0s to 24h0m0s", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.pod {
				t.Setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
			}
			err := c.flags.check()
			if c.refuse != "" {
				if err == nil || !strings.Contains(err.Error(), c.refuse) {
					t.Fatalf("got %v, want an error that says %q", err, c.refuse)
				}
				return
			}
			var log bytes.Buffer
			got := c.flags.times(slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil || got != c.want || (log.Len() > 0) != c.warns {
				t.Errorf("got %v, %v, %s; want %v", got, err, &log, c.want)
			}
		})
	}
}
