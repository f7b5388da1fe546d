package batching

import (
	"slices"

	"github.com/mmserve/mmserve/decoder"
)

const (
	// draftPositions is the width times the rows up to which a decode step takes drafts: as long as a step is bound by the
	// weights that it reads, a few more positions cost little.
	draftPositions = 16
	// longestMatch and shortestMatch bound the number of newest tokens that are looked for among those before.
	longestMatch, shortestMatch = 4, 2
	// longestPause is the most tokens for which a sequence is not guessed at after guesses were wrong.
	longestPause = 64
	// modelMisses is how often a draft model may be all wrong of a sequence before it pauses.
	modelMisses = 4
)

// guesses is how one source of drafts does for a sequence.
type guesses struct {
	misses, pause int // drafts that were all wrong, without a right one since; tokens until the next
}

// paused counts a token, and says whether the source is left alone for it.
func (g *guesses) paused() bool {
	if g.pause > 0 {
		g.pause--
		return true
	}
	return false
}

// record takes note of how many drafts were right. Where none was more often than allowed, the source pauses, twice as
// long each time it happens again.
func (g *guesses) record(drafts, right, allowed int) {
	switch {
	case drafts == 0:
	case right > 0:
		g.misses = 0
	default:
		if g.misses++; g.misses > allowed {
			g.pause = min(1<<min(g.misses-allowed, 16), longestPause)
		}
	}
}

// draftWidth is the number of positions that each row of a decode step may take up: 1 without drafts.
func (s *scheduler) draftWidth() int {
	n := len(s.slots.decoding)
	if s.drafts == 0 || !s.latency.draftsPay() {
		return 1
	}
	width := min(1+s.drafts, draftPositions/max(n, 1))
	for _, q := range s.slots.decoding {
		width = min(width, s.maxLen-q.past)
	}
	if _, held := s.held(); width > 1 && held+n*width > s.budget {
		return 1
	}
	return max(width, 1)
}

// decodeRow is q's part of a decode step: its newest token, and what may follow it if a row has room for that. What was
// said before is looked up first, as it costs nothing; where there is a draft model, only if it matches long.
func (s *scheduler) decodeRow(q *sequence, width int) decoder.Row {
	row := decoder.Row{Slot: q.slot, Past: q.past, IDs: q.ids[q.past : q.past+1], Spans: q.spans}
	q.proposal.Given, q.proposal.Behind = 0, false
	if q.past+1 < len(q.ids) { // preempted where the runner is not exact: its tokens are run again as they were before
		return row
	}
	row.Sampler = q.sampler
	most, shortest := min(width-1, q.maxTokens-(len(q.ids)-q.prompt)-1), shortestMatch
	if s.proposes {
		shortest = longestMatch
	}
	switch drafts := q.draft(most, shortest); {
	case len(drafts) > 0:
		q.drafted = append(append(q.drafted[:0], row.IDs[0]), drafts...)
		row.IDs, row.Drafts = q.drafted, len(drafts)
	case s.proposes && most > 0 && !q.plain && !q.model.paused():
		q.proposal.Most, q.proposal.Known, q.proposal.Stop = most, q.ids[:q.past], q.stop
		row.Propose = &q.proposal
	}
	return row
}

// draft guesses at most n tokens that follow q's ids: those that followed the last place at which its newest tokens,
// as many as shortest, stood before. (Prompt lookup decoding, Saxena, 2023; transformers'
// PromptLookupCandidateGenerator.) A stop id is not among them, as nothing follows it, nor a position of an image.
func (q *sequence) draft(n, shortest int) []int32 {
	if n < 1 || q.plain || q.lookup.paused() {
		return nil
	}
	at := recurrence(q.ids, shortest)
	if at == 0 {
		return nil
	}
	drafts := q.ids[at:min(at+n, len(q.ids))]
	for i, id := range drafts {
		if slices.Contains(q.stop, id) {
			return drafts[:i]
		}
	}
	for _, span := range q.spans {
		if span.Start < at+len(drafts) && at < span.Start+span.Len {
			return drafts[:max(span.Start-at, 0)]
		}
	}
	return drafts
}

// recurrence is the index after the last place before the end at which the longest possible suffix of ids stands, of
// shortest or more; 0 if none does.
func recurrence(ids []int32, shortest int) (after int) {
	last, best := len(ids)-1, shortest-1
	for end := last - 1; end >= best && best < longestMatch; end-- {
		n := 0
		for n < longestMatch && n <= end && ids[end-n] == ids[last-n] {
			n++
		}
		if n > best {
			after, best = end+1, n
		}
	}
	return after
}

// recordDrafts takes note of how many of a row's drafts were right.
func (s *scheduler) recordDrafts(q *sequence, drafts, right int) {
	if drafts == 0 {
		return
	}
	s.totals.DraftedTokens += int64(drafts)
	s.totals.RightDrafts += int64(right)
	if q.proposal.Given == 0 {
		q.lookup.record(drafts, right, 0)
		return
	}
	s.totals.ModelDrafts += int64(drafts)
	s.totals.RightModelDrafts += int64(right)
	q.model.record(drafts, right, modelMisses)
}
