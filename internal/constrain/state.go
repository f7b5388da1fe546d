package constrain

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/mmserve/mmserve/internal/crew"
)

// cursor is a place in a grammar. It is used by one goroutine at a time.
type cursor struct {
	grammar *Grammar
	at      *state
	first   bool // no token yet
	ended   bool
}

// Mask returns the ids that may come next as a bitset, bit id%64 of word id/64; ids beyond it may not come. Stop ids
// are in it where the output may end, and they alone where it cannot go on. It belongs to the grammar: it is read only,
// and valid until the next call. It may take long.
func (c *cursor) Mask() []uint64 {
	mask, _ := c.find(nil)
	return mask
}

// find is Mask within a meter. It is nil if the meter fails.
func (c *cursor) find(m *meter) ([]uint64, error) {
	switch {
	case c.ended:
		return c.grammar.end, nil
	case c.first:
		return c.grammar.first, nil
	}
	a := c.grammar.automaton
	c.grammar.mu.Lock()
	defer c.grammar.mu.Unlock()
	a.meter = m
	defer func() { a.meter = nil }()
	mask := a.maskOf(c.at)
	if m.failed() {
		return nil, m.err
	}
	return mask, nil
}

// Accept takes note of a token that was sampled, stop ids included. After a token that the mask does not allow the
// output is over: only stop ids may come.
func (c *cursor) Accept(id int32) { _ = c.advance(id, nil) }

// advance is Accept within a meter, whose error it returns.
func (c *cursor) advance(id int32, m *meter) error {
	text, ok := c.text(id)
	if !ok {
		c.ended = true
		return nil
	}
	a := c.grammar.automaton
	c.grammar.mu.Lock()
	defer c.grammar.mu.Unlock()
	a.meter = m
	defer func() { a.meter = nil }()
	to := a.accept(c.at, text)
	if m.failed() {
		return m.err
	}
	c.moveTo(to, text)
	return nil
}

// text is what a token adds to the output. ok is false if the output is over with it.
func (c *cursor) text(id int32) (text string, ok bool) {
	v := c.grammar.automaton.vocab
	if c.ended || slices.Contains(v.stop, id) || id < 0 || int(id) >= len(v.text) {
		return "", false
	}
	text = v.text[id]
	if first, ok := v.first[id]; ok && c.first {
		text = first
	}
	return text, true
}

func (c *cursor) moveTo(to *state, text string) {
	c.first, c.at = false, to
	c.ended = text == "" || to == c.grammar.automaton.dead
}

// Done reports whether nothing but a stop id may come.
func (c *cursor) Done() bool { return c.ended || len(c.at.threads) == 0 }

// State is where one sequence is in its grammar, with the mask of its next token. One goroutine uses it at a time;
// masks are found on others. Mask and Accept alone may be used as well: they wait then.
type State struct {
	cursor
	ctx    context.Context
	allow  *allowance
	notify func()
	mask   []uint64

	pending atomic.Bool   // a goroutine works on cursor and mask
	done    chan struct{} // closed when it has finished
	err     atomic.Pointer[error]
}

// Ready reports whether Mask can be called without a wait. It takes no lock.
func (s *State) Ready() bool { return !s.pending.Load() && s.err.Load() == nil }

// Err is why there will be no more masks, or nil: ErrWork, or the end of the context. It takes no lock.
func (s *State) Err() error {
	if err := s.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Notify has f called, on another goroutine, whenever Ready or Err has changed by itself. It is set before the first
// Accept.
func (s *State) Notify(f func()) { s.notify = f }

// Mask is the mask of the next token, see cursor.Mask. It waits until it is there. After an error no id is allowed.
func (s *State) Mask() []uint64 {
	s.wait()
	return s.mask
}

func (s *State) wait() {
	if s.done != nil {
		<-s.done
	}
}

// Accept takes note of a token that was sampled, stop ids included, see cursor.Accept. Unless the mask after it is
// known already, it is found on another goroutine.
func (s *State) Accept(id int32) {
	s.wait()
	if s.err.Load() != nil {
		return
	}
	s.allow.left.Add(tokenWork)
	if s.known(id) {
		return
	}
	done := make(chan struct{})
	s.done = done
	s.pending.Store(true)
	go func() { // it ends with the mask, the allowance or the context
		s.mask = nil
		if err := crew.Try(func() error { return s.work(id) }); err != nil {
			s.err.Store(&err)
		}
		s.pending.Store(false)
		close(done)
		if s.notify != nil {
			s.notify()
		}
	}()
}

// known accepts id if that takes no more than following what was found before.
func (s *State) known(id int32) bool {
	text, ok := s.text(id)
	if !ok {
		s.ended, s.mask = true, s.grammar.end
		return true
	}
	if !s.grammar.mu.TryLock() { // another sequence's mask is being found
		return false
	}
	defer s.grammar.mu.Unlock()
	to := s.grammar.automaton.known(s.at, text)
	if to == nil || to.mask == nil {
		return false
	}
	s.moveTo(to, text)
	s.mask = to.mask
	return true
}

// work accepts id and finds the mask after it.
func (s *State) work(id int32) error {
	m, err := s.grammar.lanes.start(s.ctx, s.allow)
	if err != nil {
		return err
	}
	defer m.end()
	if err := s.advance(id, m); err != nil {
		return err
	}
	mask, err := s.find(m)
	s.mask = mask
	return err
}
