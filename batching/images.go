package batching

import "github.com/mmserve/mmserve/fusion"

// Where the positions of an image see each other in both directions (decoder.Capacity.WholeImages), all of them are run
// in one chunk: none ends within an image, and none starts there, from a cached prefix or after a preemption. A chunk
// that would end within one ends before it, or if it starts with it, behind it: so a step exceeds what it may take by
// one image at most.

// inside gives the span that has positions both before and from n on.
func inside(spans []fusion.Span, n int) (s fusion.Span, ok bool) {
	for _, s := range spans {
		if s.Start < n && n < s.Start+s.Len {
			return s, true
		}
	}
	return fusion.Span{}, false
}

// border is where a chunk of q that starts at past ends instead of at end, more than past.
func (s *scheduler) border(q *sequence, past, end int) int {
	if !s.wholeImages {
		return end
	}
	span, ok := inside(q.spans, end)
	switch {
	case !ok:
		return end
	case span.Start > past:
		return span.Start
	}
	return span.Start + span.Len
}

// chunkEnd is where a chunk that starts at q's position past ends if it is to be the same whatever else runs.
func (s *scheduler) chunkEnd(q *sequence, past int) int {
	return s.border(q, past, (past/s.chunk+1)*s.chunk)
}

// common rounds a number of positions, which a and b share, down to where either may start from the other's.
func (s *scheduler) common(a, b *sequence, n int) int {
	for {
		m := s.whole(a, s.whole(b, n))
		if m == n {
			return n
		}
		n = m
	}
}

// whole rounds a number of q's positions down to where another prompt's prefill may go on: at a multiple of prefixStep,
// not within an image where those are run whole, and where the runner is not exact, where a chunk ends.
func (s *scheduler) whole(q *sequence, n int) int {
	for {
		m := s.between(q, n) / s.prefixStep * s.prefixStep
		if m == n {
			return n
		}
		n = m
	}
}

// between is whole but for prefixStep.
func (s *scheduler) between(q *sequence, n int) int {
	switch {
	case s.exact && !s.wholeImages:
		return n
	case s.exact:
		if span, ok := inside(q.spans, n); ok {
			return span.Start
		}
		return n
	case !s.wholeImages:
		return n / s.chunk * s.chunk
	}
	last := 0
	for end := s.chunkEnd(q, 0); end <= n; end = s.chunkEnd(q, last) {
		last = end
	}
	return last
}
