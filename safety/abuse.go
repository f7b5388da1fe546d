package safety

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// AbuseRules say when callers are quarantined, and for how long.
type AbuseRules struct {
	// Window is the time over which signals are counted.
	Window time.Duration
	// Quarantine is how long the first one of a caller is; each next one is twice as long, up to Longest.
	Quarantine, Longest time.Duration
	// Appeal says, in the operator's words, what a caller can do who thinks that this is wrong.
	Appeal string
	// FlagOnly has what would be a quarantine counted and told, and refuses nothing.
	FlagOnly bool

	limits [numScopes]AbuseLimits
	exempt map[string]bool // tenants
}

// AbuseLimits are the most of each signal within the window. Zero sets no limit.
type AbuseLimits struct {
	// Requests and Refusals are numbers of requests, the latter of those that the content policy refused or cut.
	Requests, Refusals int
	// RefusalRate is the share of refusals, from minRated requests on.
	RefusalRate float64
	// Similar is the number of prompts that are nearly the same as one of the latest.
	Similar int
}

// AbuseScope is what of a caller is counted and quarantined.
type AbuseScope int

// The scopes.
const (
	AbuseKey    AbuseScope = iota // a credential
	AbuseTenant                   // all credentials of a tenant
	AbuseHost                     // callers without either, by the host that they call from
	numScopes
)

var scopeNames = [numScopes]string{"key", "tenant", "host"}

// String is the scope as policies and metrics write it.
func (s AbuseScope) String() string { return scopeNames[s] }

// AbuseSignal is why a caller is quarantined.
type AbuseSignal int

// The signals.
const (
	AbuseRequests AbuseSignal = iota
	AbuseRefusals
	AbuseRefusalRate
	AbuseSimilar
	numSignals
)

var signalNames = [numSignals]string{"requests", "refusals", "refusal_rate", "similar"}

// String is the signal as policies and metrics write it.
func (s AbuseSignal) String() string { return signalNames[s] }

// AbuseSignals are all of them.
func AbuseSignals() []AbuseSignal {
	return []AbuseSignal{AbuseRequests, AbuseRefusals, AbuseRefusalRate, AbuseSimilar}
}

// AbuseScopes are all of them.
func AbuseScopes() []AbuseScope { return []AbuseScope{AbuseKey, AbuseTenant, AbuseHost} }

// Reason says in general terms what a signal is of. It names no limit, which would tell how to stay below it.
func (s AbuseSignal) Reason() string {
	return [numSignals]string{
		"unusually many requests", "many requests that the content policy refused",
		"a large share of requests that the content policy refused", "many prompts that are nearly the same",
	}[s]
}

// minRated is the least number of requests in a window of which a share of refusals means anything.
const minRated = 20

// Bounds of what a policy file may say about abuse.
const (
	maxAbuseLimit = 1_000_000_000
	minWindow     = time.Second
	maxWindow     = 24 * time.Hour
	minQuarantine = time.Second
	maxQuarantine = 30 * 24 * time.Hour
	maxAppeal     = 512 // it travels in a header of HTTP/2
)

