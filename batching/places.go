package batching

import "math"

// places counts who has tickets, and says who may have more. Waiting places are kept free for those who would otherwise
// find them taken by work that can wait, or all by one caller.
//
// Of W waiting places, requests of class default leave W/8 to interactive ones, and batch takes Options.BatchPlaces.
// No caller may have more than Options.TenantPlaces beside the slots, nor more than crowding times the places that
// are left: so one that floods always leaves some, and several that flood come to have as many each (Choudhury and
// Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). Answers beyond a call's first
// have half of all places. An idle engine takes every call that has room.
type places struct {
	slots   int
	limit   int          // slots and waiting places
	kept    [classes]int // that a class leaves free
	most    int          // that a caller may have
	open    int          // tickets out
	further int          // those for answers beyond a call's first
	holders map[holder]int
}

// crowding is how many places a caller may have, beyond as many as there are slots, for each that is left.
const crowding = 8

// holder is a tenant, or, for requests without one, a caller.
type holder struct{ tenant, caller string }

func newPlaces(slots int, o Options) places {
	waiting := max(o.MaxWaiting, 0)
	p := places{slots: slots, limit: slots + waiting, holders: map[holder]int{}}
	p.kept[PriorityDefault.class()] = waiting / 8
	p.kept[PriorityBatch.class()] = waiting - partOf(waiting, o.BatchPlaces)
	p.most = slots + partOf(waiting, o.TenantPlaces)
	return p
}

// partOf is the part of n, rounded up; part is threeQuarters if it is 0.
func partOf(n int, part float64) int {
	if !(part > 0 && part <= 1) {
		part = threeQuarters
	}
	return int(math.Ceil(float64(n) * part))
}

// threeQuarters is the default of Options.BatchPlaces and TenantPlaces.
const threeQuarters = 0.75

// admits says whether n answers of one call may have places.
func (p *places) admits(h holder, class, n int) bool {
	if p.open == 0 {
		return n <= p.limit
	}
	left := p.limit - p.kept[class] - p.open
	return n <= left && p.holders[h]+n <= min(p.most, p.slots+crowding*left) &&
		(n == 1 || p.further == 0 || p.further+n-1 <= p.limit/2)
}

// take counts a ticket out.
func (p *places) take(t *Ticket) {
	p.open++
	p.holders[t.holder]++
	if t.further {
		p.further++
	}
}

// give counts it back.
func (p *places) give(t *Ticket) {
	p.open--
	if p.holders[t.holder]--; p.holders[t.holder] == 0 {
		delete(p.holders, t.holder)
	}
	if t.further {
		p.further--
	}
}
