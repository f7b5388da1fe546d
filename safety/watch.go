package safety

import (
	lru "container/list"
	"crypto/rand"
	"slices"
	"sync"
	"time"
)

// Bounds of a watch's memory: about 1.5 kB an actor.
const (
	maxActors       = 8192 // that are not quarantined; the least recently seen are forgotten
	maxQuarantined  = 4096 // the oldest quarantines end early
	maxRecentPrints = 64   // of each actor
)

// Watch counts signals of abuse and quarantines callers by the rules of a policy file, which may change. It holds names
// and numbers, never content. Its methods may be called concurrently; those of nil watch nothing.
type Watch struct {
	rules func() *AbuseRules
	told  func(Quarantine)

	mu     sync.Mutex
	actors map[Actor]*watched
	idle   lru.List // of *watched that are not quarantined, the least recently seen first
	held   lru.List // of those that are, the oldest first
}

// watched is what is known of an actor.
type watched struct {
	Actor
	requests, refusals, similar counter
	recent                      []Print // a ring
	next                        int     // in recent
	strikes                     int     // quarantines so far
	quarantine                  Quarantine
	place                       *lru.Element
	within                      *lru.List
}

// Quarantine is a caller's time without answers.
type Quarantine struct {
	Actor  Actor
	Signal AbuseSignal
	// Reference names it in errors, the audit log and towards the admin listener.
	Reference    string
	Since, Until time.Time
	// Requests, Refusals and Similar are what was counted in the window before.
	Requests, Refusals, Similar int
	// Flagged says that nothing is refused: the rules only flag.
	Flagged bool
	// Appeal is what the caller can do, as the rules said when it began.
	Appeal string
}

// NewWatch watches by rules that are asked for at each event; nil rules watch nothing.
func NewWatch(rules func() *AbuseRules) *Watch {
	return &Watch{rules: rules, actors: map[Actor]*watched{}, told: func(Quarantine) {}}
}

// Tell has f told of each quarantine that begins. It is set before the first event, and called without a lock.
func (w *Watch) Tell(f func(Quarantine)) {
	if w != nil {
		w.told = f
	}
}

