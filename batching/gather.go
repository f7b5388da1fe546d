package batching

import "time"

// longestHold is the longest time that decode steps are put off. A stream goes on at this pace at least.
const longestHold = time.Second

// Coming says that what is left to do before the ticket's request is submitted is this machine's work alone, such as encoding
// its pictures. Patient sequences wait for it: see scheduler.hold.
func (t *Ticket) Coming() {
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	if !t.spent && !t.coming {
		t.coming = true
		t.engine.coming++
	}
}

// came ends Coming. The caller holds the engine's mu and has the loop woken.
func (t *Ticket) came() {
	if t.coming {
		t.coming = false
		t.engine.coming--
	}
}

// gathers says whether decode steps may be put off so that more sequences go on together: nobody waits for a token.
//
// A step of many rows costs little more than one of few, and encoders have the machine to themselves meanwhile. So where all
// decoding sequences are patient, prompts are run first, and those that are coming are waited for while there is a slot
// for them.
func (s *scheduler) gathers(now time.Time) bool {
	for _, q := range s.slots.decoding {
		if !s.patient(q, now) {
			return false
		}
	}
	return len(s.slots.decoding) > 0 && now.Sub(s.decoded) < longestHold
}

// patient says whether nobody waits for q's tokens and there is time enough for them all.
func (s *scheduler) patient(q *sequence, now time.Time) bool {
	if q.priority != PriorityBatch || q.deadline.IsZero() {
		return q.priority == PriorityBatch
	}
	left := s.pace.answering(q.maxTokens-(len(q.ids)-q.prompt), true)
	return now.Add(longestHold + 2*left).Before(q.deadline)
}

// hold is how long to wait for so many sequences that are coming; 0 if there is a step to run now.
func (s *scheduler) hold(coming int, now time.Time) time.Duration {
	if coming == 0 || s.queue.len() > 0 || !s.slots.free() || !s.gathers(now) {
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
