package loadtest

import (
	"fmt"
	"strings"
	"time"
)

// SLO is what an answer has to keep to count as good; 0: no such promise.
type SLO struct {
	TTFT, TPOT, E2E time.Duration
}

// ParseSLO reads ttft=500ms,tpot=80ms,e2e=5s, any of them.
func ParseSLO(s string) (SLO, error) {
	var o SLO
	fields := map[string]*time.Duration{"ttft": &o.TTFT, "tpot": &o.TPOT, "e2e": &o.E2E}
	for part := range strings.SplitSeq(s, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		field := fields[name]
		d, err := time.ParseDuration(value)
		if field == nil || err != nil || d <= 0 {
			return o, fmt.Errorf("SLO %q: want ttft=500ms,tpot=80ms,e2e=5s, or some of these", s)
		}
		*field = d
	}
	return o, nil
}

// String is the form that ParseSLO reads.
func (o SLO) String() string {
	var parts []string
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"ttft", o.TTFT}, {"tpot", o.TPOT}, {"e2e", o.E2E}} {
		if f.d > 0 {
			parts = append(parts, f.name+"="+f.d.String())
		}
	}
	return strings.Join(parts, ",")
}

// Met says whether a request got its whole answer within the SLO, counted from when it was due. An answer of one token
// has no TPOT to miss.
func (o SLO) Met(s *Sample) bool {
	if !s.ok() {
		return false
	}
	if o.E2E > 0 && s.E2E() > o.E2E {
		return false
	}
	if ttft, ok := s.TTFT(); o.TTFT > 0 && (!ok || ttft > o.TTFT) {
		return false
	}
	tpot, ok := s.TPOT()
	return o.TPOT == 0 || !ok || tpot <= o.TPOT
}

// of is the bound of a measure as ParseSLO names it, 0 if there is none.
func (o SLO) of(measure string) time.Duration {
	return map[string]time.Duration{"ttft": o.TTFT, "tpot": o.TPOT, "e2e": o.E2E}[measure]
}
