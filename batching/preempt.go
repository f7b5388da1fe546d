package batching

import (
	"cmp"
	"slices"
	"time"
)

const (
	// settled is how many tokens a sequence that gave way generates, once it decodes again, before it may have to again.
	settled = 16
	// patience is how often a sequence gives way before it counts, while it runs, for one a class higher.
	patience = 3
)

// outranks says whether q, which waits, may take what v has, which runs: interactive before default before batch, and
// within a class a call's first answer before the further ones. One that gave way often counts for more, so it does not
// for ever.
func (q *sequence) outranks(v *sequence) bool {
	return q.worth(0) > v.worth(v.preempted)
}

// worth orders sequences by who keeps a slot when others want it: by class, then first answers before further ones.
func (q *sequence) worth(preempted int) int { return 2*(q.class+preempted/patience) + 1 - q.rank() }

// unsettled says whether q gave way and has not got far since.
func (q *sequence) unsettled() bool {
	return q.preempted > 0 && q.phase == decoding && len(q.ids)-q.made < settled
}

// byWorth orders running sequences by who goes first when one has to: of the lowest class, a further answer, the last
// to arrive.
func byWorth(a, b *sequence) int {
	return cmp.Or(a.worth(a.preempted)-b.worth(b.preempted), b.timing.Submitted.Compare(a.timing.Submitted))
}

// victim is the running sequence that goes first when memory is short.
func (s *scheduler) victim() *sequence {
	var v *sequence
	for _, list := range [][]*sequence{s.slots.prefilling, s.slots.decoding} {
		for _, q := range list {
			if v == nil || byWorth(q, v) <= 0 {
				v = q
			}
		}
	}
	return v
}

// giveWay preempts running sequences, if that lets the next waiting one start which outranks them. One that cannot
// start even so takes nothing from anyone.
func (s *scheduler) giveWay(now time.Time) {
	q := s.queue.next()
	if q == nil {
		return
	}
	victims := s.yielding(q)
	for i, v := range victims {
		s.outranked(v, now)
		victims[i] = nil
	}
}

// yielding are the running sequences that have to go so that q can start: none if it can start without, or not even so.
// The slice is valid until the next call.
func (s *scheduler) yielding(q *sequence) []*sequence {
	s.victims = s.victims[:0]
	held, _ := s.held()
	rows := len(s.slots.decoding)
	for _, p := range s.slots.prefilling {
		if !q.outranks(p) && !s.interrupts(q, p) {
			return nil
		}
		s.victims = append(s.victims, p)
		held -= p.target
	}
	fits := func() bool {
		return rows < len(s.slots.at) && held+min(q.target+1, s.maxLen)+rows <= s.budget
	}
	if fits() {
		return s.victims
	}
	first := len(s.victims)
	for _, v := range slices.Backward(s.slots.decoding) {
		if q.outranks(v) && !v.unsettled() {
			s.victims = append(s.victims, v)
		}
	}
	slices.SortStableFunc(s.victims[first:], byWorth)
	for i, v := range s.victims[first:] {
		held -= v.past
		rows--
		if fits() {
			return s.victims[:first+i+1]
		}
	}
	return nil
}

// turn says whether q, the next of those that wait, can start now, if need be in the place of others.
func (s *scheduler) turn(q *sequence) bool {
	return s.slots.free() && !s.leaves(q, s.began) || len(s.yielding(q)) > 0
}

// outranked preempts q for one that outranks it. Its KV stays as a cached sequence's, as long as nobody needs the slot.
func (s *scheduler) outranked(q *sequence, now time.Time) {
	var heir *sequence
	if s.caching && s.reusable(q) > 0 && !q.forgotten {
		heir = q.remains()
	}
	s.totals.GaveWay[q.class]++
	q.preempted++
	q.made = len(q.ids)
	s.preempt(q, heir, now)
}

// preempt takes q's slot away and leaves its KV to heir; without one, it is lost. q waits at the head of its queue to
// have it computed again: the sampler keeps its state, so q goes on as if nothing had happened.
func (s *scheduler) preempt(q, heir *sequence, now time.Time) {
	s.slots.leave(q, heir)
	q.phase, q.lost, q.past, q.missed = waiting, q.past, 0, false
	if s.exact {
		q.target = len(q.ids)
	}
	s.queue.push(q, true, now)
}

// resumed accounts for what was run in vain when q, with n positions found in the cache, was preempted before.
func (s *scheduler) resumed(q *sequence, n int) {
	if q.lost == 0 {
		s.totals.CachedTokens += int64(n)
		return
	}
	again := min(max(q.lost-n, 0), q.ran)
	s.totals.WastedTokens += int64(again)
	q.ran -= again
	q.lost = 0
}

// remains is an ended sequence that has q's KV.
func (q *sequence) remains() *sequence {
	r := &sequence{
		id: q.id, tenant: q.tenant, phase: ended, ids: slices.Clone(q.ids), spans: q.spans, prompt: q.prompt,
		target: q.target,
		past:   q.past, slot: q.slot, class: q.class, due: -1,
	}
	r.strip()
	return r
}
