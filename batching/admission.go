package batching

import (
	"context"
	"errors"
	"fmt"
	"time"
)

var (
	// ErrBusy is Acquire's answer when all slots and all waiting places are taken. Trying again later may help.
	ErrBusy = errors.New("too many requests are open")
	// ErrDraining is the answer when the engine takes no more work: it drains, or its Run was told to end.
	ErrDraining = errors.New("the engine takes no more requests")
)

// Ticket is the right to have one request open. Its holder gives it to Submit or back with Release.
type Ticket struct {
	engine  *Engine
	holder  holder
	class   int
	further bool // it is for an answer beyond its call's first
	probe   bool // its deadline is unlikely to be met; guarded by engine.mu
	spent   bool // so is it
	pending bool // so is it
}

// Claim is what AcquireFor needs to know of a call.
type Claim struct {
	Priority Priority
	// Tenant is on whose behalf the call comes, Caller where it comes from, such as a connection: who shares places.
	Tenant, Caller string
	// Answers is the number of places, all or none; 1 if 0.
	Answers int
	// Deadline is when the answers have to be complete; if zero, whenever.
	Deadline time.Time
	// Prompt is the number of the prompt's tokens, 0 if not known yet; MaxTokens the most tokens of an answer, 0 if
	// unknown.
	Prompt, MaxTokens int
	// Endless says that nothing but MaxTokens ends an answer.
	Endless bool
}

// Acquire takes an admission slot, before any work is done for a request of PriorityDefault. It never blocks: it
// answers ErrBusy, ErrDraining, or, once the device is lost, an error that is decoder.ErrDevice.
func (e *Engine) Acquire() (*Ticket, error) {
	t, err := e.AcquireFor(Claim{})
	if err != nil {
		return nil, err
	}
	return t[0], nil
}

// AcquireFor is Acquire for all answers of a call. It answers ErrBusy also where the places that are left are kept for
// others: for higher classes, for other tenants, for calls of one answer. With a deadline that is unlikely to be met it
// answers a *DeadlineError.
func (e *Engine) AcquireFor(c Claim) ([]*Ticket, error) {
	if err := c.Priority.check(); err != nil {
		return nil, err
	}
	n, h := max(c.Answers, 1), holder{tenant: c.Tenant}
	if c.Tenant == "" {
		h.caller = c.Caller
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refusal != nil {
		return nil, e.refusal
	}
	if !e.places.admits(h, c.Priority.class(), n) {
		return nil, ErrBusy
	}
	tickets := make([]*Ticket, n)
	for i := range tickets {
		tickets[i] = &Ticket{engine: e, holder: h, class: c.Priority.class(), further: i > 0}
	}
	if err := e.checkDeadline(c, 0, tickets...); err != nil {
		return nil, err
	}
	for _, t := range tickets {
		e.places.take(t)
		e.unseen[t.class]++
	}
	return tickets, nil
}

// Full says whether there is no place left for any call, whoever makes it.
func (e *Engine) Full() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.refusal == nil && e.places.open >= e.places.limit
}

// Estimate is how long a request that is submitted now would wait for its first token, by the latest steps; 0 while
// nothing has been run. prompt is the number of its tokens, 0 for an average one.
func (e *Engine) Estimate(p Priority, prompt int) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.load.latency.faded(e.load.estimate(p.class(), prompt, e.ahead(p.class())), e.clock())
}

// ahead is the number of requests of the class and above that the scheduler does not have yet. The caller holds mu.
func (e *Engine) ahead(class int) int {
	n := 0
	for _, unseen := range e.unseen[class:] {
		n += unseen
	}
	return n
}

