package batching

import "time"

// longestHold is the longest time that decode steps are put off. A stream goes on at this pace at least.
const longestHold = time.Second

// WillSubmit says that what is left to do before the ticket's request is submitted is this machine's work alone, such
// as encoding its images. Latency-tolerant sequences wait for it: see scheduler.hold.
func (t *Ticket) WillSubmit() {
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	if !t.spent && !t.pending {
		t.pending = true
		t.engine.pending++
	}
}

// clearPending ends WillSubmit. The caller holds the engine's mu and has the loop woken.
func (t *Ticket) clearPending() {
	if t.pending {
		t.pending = false
		t.engine.pending--
	}
}

// deferDecode says whether decode steps may be put off so that more sequences go on together: nobody waits for a token.
//
// A step of many rows costs little more than one of few, and encoders have the machine to themselves meanwhile. So
// where all decoding sequences are latency-tolerant, prompts are run first, and those that are pending are waited for
// while there is a slot for them.
func (s *scheduler) deferDecode(now time.Time) bool {
	for _, q := range s.slots.decoding {
		if !s.latencyTolerant(q, now) {
			return false
		}
	}
	return len(s.slots.decoding) > 0 && now.Sub(s.decoded) < longestHold
}

// latencyTolerant says whether nobody waits for q's tokens and there is time enough for them all.
func (s *scheduler) latencyTolerant(q *sequence, now time.Time) bool {
	if q.priority != PriorityBatch || q.deadline.IsZero() {
		return q.priority == PriorityBatch
	}
	left := s.latency.faded(s.latency.answering(q.maxTokens-(len(q.ids)-q.prompt), true), now)
	return now.Add(longestHold + 2*left).Before(q.deadline)
}

// hold is how long to wait for so many sequences that are pending; 0 if there is a step to run now.
func (s *scheduler) hold(pending int, now time.Time) time.Duration {
	if pending == 0 || s.queue.len() > 0 || !s.slots.free() || !s.deferDecode(now) {
		return 0
	}
	if s.holdSince.IsZero() {
		s.holdSince = now
	}
	return s.decoded.Add(longestHold).Sub(now)
}

// resume ends a hold.
func (s *scheduler) resume(now time.Time) {
	if !s.holdSince.IsZero() {
		s.heldFor += now.Sub(s.holdSince)
		s.holdSince = time.Time{}
	}
}
