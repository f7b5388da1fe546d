package batching

import (
	"slices"

	"github.com/mmserve/mmserve/decoder"
)

// slots says which sequence owns which KV slot. The decoding sequences have slots [0, len(decoding)) and the one in
// prefill has the next, because attention runs over one contiguous range of slots.
//
// The order of the lists is where sequences belong; sequence.slot is where their KV lies. moves, once a step,
// closes the gap. In between any number of sequences may end and others take their places: a chain of moves never
// comes to be. Places only ever get lower, so a sequence lies at its place or above, and moves made in
// ascending order of target never overwrite what is still to be moved.
type slots struct {
	size       int
	decoding   []*sequence
	prefilling *sequence
}

// free says whether a sequence could start its prefill.
func (s *slots) free() bool { return s.prefilling == nil && len(s.decoding) < s.size }

// running is the number of slots in use.
func (s *slots) running() int {
	if s.prefilling != nil {
		return len(s.decoding) + 1
	}
	return len(s.decoding)
}

// enter gives q, of which nothing is in the cache yet, the slot after the decoding ones. All moves have been made.
func (s *slots) enter(q *sequence) {
	q.phase, q.slot = prefilling, len(s.decoding)
	s.prefilling = q
}

// join makes the sequence in prefill the last decoding one; its slot is the right one already.
func (s *slots) join() {
	s.prefilling.phase = decoding
	s.decoding = append(s.decoding, s.prefilling)
	s.prefilling = nil
}

// leave frees q's slot; the last decoding sequence takes its place.
func (s *slots) leave(q *sequence) {
	if q == s.prefilling {
		s.prefilling = nil
		return
	}
	last := len(s.decoding) - 1
	s.decoding[slices.Index(s.decoding, q)] = s.decoding[last]
	s.decoding[last] = nil
	s.decoding = s.decoding[:last]
}

// moves appends the moves that bring every sequence to its place, in a safe order, and takes them for made.
func (s *slots) moves(list []decoder.Move) []decoder.Move {
	for to, q := range s.decoding {
		list = q.moveTo(to, list)
	}
	if s.prefilling != nil {
		list = s.prefilling.moveTo(len(s.decoding), list)
	}
	return list
}

func (q *sequence) moveTo(slot int, list []decoder.Move) []decoder.Move {
	if q.slot != slot {
		list = append(list, decoder.Move{From: q.slot, To: slot, Len: q.past})
		q.slot = slot
	}
	return list
}
