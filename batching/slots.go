package batching

import (
	"slices"

	"github.com/mmserve/mmserve/decoder"
)

// slots says whose keys and values each KV slot holds. The decoding sequences have slots [0, len(decoding)) and those
// in prefill have the next, because attention may run over one contiguous range of slots. The others may hold cached
// sequences: ended ones, from which a new one may start. Between steps one sequence is in prefill at most; in a step
// there may be more, whose prompts end with it all but the last's.
//
//	decoding … | prefilling | cached and empty slots in any order
//
// The order of the lists is where sequences belong; sequence.slot is where their KV lies. moves, once a step, closes
// the gap. In between any number of sequences may end and others take their places: a chain of moves never comes to
// be. Places only ever get lower, so a running sequence lies at its place or above; moves made in ascending order of
// target exchange it with a cached one at most, never with another that runs.
type slots struct {
	at         []*sequence // owner of each slot; nil if free
	decoding   []*sequence
	prefilling []*sequence
	cached     []*sequence // in the order in which they ended: the first is evicted first
	evictions  int64
	touched    []int // the number of positions of each slot that have memory
	wipe       bool  // the next step puts zeros over all that nobody has
	mixed      bool  // rows of a step may have any number of positions each
}

func newSlots(size int) slots { return slots{at: make([]*sequence, size), touched: make([]int, size)} }

// free says whether a sequence could start its prefill while no other is in prefill.
func (s *slots) free() bool { return len(s.prefilling) == 0 && s.running() < len(s.at) }

// running is the number of slots that running sequences use.
func (s *slots) running() int { return len(s.decoding) + len(s.prefilling) }

// enter starts q's prefill in the slot after the running ones, from the first n positions of src if n > 0. A cached
// source is taken over, slot and all, if take or if there is no other slot; else it is copied. enter appends the moves
// for that; all others have been made.
func (s *slots) enter(q, src *sequence, n int, take bool, list []decoder.Move) []decoder.Move {
	q.phase, q.past = prefilling, n
	place := s.running()
	last := len(s.cached) == 1 && place+1 == len(s.at)
	s.prefilling = append(s.prefilling, q)
	if n > 0 && src.phase == ended && (take || last) {
		s.forget(src)
		s.at[src.slot], q.slot = q, src.slot
		return s.bring(q, place, list)
	}
	from := -1
	if n > 0 {
		from = src.slot
	}
	if other := s.at[place]; other != nil {
		empty := s.empty(src)
		if other.slot == place && empty != place { // it was not the one evicted
			list = append(list, decoder.Move{From: place, To: empty, Len: other.past})
			s.at[empty], other.slot = other, empty
		}
	}
	s.at[place], q.slot = q, place
	if n > 0 && from != place { // what is at q's place already need not be copied
		list = append(list, decoder.Move{From: from, To: place, Len: n})
	}
	return list
}

// empty returns a slot that nobody has, of the cached sequences but keep the oldest is evicted for it if need be.
func (s *slots) empty(keep *sequence) int {
	if i := slices.Index(s.at, nil); i >= 0 {
		return i
	}
	oldest := s.cached[0]
	if oldest == keep {
		oldest = s.cached[1]
	}
	s.evict(oldest)
	return oldest.slot
}

// evict gives a cached sequence's slot free.
func (s *slots) evict(q *sequence) {
	s.forget(q)
	s.at[q.slot] = nil
	s.evictions++
}

// forget takes a cached sequence off the list; its slot is about to have another owner.
func (s *slots) forget(q *sequence) {
	i := slices.Index(s.cached, q)
	s.cached = slices.Delete(s.cached, i, i+1)
}

// join makes the first sequence in prefill the last decoding one; its slot is the right one already.
func (s *slots) join() {
	s.prefilling[0].phase = decoding
	s.decoding = append(s.decoding, s.prefilling[0])
	s.prefilling = slices.Delete(s.prefilling, 0, 1)
}

// leave takes q off the running ones; the last decoding sequence takes its place. Its KV is cached as heir's, q itself
// if it has ended; its slot is empty if heir is nil.
func (s *slots) leave(q, heir *sequence) {
	if heir != nil {
		s.cached = append(s.cached, heir)
	}
	s.at[q.slot] = heir
	if i := slices.Index(s.prefilling, q); i >= 0 {
		s.prefilling = slices.Delete(s.prefilling, i, i+1)
		return
	}
	last := len(s.decoding) - 1
	s.decoding[slices.Index(s.decoding, q)] = s.decoding[last]
	s.decoding[last] = nil
	s.decoding = s.decoding[:last]
}

// moves appends the moves that bring every running sequence to its place, in a safe order, and takes them for made.
func (s *slots) moves(list []decoder.Move) []decoder.Move {
	for place, q := range s.decoding {
		list = s.bring(q, place, list)
	}
	for i, q := range s.prefilling {
		list = s.bring(q, len(s.decoding)+i, list)
	}
	return list
}

// bring moves q to its place; a cached sequence there gets q's slot.
func (s *slots) bring(q *sequence, place int, list []decoder.Move) []decoder.Move {
	if q.slot == place {
		return list
	}
	m := decoder.Move{From: q.slot, To: place, Len: q.past}
	other := s.at[place]
	if other != nil {
		m.Back, other.slot = other.past, q.slot
	}
	s.at[q.slot], s.at[place], q.slot = other, q, place
	return append(list, m)
}

// idleMemory says whether slots that nobody has hold memory.
func (s *slots) idleMemory() bool {
	for i, q := range s.at {
		if q == nil && s.touched[i] > 0 {
			return true
		}
	}
	return false
}

// releases appends what gives memory back, after the batch's moves and before its rows: that of slots that nobody has,
// and where the budget would not hold otherwise, or it is to be wiped, all that holds no positions in use. Memory that
// is about to be written again is dear to give back and get anew.
func (s *slots) releases(b *decoder.Batch, budget int) {
	for _, m := range b.Moves {
		s.touched[m.To] = max(s.touched[m.To], m.Len)
		s.touched[m.From] = max(s.touched[m.From], m.Back)
	}
	total := 0
	for _, n := range s.touched {
		total += n
	}
	width := b.Width()
	reach := func(r decoder.Row) int { // that of the longest, where rows cannot differ
		if s.mixed {
			return r.Past + r.Width()
		}
		return r.Past + width
	}
	for _, r := range b.Rows {
		total += max(reach(r)-s.touched[r.Slot], 0)
	}
	for i, q := range s.at {
		used := 0
		if q != nil {
			used = q.past
		}
		if s.touched[i] > used && (q == nil || total > budget || s.wipe) {
			b.Releases = append(b.Releases, decoder.Release{Slot: i, From: used, To: s.touched[i]})
			s.touched[i] = used
		}
	}
	for _, r := range b.Rows {
		s.touched[r.Slot] = max(s.touched[r.Slot], reach(r))
	}
}
