package batching

import (
	"container/list"
	"slices"
	"time"
)

// A tenant that runs fewer sequences than its part of the slots finds one free: the others of its class leave some
// when they have theirs. Slots that end by themselves may not come for seconds, and to preempt for them would cost
// more than it brings, as long as they would soon be needed again.

const (
	// recently is how long a tenant counts after its last sequence: slots are left for those who come again and again.
	recently = 30 * time.Second
	// manyRecent is how many tenants are remembered at most when they have nothing open: names may be made up.
	manyRecent = 16
	// Of so many slots one is left, and one in any case where there are fewer but not very few.
	slotsPerSpare, fewSlots = 16, 4
)

// recents are the tenants of a class that have come recently or have sequences, and the sum of their weights.
type recents struct {
	shares list.List // who came last is last
	weight float64
}

// recentUse is a tenant's place among the recents.
type recentUse struct {
	at   *list.Element // nil if it is not one of them
	seen time.Time
}

// running is the number of the tenant's sequences that do not wait.
func (t *share) running() int { return t.open - t.len() }

// weigh gives t its weight.
func (r *recents) weigh(t *share, weight float64) {
	if t.recent.at != nil {
		r.weight += weight - t.weight
	}
	t.weight = weight
}

// note says that t came now.
func (r *recents) note(t *share, now time.Time) {
	if t.recent.seen = now; t.recent.at != nil {
		r.shares.MoveToBack(t.recent.at)
	} else {
		t.recent.at = r.shares.PushBack(t)
		r.weight += t.weight
	}
	r.prune(now)
	for i := 0; i < 2 && r.shares.Len() > manyRecent; i++ { // twice for each that may be new
		r.drop(r.shares.Front().Value.(*share), now)
	}
}

// prune lets go of those who came long ago and have nothing open.
func (r *recents) prune(now time.Time) {
	for e := r.shares.Front(); e != nil && now.Sub(e.Value.(*share).recent.seen) > recently; e = r.shares.Front() {
		r.drop(e.Value.(*share), now)
	}
	if r.shares.Len() == 0 {
		r.weight = 0 // but for what rounding left
	}
}

// drop lets go of t, which counts as new instead if it has anything open.
func (r *recents) drop(t *share, now time.Time) {
	if t.open > 0 {
		t.recent.seen = now
		r.shares.MoveToBack(t.recent.at)
		return
	}
	r.shares.Remove(t.recent.at)
	t.recent.at = nil
	r.weight -= t.weight
}

// part is how many of so many slots are t's by its weight, one at least.
func (r *recents) part(t *share, slots int) int { return max(1, int(float64(slots)*t.weight/r.weight)) }

// others says whether another tenant than t may come that has not its part of the slots.
func (r *recents) others(t *share, slots int, now time.Time) bool {
	r.prune(now)
	for e := r.shares.Back(); e != nil; e = e.Prev() {
		if o := e.Value.(*share); o != t && o.running() < r.part(o, slots) {
			return true
		}
	}
	return false
}

// spare is how many of so many slots are left.
func spare(slots int) int {
	if slots < fewSlots {
		return 0
	}
	return max(1, slots/slotsPerSpare)
}

// leaves says whether q, which could have a slot, leaves it to other tenants, as its own has its part of them. Batch
// sequences take turns only: nobody waits for their tokens. While any of a lower class run, others can have their
// slots.
func (s *scheduler) leaves(q *sequence, now time.Time) bool {
	all := len(s.slots.at)
	if q.class == PriorityBatch.class() || all-s.slots.running() > spare(all) {
		return false
	}
	r := &s.queue.classes[q.class].recent
	if q.share.running() < r.part(q.share, all) || s.lower(q.class) {
		return false
	}
	return r.others(q.share, all, now)
}

// lower says whether a sequence of a lower class runs.
func (s *scheduler) lower(class int) bool {
	for _, v := range s.slots.decoding {
		if v.class < class {
			return true
		}
	}
	return slices.ContainsFunc(s.slots.prefilling, func(q *sequence) bool { return q.class < class })
}

// interrupts says whether q, which waits, may go before p's prompt is read on, although they are of the same class:
// q's tenant has fewer slots than its part, and p's more. It costs no more than the turn, while a slot keeps what was
// read.
func (s *scheduler) interrupts(q, p *sequence) bool {
	if q.class != p.class || q.class == PriorityBatch.class() || q.share == p.share || q.worth(0) < p.worth(p.preempted) {
		return false
	}
	r, all := &s.queue.classes[q.class].recent, len(s.slots.at)
	return s.caching && s.slots.running() < all && q.share.running() < r.part(q.share, all) &&
		p.share.running() > r.part(p.share, all)
}
