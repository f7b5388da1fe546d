package batching

import (
	"container/heap"
	"errors"
	"fmt"
	"time"
)

// ErrDeadline says that a request's answer cannot be complete by its Deadline, or that its first token was not there by
// then.
var ErrDeadline = errors.New("the deadline cannot be met")

// DeadlineError is ErrDeadline before any work was done.
type DeadlineError struct {
	// Wait is the estimated time to the end of the answer, of which the request allows Allowed.
	Wait, Allowed time.Duration
}

func (e *DeadlineError) Error() string {
	return fmt.Sprintf("%v: an answer takes about %v, allowed are %v", ErrDeadline, e.Wait.Round(time.Millisecond),
		e.Allowed.Round(time.Millisecond))
}

// Is makes it ErrDeadline.
func (e *DeadlineError) Is(target error) bool { return target == ErrDeadline }

// RetryAfter is when the same request may be in time, if no other comes.
func (e *DeadlineError) RetryAfter() time.Duration {
	return min(e.Wait-max(e.Allowed, 0), longestRetryAfter)
}

// RetryAfter is at most this: an estimate of now says nothing about later.
const longestRetryAfter = 30 * time.Second

// load is what the scheduler has to do before a new sequence, as far as is known. It is a copy: estimates are made on
// other goroutines. What is counted by class are sequences of that class and those above: lower ones give way.
type load struct {
	latency latencyModel
	slots   int
	decodes bool // sequences decode
	stall   float64
	running [classes]int
	waiting [classes]int
	tokens  [classes]int // ids to be run for those that wait and the one in prefill
}

// estimate is how many seconds a first token takes from now for a prompt of so many tokens, 0 for an average one.
// unseen is the number of requests ahead of it that load does not count. It is 0 until there are measurements.
//
// Chunks take turns with decode steps, so prompts ahead take their own time and a part of it again; and whoever finds
// no free slot waits for as many sequences to end as are ahead. Tenants' turns are left out of account.
func (l *load) estimate(class, prompt, unseen int) float64 {
	token := l.latency.token.mean() * l.latency.fresh
	if l.decodes {
		token *= 1 + 1/l.stall
	}
	average := l.latency.prompt
	own := float64(prompt) * token
	if prompt <= 0 {
		own = average * token
	}
	chunks := own + (float64(l.tokens[class])+float64(unseen)*average)*token
	ends := max(0, unseen+1-l.free(class))
	slot := own + float64(ends)*l.latency.answer*l.latency.gap.mean()/float64(l.slots)
	return max(chunks, slot)
}

// free is the number of slots that nobody of the class or above has or waits for; below 0 if more wait than there are.
func (l *load) free(class int) int { return l.slots - l.running[class] - l.waiting[class] }

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
