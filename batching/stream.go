package batching

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/mmserve/mmserve/decoder"
)

// FinishReason says why a sequence ended.
type FinishReason int

const (
	// Running: it has not.
	Running FinishReason = iota
	// Stop: it gave one of its stop ids.
	Stop
	// Length: MaxTokens or the context was reached.
	Length
	// Cancelled: its context ended, Stream.Cancel was called, or the engine was told to end.
	Cancelled
	// Error: its step failed, or the device is lost; Event.Err says which.
	Error
	// Expired: its Deadline passed before its first token, or could not be met any more; Event.Err is ErrDeadline.
	Expired
)

// String returns the reason in lower case, as it stands in logs and metrics.
func (f FinishReason) String() string {
	return [...]string{"running", "stop", "length", "cancelled", "error", "expired"}[f]
}

// Event is a token, an end, or the last token with the end.
type Event struct {
	// Token is valid if HasToken.
	Token    decoder.Token
	HasToken bool
	// Prompt comes with the first token, where Request.PromptLogprobs asked for it: that of each prompt token but the
	// first.
	Prompt []decoder.Logprobs
	// Finish is set in the last event and in no other.
	Finish FinishReason
	// Err is set if Finish is Error or Expired. Its text may hold a stack trace: it is for logs, not for clients.
	Err error
}

// Timing is when things happened to a request; zero what has not happened yet.
type Timing struct {
	Submitted      time.Time
	FirstScheduled time.Time // it got a slot: what came before is queueing
	FirstToken     time.Time
	Finished       time.Time
	// CachedTokens is the number of prompt positions that were not run, because their keys and values were there already;
	// known from FirstScheduled on.
	CachedTokens int
}

// Stream is the mailbox of one request. The engine pushes and never waits; one goroutine reads. It holds at most
// MaxTokens + 1 unread events: one a token, and an end that came without.
type Stream struct {
	cancel func()
	wake   chan struct{} // room for one note: there is something unread

	mu     sync.Mutex
	events []Event
	read   int  // events[:read] have been read
	over   bool // the last event has been read
	timing Timing
}

func newStream(cancel func(), t Timing) *Stream {
	return &Stream{cancel: cancel, wake: make(chan struct{}, 1), timing: t}
}

func (s *Stream) push(e Event, t Timing) {
	s.mu.Lock()
	s.events = append(s.events, e)
	s.timing = t
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next returns the next event as soon as there is one. It fails when ctx ends first, which leaves the sequence
// running, and with io.EOF after the last event.
func (s *Stream) Next(ctx context.Context) (Event, error) {
	for {
		event, ok, over := s.pop()
		switch {
		case ok:
			return event, nil
		case over:
			return Event{}, io.EOF
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// pop takes the oldest unread event, if there is one; over says that none will come.
func (s *Stream) pop() (event Event, ok, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read == len(s.events) {
		return Event{}, false, s.over
	}
	event = s.events[s.read]
	s.read++
	if s.read == len(s.events) {
		s.events, s.read = s.events[:0], 0
	}
	s.over = event.Finish != Running
	return event, true, s.over
}

// Cancel says that the reader has all it wants: the engine removes the sequence before its next step. Events may still
// come; the last one says Cancelled unless the sequence ended otherwise before. What the sequence gave does not count
// as wasted, other than when its context ends.
func (s *Stream) Cancel() { s.cancel() }

// Timing is what was known when the newest event was pushed, read or not.
func (s *Stream) Timing() Timing {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.timing
}
