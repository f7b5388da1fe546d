package main

import (
	"fmt"
	"log/slog"
	"os"
	"time"
)

// drainFlags say how long a shutdown takes.
type drainFlags struct {
	DrainDelay             *time.Duration `placeholder:"TIME" env:"MMSERVE_DRAIN_DELAY" help:"How long to go on serving after turning NOT_SERVING, for load balancers to see it (default: 0s; within a termination grace period a sixth of it, at most 5s)."`
	Grace                  *time.Duration `placeholder:"TIME" env:"MMSERVE_GRACE" help:"How long running requests may take to finish on shutdown; the others end with UNAVAILABLE (default: 30s; within a termination grace period what --drain-delay and 5s leave of it)."`
	TerminationGracePeriod time.Duration  `placeholder:"TIME" env:"MMSERVE_TERMINATION_GRACE_PERIOD" help:"How long after SIGTERM the process is killed: --drain-delay, --grace and 5s have to fit (default: in Kubernetes its default, 30s; elsewhere unknown)."`
}

const (
	// defaultGrace is --grace where nothing says when the process is killed.
	defaultGrace = 30 * time.Second
	// kubernetesPeriod is the default of a pod's terminationGracePeriodSeconds.
	kubernetesPeriod = 30 * time.Second
	// longestDelay is the most that --drain-delay is by default: endpoints and probes take a few seconds.
	longestDelay = 5 * time.Second
	// endTime is what a process takes after its grace: cut answers are told, models are closed.
	endTime = 5 * time.Second
)

// drainTimes are the two halves of a shutdown.
type drainTimes struct{ delay, grace time.Duration }

// check refuses times that are out of range or do not fit.
func (f drainFlags) check() error {
	for _, c := range []struct {
		flag  string
		value *time.Duration
		least time.Duration
	}{
		{"--drain-delay", f.DrainDelay, 0}, {"--grace", f.Grace, time.Millisecond},
		{"--termination-grace-period", &f.TerminationGracePeriod, 0},
	} {
		if c.value != nil && (*c.value < c.least || *c.value > maxDuration) {
			return fmt.Errorf("%s %v: want %v to %v", c.flag, *c.value, c.least, maxDuration)
		}
	}
	if p := f.TerminationGracePeriod; p > 0 {
		if t := f.within(p); t.grace < time.Millisecond || t.delay+t.grace+endTime > p {
			return fmt.Errorf("--termination-grace-period %v: want at least --drain-delay %v, --grace %v and %v together",
				p, t.delay, max(t.grace, time.Millisecond), endTime)
		}
	}
	return nil
}

// times are those in effect. They warn where the flags give more than Kubernetes does by default.
func (f drainFlags) times(log *slog.Logger) drainTimes {
	period := f.TerminationGracePeriod
	if _, pod := os.LookupEnv("KUBERNETES_SERVICE_HOST"); pod && period == 0 {
		period = kubernetesPeriod
		if t := f.within(period); t.grace <= 0 || t.delay+t.grace+endTime > period {
			log.Warn("a pod is killed 30 s after SIGTERM unless its terminationGracePeriodSeconds says otherwise: give"+
				" --termination-grace-period the same", "drain_delay", t.delay, "grace", t.grace)
		}
	}
	t := f.within(period)
	if t.grace <= 0 { // within a period that is only assumed
		t.grace = defaultGrace
	}
	return t
}

// within are the times for a process that is killed after period; 0 is unknown.
func (f drainFlags) within(period time.Duration) drainTimes {
	t := drainTimes{grace: defaultGrace}
	if period > 0 {
		t.delay = min(longestDelay, period/6)
	}
	if f.DrainDelay != nil {
		t.delay = *f.DrainDelay
	}
	if period > 0 {
		t.grace = period - t.delay - endTime
	}
	if f.Grace != nil {
		t.grace = *f.Grace
	}
	return t
}