// readAbuse takes the section abuse.
func (p *Policy) readAbuse(n *yaml.Node, path string) error {
	a := &AbuseRules{Window: 10 * time.Minute, Quarantine: 15 * time.Minute, Longest: 24 * time.Hour,
		exempt: map[string]bool{}}
	longest := false
	known := map[string]func(*yaml.Node, string) error{
		"window": func(n *yaml.Node, path string) (err error) {
			a.Window, err = duration(n, path, minWindow, maxWindow)
			return err
		},
		"quarantine": func(n *yaml.Node, path string) (err error) {
			a.Quarantine, err = duration(n, path, minQuarantine, maxQuarantine)
			return err
		},
		"longest": func(n *yaml.Node, path string) (err error) {
			longest = true
			a.Longest, err = duration(n, path, minQuarantine, maxQuarantine)
			return err
		},
		"appeal": func(n *yaml.Node, path string) (err error) {
			a.Appeal, err = scalar(n, path, maxAppeal)
			return err
		},
		"action": func(n *yaml.Node, path string) error {
			i, err := choice(n, path, []string{"quarantine", "flag"})
			a.FlagOnly = i == 1
			return err
		},
		"exempt": func(n *yaml.Node, path string) error {
			return list(n, path, maxTenants, func(n *yaml.Node, path string) error {
				name, err := scalar(n, path, 128)
				a.exempt[name] = true
				return err
			})
		},
	}
	limits := 0
	for scope := range a.limits {
		known[scopeNames[scope]] = func(n *yaml.Node, path string) error {
			limits++
			return a.limits[scope].read(n, path)
		}
	}
	if err := fields(n, path, known); err != nil {
		return err
	}
	if limits == 0 {
		return wrong(n, path, "want key, tenant or host, with limits")
	}
	if a.Longest < a.Quarantine {
		if longest {
			return wrong(n, path, "longest: %v; want at least quarantine, which is %v", a.Longest, a.Quarantine)
		}
		a.Longest = a.Quarantine
	}
	p.Abuse = a
	return nil
}

// read takes the limits of a scope.
func (l *AbuseLimits) read(n *yaml.Node, path string) error {
	count := func(to *int) func(*yaml.Node, string) error {
		return func(n *yaml.Node, path string) error {
			v, err := strconv.Atoi(n.Value)
			if n.Kind != yaml.ScalarNode || err != nil || v < 1 || v > maxAbuseLimit {
				return wrong(n, path, "%.40q; want a whole number of 1 to %d", n.Value, maxAbuseLimit)
			}
			*to = v
			return nil
		}
	}
	err := fields(n, path, map[string]func(*yaml.Node, string) error{
		signalNames[AbuseRequests]: count(&l.Requests),
		signalNames[AbuseRefusals]: count(&l.Refusals),
		signalNames[AbuseSimilar]:  count(&l.Similar),
		signalNames[AbuseRefusalRate]: func(n *yaml.Node, path string) (err error) {
			if l.RefusalRate, err = share(n, path); err == nil && l.RefusalRate == 0 {
				err = wrong(n, path, "0; want more, or no line")
			}
			return err
		},
	})
	if err == nil && *l == (AbuseLimits{}) {
		err = wrong(n, path, "want limits: requests, refusals, refusal_rate, similar")
	}
	return err
}

// duration is a time such as 90s, 10m or 24h.
func duration(n *yaml.Node, path string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || d < least || d > most {
		return 0, wrong(n, path, "%.40q; want a time of %v to %v, as 90s, 10m or 24h", n.Value, least, most)
	}
	return d, nil
}

// beyond is the first signal whose limit is passed, if one is.
func (l *AbuseLimits) beyond(requests, refusals, similar float64) (AbuseSignal, bool) {
	over := func(n float64, limit int) bool { return limit > 0 && math.Floor(n) > float64(limit) }
	switch {
	case over(refusals, l.Refusals):
		return AbuseRefusals, true
	case l.RefusalRate > 0 && requests >= minRated && refusals > l.RefusalRate*requests:
		return AbuseRefusalRate, true
	case over(similar, l.Similar):
		return AbuseSimilar, true
	case over(requests, l.Requests):
		return AbuseRequests, true
	}
	return 0, false
}

// Actor is whom signals are counted of: a key of a tenant, a tenant, or a host.
type Actor struct {
	Scope AbuseScope
	// Tenant is set of keys and tenants, Key of keys, Host of hosts.
	Tenant, Key, Host string
}

// String names the actor for operators.
func (a Actor) String() string {
	switch a.Scope {
	case AbuseKey:
		return fmt.Sprintf("key %q of tenant %q", a.Key, a.Tenant)
	case AbuseTenant:
		return fmt.Sprintf("tenant %q", a.Tenant)
	}
	return fmt.Sprintf("host %q", a.Host)
}
