package batching

import "time"

// held is the number of KV positions that are taken: those of decoding sequences, the whole prompts of those in
// prefill, and what is cached. running leaves the last out.
func (s *scheduler) held() (running, all int) {
	for _, q := range s.slots.decoding {
		running += q.past
	}
	for _, q := range s.slots.prefilling {
		running += q.target
	}
	all = running
	for _, q := range s.slots.cached {
		all += q.past
	}
	return running, all
}

// room evicts cached sequences but keep, the oldest first, until n more positions fit the budget. If they cannot fit it
// evicts none.
func (s *scheduler) room(n int, keep *sequence) bool {
	running, all := s.held()
	if keep != nil && keep.phase == ended {
		running += keep.past
	}
	if running+n > s.budget {
		return false
	}
	for i := 0; all+n > s.budget; {
		q := s.slots.cached[i]
		if q == keep {
			i++
			continue
		}
		all -= q.past
		s.slots.evict(q)
	}
	return true
}

// admit gives the next waiting sequence a slot, if there is one and its prompt fits with a position more for it and
// for each that runs.
func (s *scheduler) admit(now time.Time) {
	q := s.queue.next()
	if q == nil || !s.slots.free() || s.leaves(q, now) {
		return
	}
	src, n := s.source(q)
	s.admitFrom(q, src, n, now)
}

// admitFrom gives q a slot, with its first n positions from src, if it fits. It says whether it did.
func (s *scheduler) admitFrom(q, src *sequence, n int, now time.Time) bool {
	cached := n > 0 && src.phase == ended
	take := cached && n == s.reusable(src)
	need := min(q.target+1, s.maxLen) + s.slots.running()
	fits := !take && s.room(need, src)
	if !fits && cached { // in the source's own place
		take = true
		fits = s.room(need-src.past, src)
	}
	if fits {
		s.queue.start(q, now)
		s.start(q, src, n, take, now)
	}
	return fits
}

// reclaim sees to it that every decoding sequence can grow by a position: it evicts what is cached, and when that is
// not enough it preempts. It says whether it had to; nothing is admitted then.
func (s *scheduler) reclaim(now time.Time) (preempted bool) {
	for !s.room(len(s.slots.decoding), nil) {
		s.totals.Preemptions++
		s.preempt(s.victim(), nil, now)
		preempted = true
	}
	return preempted
}
