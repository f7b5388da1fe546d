package caption

import (
	"context"
	"sync"
	"time"
)

// limiter bounds the calls in flight. An adaptive one starts with a few and adds one for each window of successes (as
// TCP does, AIMD), up to what the servers run at once and a few that wait there; a refusal takes three in ten away.
// Those that wait have the priority of a batch, so that nobody else waits longer for them.
type limiter struct {
	mu       sync.Mutex
	limit    float64
	most     float64
	adaptive bool
	open     int
	full     bool // all of limit was used since it last changed
	cutAt    time.Time
	change   chan struct{} // closed when a slot may be free
}

// newLimiter makes one of exactly fixed calls, or if fixed is 0, of up to most.
func newLimiter(fixed, most int) *limiter {
	l := &limiter{limit: float64(fixed), most: float64(fixed), change: make(chan struct{})}
	if fixed == 0 {
		l.adaptive, l.most = true, float64(max(most, 1))
		l.limit = max(1, l.most/2)
	}
	return l
}

// acquire waits for a slot.
func (l *limiter) acquire(ctx context.Context) error {
	for {
		l.mu.Lock()
		if l.open < int(l.limit) {
			l.open++
			if l.open == int(l.limit) {
				l.full = true
			}
			l.mu.Unlock()
			return ctx.Err()
		}
		wait := l.change
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wait:
		}
	}
}

// release gives a slot back.
func (l *limiter) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	l.wake()
}

func (l *limiter) wake() {
	close(l.change)
	l.change = make(chan struct{})
}

// success tells of an answer.
func (l *limiter) success() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.adaptive && l.full && l.limit < l.most {
		l.limit = min(l.limit+1/l.limit, l.most)
		l.wake()
	}
}

// refused tells that a server was full. Refusals that come together count once.
func (l *limiter) refused(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.adaptive || now.Sub(l.cutAt) < time.Second {
		return
	}
	l.cutAt = now
	l.limit = max(1, l.limit*0.7)
	l.full = false
}

// now gives the calls in flight and how many there may be.
func (l *limiter) now() (open, limit int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open, int(l.limit)
}