// checkDeadline gives a *DeadlineError if the tickets' holder is unlikely to get its answers in time; own is how many
// of them are out. It lets a few through all the same while there is a free slot for them: an estimate that refused
// everything would never be corrected. The caller holds mu.
func (e *Engine) checkDeadline(c Claim, own int, tickets ...*Ticket) error {
	if c.Deadline.IsZero() {
		return nil
	}
	class, now := c.Priority.class(), e.clock()
	ahead := max(0, e.ahead(class)-own)
	seconds := e.load.estimate(class, c.Prompt, ahead+len(tickets)-1) + e.load.latency.answering(c.MaxTokens, c.Endless)
	wait, allowed := e.load.latency.faded(seconds, now), c.Deadline.Sub(now)
	if allowed > 0 && (wait <= allowed || tickets[0].probe) {
		return nil
	}
	free := e.load.free(class) - ahead
	if allowed <= 0 || free < len(tickets) || e.probes >= max(1, e.load.slots/4) {
		return &DeadlineError{Wait: wait, Allowed: allowed}
	}
	for _, t := range tickets {
		t.probe = true
	}
	e.probes += len(tickets)
	return nil
}

// Release gives the ticket back. It does nothing the second time or after Submit, so it may be deferred.
func (t *Ticket) Release() {
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	if !t.spent {
		t.spent = true
		t.clearPending()
		t.engine.wakeUp()
		t.engine.unseen[t.class]--
		t.engine.release(t)
	}
}

// Submit hands a request to the engine, which takes over the ticket and gives it back when the sequence ends or at
// once if Submit fails. When ctx ends, the sequence is removed before the next step. A *DeadlineError says that
// r.Deadline is unlikely to be met. The engine keeps r.Input's
// spans, which nobody may change from here on, and copies the rest.
//
// An accepted request always ends: its stream gets exactly one event with a FinishReason.
func (e *Engine) Submit(ctx context.Context, t *Ticket, r Request) (*Stream, error) {
	defer t.Release()
	if err := r.check(e.capacity.MaxLen); err != nil {
		return nil, err
	}
	q := newSequence(r, e.clock())
	q.stream, q.ticket = newStream(func() { e.cancel(q, false) }, q.timing), t
	q.sampler.Notify(e.wakeUp)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case t.engine != e || t.spent:
		return nil, errors.New("batching: the ticket is another engine's or was used before")
	case e.stopped:
		return nil, e.refusal
	}
	if err := e.checkDeadline(r.claim(), 1, t); err != nil {
		return nil, err
	}
	q.probe = t.probe
	t.spent = true
	t.clearPending()
	// Under the lock, so that the cancellation cannot overtake the arrival.
	stop := context.AfterFunc(ctx, func() { e.cancel(q, true) })
	q.detach = func() { stop() }
	e.post(message{seq: q})
	return q.stream, nil
}

// cancel asks the loop to remove q; the first call counts.
func (e *Engine) cancel(q *sequence, gone bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !q.unwanted && !e.stopped {
		q.unwanted = true
		e.post(message{seq: q, cancel: true, gone: gone})
	}
}

// post puts m into the inbox and wakes the loop. The caller holds mu.
func (e *Engine) post(m message) {
	e.inbox = append(e.inbox, m)
	e.wakeUp()
}

// wakeUp has the loop look at the inbox and at pending.
func (e *Engine) wakeUp() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// release takes a ticket back. The caller holds mu.
func (e *Engine) release(t *Ticket) {
	e.places.give(t)
	if t.probe {
		e.probes--
	}
	e.checkDrained()
}

// refuse makes Acquire answer err from now on. The caller holds mu.
func (e *Engine) refuse(err error) {
	e.refusal = err
	e.checkDrained()
}

func (e *Engine) checkDrained() {
	if e.refusal == nil || e.places.open > 0 {
		return
	}
	select {
	case <-e.drained:
	default:
		close(e.drained)
	}
}

// Drain stops admission and waits until every accepted request has ended or ctx is done. A request that holds a
// ticket may still be submitted meanwhile. Run has to keep running, or nothing ends.
func (e *Engine) Drain(ctx context.Context) error {
	e.mu.Lock()
	if e.refusal == nil {
		e.refuse(ErrDraining)
	}
	e.mu.Unlock()
	select {
	case <-e.drained:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain: %d requests are still open: %w", e.Stats().Accepted, ctx.Err())
	}
}
