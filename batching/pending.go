package batching

import (
	"time"

	"github.com/mmserve/mmserve/decoder"
)

// A constraint's mask is found on another goroutine while the step runs that makes the logits it is for. A sequence
// whose mask is not there by then gets no token: it is pending, and sits out steps until Sampler.Ready. Its place
// among the rows may be needed, as they are dense: it then runs its newest token again, without a sampler.

// pending says whether q sits out the next step.
func (q *sequence) pending() bool { return q.missed && !q.sampler.Ready() }

// idleRow is q's part of a decode step that it sits out.
func (q *sequence) idleRow() decoder.Row {
	q.proposal.Behind = false
	return decoder.Row{Slot: q.slot, Past: q.past, IDs: q.ids[q.past : q.past+1], Spans: q.spans}
}

// miss records a row of q that ran but got no token: its last position is run again for one.
func (s *scheduler) miss(q *sequence, row decoder.Row) {
	q.missed = true
	n := len(row.IDs) - row.Drafts - 1
	s.ran(q, n)
	if q.phase == prefilling { // again, after a preemption: the first mask is always there
		s.totals.PromptTokens += int64(n)
		s.slots.join()
	}
}

// allPending says whether there are decoding sequences and each sits out the next step.
func (s *scheduler) allPending() bool {
	for _, q := range s.slots.decoding {
		if !q.pending() {
			return false
		}
	}
	return len(s.slots.decoding) > 0
}

// endFailed ends the sequences whose constraints give no more masks, as delivered by expire.
func (s *scheduler) endFailed(now time.Time) {
	for i := len(s.slots.decoding) - 1; i >= 0; i-- {
		q := s.slots.decoding[i] // finish moves the last one here, which was looked at
		if err := q.sampler.Err(); err != nil {
			s.finish(q, Event{Finish: Error, Err: err}, now)
		}
	}
}
