package batching

import (
	"context"
	"errors"
	"fmt"
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

// Release gives the ticket back. It does nothing the second time or after Submit, so it may be deferred.
func (t *Ticket) Release() {
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	if !t.spent {
		t.spent = true
		t.engine.release()
	}
}

// Submit hands a request to the engine, which takes over the ticket and gives it back when the sequence ends or at
// once if Submit fails. When ctx ends, the sequence is removed before the next step. The engine keeps r.Input's
// spans, which nobody may change from here on, and copies the rest.
//
// An accepted request always ends: its stream gets exactly one event with a FinishReason.
func (e *Engine) Submit(ctx context.Context, t *Ticket, r Request) (*Stream, error) {
	defer t.Release()
	if err := r.check(e.capacity.MaxLen); err != nil {
		return nil, err
	}
	q := newSequence(r, e.clock())
	q.stream = newStream(func() { e.cancel(q) }, q.timing)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case t.engine != e || t.spent:
		return nil, errors.New("batching: the ticket is another engine's or was used before")
	case e.stopped:
		return nil, e.refusal
	}
	t.spent = true
	// Under the lock, so that the cancellation cannot overtake the arrival.
	stop := context.AfterFunc(ctx, func() { e.cancel(q) })
	q.detach = func() { stop() }
	e.post(message{seq: q})
	return q.stream, nil
}

// cancel asks the loop to remove q; the first call counts.
func (e *Engine) cancel(q *sequence) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !q.unwanted && !e.stopped {
		q.unwanted = true
		e.post(message{seq: q, cancel: true})
	}
}

// post puts m into the inbox and wakes the loop. The caller holds mu.
func (e *Engine) post(m message) {
	e.inbox = append(e.inbox, m)
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