// Check gives the quarantine of one of a caller's actors; nil if it has none.
func (w *Watch) Check(actors []Actor) *Quarantine {
	rules := w.now()
	if rules == nil || rules.FlagOnly {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for _, a := range actors {
		if k := w.actors[a]; k != nil && !rules.exempt[a.Tenant] && k.quarantine.Until.After(now) {
			q := k.quarantine
			return &q
		}
	}
	return nil
}

// Request counts a request of a caller. It gives its quarantine, of which the request is not counted, or that which
// begins with it.
func (w *Watch) Request(actors []Actor) *Quarantine {
	return w.count(actors, func(k *watched, at time.Time, window time.Duration) { k.requests.add(at, window) })
}

// Refusal counts that the content policy refused a request, or cut an answer to it.
func (w *Watch) Refusal(actors []Actor) *Quarantine {
	return w.count(actors, func(k *watched, at time.Time, window time.Duration) { k.refusals.add(at, window) })
}

// Prompt counts the print of a request's prompt if it is near one of the latest.
func (w *Watch) Prompt(actors []Actor, print Print) *Quarantine {
	return w.count(actors, func(k *watched, at time.Time, window time.Duration) {
		if slices.ContainsFunc(k.recent, func(o Print) bool { return near(o, print) }) {
			k.similar.add(at, window)
		}
		if len(k.recent) < maxRecentPrints {
			k.recent = append(k.recent, print)
			return
		}
		k.recent[k.next] = print
		k.next = (k.next + 1) % maxRecentPrints
	})
}

// Prints says whether Prompt counts anything.
func (w *Watch) Prints() bool {
	rules := w.now()
	return rules != nil && slices.ContainsFunc(rules.limits[:], func(l AbuseLimits) bool { return l.Similar > 0 })
}

func (w *Watch) now() *AbuseRules {
	if w == nil {
		return nil
	}
	return w.rules()
}

// count notes an event of actors, and quarantines those that go beyond a limit.
func (w *Watch) count(actors []Actor, note func(k *watched, at time.Time, window time.Duration)) *Quarantine {
	rules := w.now()
	if rules == nil {
		return nil
	}
	if q := w.Check(actors); q != nil {
		return q
	}
	var began []Quarantine
	w.mu.Lock()
	now := time.Now()
	for _, a := range actors {
		limits := &rules.limits[a.Scope]
		if *limits == (AbuseLimits{}) || rules.exempt[a.Tenant] {
			continue
		}
		k := w.seen(a, now)
		note(k, now, rules.Window)
		requests, refusals := k.requests.sum(now, rules.Window), k.refusals.sum(now, rules.Window)
		if signal, ok := limits.beyond(requests, refusals, k.similar.sum(now, rules.Window)); ok {
			began = append(began, w.hold(k, signal, rules, now))
		}
	}
	w.mu.Unlock()
	for _, q := range began {
		w.told(q)
	}
	if len(began) > 0 && !rules.FlagOnly {
		return &began[0]
	}
	return nil
}

// seen is what is known of an actor, who has just been seen.
func (w *Watch) seen(a Actor, now time.Time) *watched {
	k := w.actors[a]
	if k == nil {
		k = &watched{Actor: a}
		w.actors[a] = k
	}
	if k.within != &w.held || !k.quarantine.Until.After(now) {
		w.move(k, &w.idle)
	}
	for w.idle.Len() > maxActors {
		w.forget(&w.idle)
	}
	return k
}

// move puts an actor at the end of a list.
func (w *Watch) move(k *watched, to *lru.List) {
	if k.within != nil {
		k.within.Remove(k.place)
	}
	k.place, k.within = to.PushBack(k), to
}

// forget lets the first of a list go.
func (w *Watch) forget(of *lru.List) {
	k := of.Remove(of.Front()).(*watched)
	delete(w.actors, k.Actor)
}

// hold begins an actor's quarantine. Its counts begin anew.
func (w *Watch) hold(k *watched, signal AbuseSignal, rules *AbuseRules, now time.Time) Quarantine {
	if now.Sub(k.quarantine.Until) > rules.Longest {
		k.strikes = 0
	}
	took := rules.Quarantine
	for range k.strikes {
		if took *= 2; took >= rules.Longest {
			took = rules.Longest
			break
		}
	}
	q := Quarantine{
		Actor: k.Actor, Signal: signal, Reference: rand.Text()[:12], Since: now, Until: now.Add(took),
		Flagged: rules.FlagOnly, Appeal: rules.Appeal,
		Requests: int(k.requests.sum(now, rules.Window)), Refusals: int(k.refusals.sum(now, rules.Window)),
		Similar: int(k.similar.sum(now, rules.Window)),
	}
	k.requests, k.refusals, k.similar, k.recent, k.next = counter{}, counter{}, counter{}, nil, 0
	if q.Flagged {
		return q
	}
	k.strikes++
	k.quarantine = q
	w.move(k, &w.held)
	for w.held.Len() > maxQuarantined {
		w.forget(&w.held)
	}
	return q
}

// List are the quarantines that have not ended, the oldest first.
func (w *Watch) List() []Quarantine {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	var out []Quarantine
	for e := w.held.Front(); e != nil; e = e.Next() {
		if q := e.Value.(*watched).quarantine; q.Until.After(now) {
			out = append(out, q)
		}
	}
	return out
}

// Lift ends a quarantine before its time, as if it had not been: the next one is not longer for it.
func (w *Watch) Lift(reference string) (Quarantine, bool) {
	if w == nil {
		return Quarantine{}, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for e := w.held.Front(); e != nil; e = e.Next() {
		k := e.Value.(*watched)
		if q := k.quarantine; q.Reference == reference && q.Until.After(now) {
			k.quarantine, k.strikes = Quarantine{}, k.strikes-1
			w.move(k, &w.idle)
			for w.idle.Len() > maxActors {
				w.forget(&w.idle)
			}
			return q, true
		}
	}
	return Quarantine{}, false
}

// Actors is the number of callers that are remembered.
func (w *Watch) Actors() int {
	if w == nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.actors)
}

// counter counts events in a window that slides: of the window before, the part counts that is not over yet, as if its
// events had come evenly.
type counter struct {
	since        time.Time // when the window that now counts began
	last, before float64
}

func (c *counter) add(at time.Time, window time.Duration) {
	c.turn(at, window)
	c.last++
}

func (c *counter) sum(at time.Time, window time.Duration) float64 {
	c.turn(at, window)
	if c.since.IsZero() {
		return 0
	}
	return c.last + c.before*(1-min(1, float64(at.Sub(c.since))/float64(window)))
}

// turn begins a new window where the last is over.
func (c *counter) turn(at time.Time, window time.Duration) {
	switch past := at.Sub(c.since); {
	case c.since.IsZero() || past >= 2*window || past < 0:
		*c = counter{since: at}
	case past >= window:
		c.since, c.before, c.last = c.since.Add(window), c.last, 0
	}
}
