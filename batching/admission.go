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
	engine *Engine
	spent  bool // guarded by engine.mu
	coming bool // so is it
}

// Acquire takes an admission slot, before any work is done for a request. It never blocks: it answers ErrBusy,
// ErrDraining, or, once the device is lost, an error that is decoder.ErrDevice.
func (e *Engine) Acquire() (*Ticket, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refusal != nil {
		return nil, e.refusal
	}
	if e.tickets == e.limit {
		return nil, ErrBusy
	}
	e.tickets++
	return &Ticket{engine: e}, nil
}

// AcquireBy is Acquire for a request that wants its answer by deadline. It answers a *DeadlineError if that is
// unlikely; prompt is the number of its tokens, 0 if not known yet. Without a deadline it is Acquire.
func (e *Engine) AcquireBy(deadline time.Time, p Priority, prompt int) (*Ticket, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	t, err := e.Acquire()
	if err != nil {
		return nil, err
	}
	if err := e.meets(deadline, p, prompt, 0, false); err != nil {
		t.Release()
		return nil, err
	}
	return t, nil
}

// Estimate is how long a request that is submitted now would wait for its first token, by the pace of late; 0 while
// nothing has been run. prompt is the number of its tokens, 0 for an average one.
func (e *Engine) Estimate(p Priority, prompt int) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.load.estimate(p.class(), prompt, max(0, e.tickets-e.load.submitted))
}

// meets gives a *DeadlineError if the holder of a ticket is unlikely to get its answer by then; most and endless are
// pace.answering's.
func (e *Engine) meets(deadline time.Time, p Priority, prompt, most int, endless bool) error {
	if deadline.IsZero() {
		return nil
	}
	e.mu.Lock()
	wait := e.load.estimate(p.class(), prompt, max(0, e.tickets-1-e.load.submitted))
	wait += e.load.pace.answering(most, endless)
	e.mu.Unlock()
	if allowed := deadline.Sub(e.clock()); wait > allowed || allowed <= 0 {
		return &DeadlineError{Wait: wait, Allowed: allowed}
	}
	return nil
}

// Release gives the ticket back. It does nothing the second time or after Submit, so it may be deferred.
func (t *Ticket) Release() {
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	if !t.spent {
		t.spent = true
		t.came()
		t.engine.wakeUp()
		t.engine.release()
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
	if err := e.meets(r.Deadline, r.Priority, len(r.Input.IDs), r.MaxTokens, len(r.Stop) == 0); err != nil {
		return nil, err
	}
	q := newSequence(r, e.clock())
	q.stream = newStream(func() { e.cancel(q, false) }, q.timing)
	q.sampler.Notify(e.wakeUp)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case t.engine != e || t.spent:
		return nil, errors.New("batching: the ticket is another engine's or was used before")
	case e.stopped:
		return nil, e.refusal
	}
	t.spent = true
	t.came()
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

// wakeUp has the loop look at the inbox and at coming.
func (e *Engine) wakeUp() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// release takes one ticket back. The caller holds mu.
func (e *Engine) release() {
	e.tickets--
	e.checkDrained()
}

// refuse makes Acquire answer err from now on. The caller holds mu.
func (e *Engine) refuse(err error) {
	e.refusal = err
	e.checkDrained()
}

func (e *Engine) checkDrained() {
	if e.refusal == nil || e.tickets > 0 {
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
