package batching

import (
	"math"
	"slices"

	"github.com/mmserve/mmserve/fusion"
)

// source finds the sequence whose KV q can start from, and the number of positions; 0 if there is none. It may be
// cached or running still. Among equals a cached one is preferred: it may be taken over instead of copied.
func (s *scheduler) source(q *sequence) (src *sequence, n int) {
	if q.logprobs != nil && !q.logprobs.Complete() || s.wholePrompt {
		return nil, 0
	}
	for _, list := range [][]*sequence{s.slots.cached, s.slots.decoding} {
		for _, c := range list {
			twin := q.group != nil && q.group == c.group
			if !twin && (!s.caching || c.tenant != q.tenant && !s.sharePrefixes) {
				continue
			}
			most := min(s.reusable(c), q.target-1) // the last position is always run: its logits are wanted
			if twin {
				most = min(most, q.prompt)
			}
			if most <= n {
				continue
			}
			m := most
			if !twin {
				m = shared(q, c, most)
			}
			if m = s.common(q, c, m); m > n {
				src, n = c, m
			}
		}
	}
	return src, n
}

// reusable is the number of q's positions in the cache whose keys and values another prompt's prefill would give to the
// last bit. Where the runner promises nothing these are the prompt's whole chunks.
func (s *scheduler) reusable(q *sequence) int {
	if s.exact {
		return q.past
	}
	return s.whole(q, min(q.past, q.prompt))
}

// shared is the number of positions, at most n, at which a and b have the same embeddings, counted from the first: the
// same ids, and over them the same images in maps of the same shape, which positions follow. An image without a digest
// is like no other.
func shared(a, b *sequence, n int) int {
	x, y := a.ids[:n], b.ids[:n]
	for n = 0; n < len(x) && x[n] == y[n]; n++ {
	}
	for i := 0; ; i++ {
		p, q := spanAt(a.spans, i), spanAt(b.spans, i)
		switch {
		case min(p.Start, q.Start) >= n:
			return n
		case p.Start != q.Start || p.Digest != q.Digest || p.Offset != q.Offset || p.Digest == [32]byte{} ||
			p.Rows != q.Rows || p.Cols != q.Cols:
			return min(p.Start, q.Start)
		case p.Len != q.Len:
			n = min(n, p.Start+min(p.Len, q.Len))
		}
	}
}

// spanAt is spans[i], or one that starts after any position.
func spanAt(spans []fusion.Span, i int) fusion.Span {
	if i < len(spans) {
		return spans[i]
	}
	return fusion.Span{Start: math.MaxInt}
}

// strip lets go of what only a running sequence needs: a cached one may stay for long.
func (q *sequence) strip() {
	q.sampler, q.logprobs, q.group = nil, nil, nil
	q.spans = slices.Clone(q.spans)
	for i := range q.spans {
		q.spans[i].Patches = nil
	}
}
