package batching

import (
	"container/heap"
	"errors"
	"fmt"
	"time"
)

// ErrDeadline says that a request's answer cannot be complete by its Deadline, or that its first token was not there by then.
var ErrDeadline = errors.New("the deadline cannot be met")

// DeadlineError is ErrDeadline before any work was done.
type DeadlineError struct {
	// Wait is the estimated time to the end of the answer, of which the request allows Allowed.
	Wait, Allowed time.Duration
}

func (e *DeadlineError) Error() string {
	return fmt.Sprintf("%v: an answer takes about %v, allowed are %v", ErrDeadline, e.Wait.Round(time.Millisecond), e.Allowed.Round(time.Millisecond))
}

// Is makes it ErrDeadline.
func (e *DeadlineError) Is(target error) bool { return target == ErrDeadline }

// RetryAfter is when the same request may be in time, if no other comes.
func (e *DeadlineError) RetryAfter() time.Duration { return e.Wait - max(e.Allowed, 0) }

// load is what the scheduler has to do before a new sequence, as far as is known. It is a copy: estimates are made on
// other goroutines.
type load struct {
	pace      pace
	slots     int
	running   int
	decodes   bool // sequences decode
	stall     float64
	waiting   [classes]int // sequences of a class and those above
	tokens    [classes]int // ids to be run for them, and for the one in prefill
	submitted int          // all that wait or run
}

// estimate is how long a first token takes from now for a prompt of so many tokens, 0 for an average one. unseen is the
// number of requests ahead of it that load does not count. It is 0 until there are measurements.
//
// Chunks take turns with decode steps, so prompts ahead take their own time and a part of it again; and whoever finds
// no free slot waits for as many sequences to end as are ahead. Tenants' turns are left out of account.
func (l *load) estimate(class, prompt, unseen int) time.Duration {
	token := l.pace.token * l.pace.fresh
	if l.decodes {
		token *= 1 + 1/l.stall
	}
	average := l.pace.prompt
	own := float64(prompt) * token
	if prompt <= 0 {
		own = average * token
	}
	chunks := own + (float64(l.tokens[class])+float64(unseen)*average)*token
	ends := max(0, l.waiting[class]+unseen+1-(l.slots-l.running))
	slot := own + float64(ends)*l.pace.answer*l.pace.tpot/float64(l.slots)
	return time.Duration(max(chunks, slot) * float64(time.Second))
}

// deadlines is a heap of the sequences that have a deadline and no token yet, the earliest first.
type deadlines []*sequence

func (h deadlines) Len() int           { return len(h) }
func (h deadlines) Less(i, j int) bool { return h[i].deadline.Before(h[j].deadline) }
func (h deadlines) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].due, h[j].due = i, j
}
func (h *deadlines) Push(x any) {
	x.(*sequence).due = len(*h)
	*h = append(*h, x.(*sequence))
}
func (h *deadlines) Pop() any {
	old := *h
	q := old[len(old)-1]
	old[len(old)-1] = nil
	*h, q.due = old[:len(old)-1], -1
	return q
}

// watch has the sequence expire at its deadline, if it has one.
func (h *deadlines) watch(q *sequence) {
	q.due = -1
	if !q.deadline.IsZero() {
		heap.Push(h, q)
	}
}

// release lets q go on whatever the time is.
func (h *deadlines) release(q *sequence) {
	if q.due >= 0 {
		heap.Remove(h, q.due)
	}
}

// expired is the sequence whose deadline has passed for longest, nil if none has.
func (h deadlines) expired(now time.Time) *sequence {
	if len(h) == 0 || now.Before(h[0].deadline) {
		return nil
	}
	return h[0]
}
