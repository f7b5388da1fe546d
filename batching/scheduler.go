package batching

import (
	"slices"
	"time"

	"github.com/mmserve/mmserve/decoder"
)

// plan is one step: the batch and whose rows they are. It is valid until the next schedule.
type plan struct {
	batch   *decoder.Batch
	seqs    []*sequence // seqs[i] has batch.Rows[i]
	decodes int         // the rows, the first ones, of decoding sequences; the others are chunks of prompts
}

// chunk is the number of prompt tokens that p runs.
func (p plan) chunk() (n int) {
	for _, row := range p.batch.Rows[p.decodes:] {
		n += len(row.IDs)
	}
	return n
}

// takes is the number of tokens that the rows want, given those at the start of the list.
func (p plan) takes(tokens []decoder.Token) int {
	n := 0
	for _, row := range p.batch.Rows {
		if row.Sampler != nil {
			n += 1 + row.Right(tokens[min(n, len(tokens)):])
		}
	}
	return n
}

// delivery is an event on its way to a stream.
type delivery struct {
	seq   *sequence
	event Event
}

// scheduler decides what the next step runs. It does no I/O, starts no goroutine, takes no lock and reads no clock:
// the same calls give the same plans. The deliveries that its verbs return are valid until the next verb.
//
// The policy: the queue says who is next. One long prompt is read at a time, in chunks, and short ones together; a
// chunk and a decode step take turns, and a chunk is as long as Options.PrefillShare allows, so that a long prompt
// slows the running sequences but never stops them, unless nobody waits for their tokens (gather.go).
type scheduler struct {
	maxLen, chunk int
	exact         bool    // chunks may be cut anywhere
	wholePrompt   bool    // prompts are run in one chunk
	wholeImages   bool    // and so are images
	prefixStep    int     // sequences start with a multiple of so many positions of another's
	stall         float64 // what a chunk may take while others decode, in decode steps
	caching       bool
	sharePrefixes bool
	budget        int   // KV positions
	drafts        int   // at most so many a row
	proposes      bool  // the runner has a draft model
	queue         queue // submitted, no slot yet
	deadlines     deadlines
	slots         slots
	deferring     bool // see deferDecode
	chunkLast     bool // the last step was a chunk alone: a decode step has the next turn
	mixedSteps    int  // since the last decode step without chunks
	began         time.Time
	decoded       time.Time     // when a decode step ended, or when there were sequences to decode again
	holdSince     time.Time     // since when decode steps are put off; zero if they are not
	heldFor       time.Duration // how long they were, since decoded
	latency       latencyModel
	totals        Stats

	batch   decoder.Batch // reused for each plan
	seqs    []*sequence
	out     []delivery
	victims []*sequence
	forgets []*forgetting
}

func newScheduler(c decoder.Capacity, o Options) *scheduler {
	s := &scheduler{
		maxLen: c.MaxLen, chunk: o.PrefillChunk, exact: c.Exact, slots: newSlots(c.Slots), queue: newQueue(o),
		wholePrompt: c.WholePrompt, wholeImages: c.WholeImages, prefixStep: max(c.PrefixStep, 1),
		caching: !o.NoPrefixCache && !c.WholePrompt, sharePrefixes: o.SharePrefixes,
		totals: Stats{Slots: c.Slots, MaxLen: c.MaxLen},
	}
	s.budget = c.Slots * c.MaxLen
	if o.KVTokens > 0 {
		s.budget = min(max(o.KVTokens, c.MaxLen), s.budget)
	}
	if s.chunk <= 0 {
		s.chunk = 256
	}
	share := o.PrefillShare
	if !(share > 0 && share < 1) {
		share = 0.5
	}
	s.stall = share / (1 - share)
	s.totals.KVBudget = s.budget
	if c.WholePrompt {
		s.chunk, s.exact = c.MaxLen, false
	}
	if s.exact {
		s.drafts, s.proposes, s.slots.mixed = o.Drafts, c.Proposes, c.Mixed
		if c.MaxDrafts > 0 {
			s.drafts = min(s.drafts, c.MaxDrafts)
		}
	}
	return s
}

// add puts a new sequence into the queue.
func (s *scheduler) add(q *sequence, now time.Time) {
	q.phase = waiting
	s.queue.push(q, false, now)
	s.deadlines.watch(q)
}

// expire ends the sequences whose deadline has passed without a token, and those whose turn it is and whose answer
// would not be complete by theirs: what they take would be lost to those that can make it.
func (s *scheduler) expire(now time.Time) []delivery {
	s.out = s.out[:0]
	late := Event{Finish: Expired, Err: ErrDeadline}
	for q := s.deadlines.expired(now); q != nil; q = s.deadlines.expired(now) {
		s.finish(q, late, now)
	}
	for q := s.queue.next(); q != nil && s.turn(q) && s.missesDeadline(q, now); q = s.queue.next() {
		s.finish(q, late, now)
	}
	s.endFailed(now)
	return s.out
}

// missesDeadline says whether q, if it started now, would probably not be done by its deadline. One that has given
// tokens is not given up. One that has the engine to itself is tried whatever the estimate: it is the next measurement.
func (s *scheduler) missesDeadline(q *sequence, now time.Time) bool {
	alone := s.slots.running() == 0 && s.queue.len() == 1
	if q.deadline.IsZero() || !q.timing.FirstToken.IsZero() || q.probe || alone {
		return false
	}
	l := load{latency: s.latency, slots: 1, stall: s.stall, decodes: len(s.slots.decoding) > 0}
	need := l.estimate(0, q.target, 0) + s.latency.answering(q.maxTokens, len(q.stop) == 0)
	return now.Add(s.latency.faded(need, now)).After(q.deadline)
}

// busy says whether there is anything to run, or memory to give back or to wipe.
func (s *scheduler) busy() bool {
	if s.slots.wipe {
		return true
	}
	if s.allPending() {
		return len(s.slots.prefilling) > 0 || s.queue.len() > 0 && s.turn(s.queue.next()) || s.slots.idleMemory()
	}
	return s.queue.len() > 0 || s.slots.running() > 0 || s.slots.idleMemory()
}

// schedule makes the next step's plan. The scheduler is busy; a plan without rows gives memory back only.
func (s *scheduler) schedule(now time.Time) plan {
	s.began = now
	s.resume(now)
	s.queue.age(now)
	preempted := s.reclaim(now)
	s.deferring = s.deferDecode(now)
	admits := !preempted && !s.decodesNext()
	if admits {
		s.giveWay(now)
	}
	s.batch.Moves = s.slots.moves(s.batch.Moves[:0])
	s.batch.Releases, s.batch.Rows, s.seqs = s.batch.Releases[:0], s.batch.Rows[:0], s.seqs[:0]
	if admits {
		s.admit(now)
	}
	chunks := len(s.slots.prefilling) > 0 && !s.decodesNext()
	if !chunks || s.ridesAlong() {
		s.planDecode(!chunks)
	}
	p := plan{batch: &s.batch, decodes: len(s.batch.Rows)}
	if chunks {
		s.planPrompts(admits, now)
	}
	p.seqs = s.seqs
	s.chunkLast = chunks && p.decodes == 0
	s.slots.releases(&s.batch, s.budget)
	s.batch.Wipe, s.slots.wipe = s.slots.wipe, false
	return p
}

// mostMixed is the most steps in a row that decode beside chunks: the next decodes alone, so that it is known what that
// takes.
const mostMixed = 16

// decodesNext says whether the next step is the decoding sequences' alone.
func (s *scheduler) decodesNext() bool {
	if len(s.slots.decoding) == 0 || s.deferring || s.allPending() {
		return false
	}
	return s.chunkLast || s.mixedSteps >= mostMixed
}

// ridesAlong says whether the decoding sequences have a token each in a step that runs chunks: the weights are read
// once for both.
func (s *scheduler) ridesAlong() bool {
	return s.slots.mixed && len(s.slots.decoding) > 0 && !s.deferring && !s.allPending() && s.latency.step.n > 0
}

// start gives q a slot, with its first n positions from src.
func (s *scheduler) start(q, src *sequence, n int, take bool, now time.Time) {
	s.batch.Moves = s.slots.enter(q, src, n, take, s.batch.Moves)
	if q.timing.FirstScheduled.IsZero() {
		q.timing.FirstScheduled, q.timing.CachedTokens = now, n
	}
	q.charged = max(q.charged, n)
	s.latency.recordPrompt(q.target, n)
	s.resumed(q, n)
}

// logprobsChunk is the longest chunk of a prompt whose tokens' probabilities are wanted, but for a whole image: logits
// of all of its positions take memory, vocabulary × 4 bytes each.
const logprobsChunk = 32

// planPrompts runs the next part of a prompt and, where rows may differ, with the last part as many of the next prompts
// as fit whole into what a chunk may be long. More says whether any may be admitted.
func (s *scheduler) planPrompts(more bool, now time.Time) {
	q := s.slots.prefilling[0]
	most := s.longestChunk(q)
	n := s.planChunk(q, most)
	if !more || !s.slots.mixed || q.past+n < q.target {
		return
	}
	for left := most - n; left > 0; {
		next := s.admitBeside(left, now)
		if next == nil {
			return
		}
		left -= s.planChunk(next, next.target-next.past)
	}
}

// admitBeside admits the next waiting sequence if the rest of its prompt is of at most so many ids, for the same step
// as those in prefill; nil if not. One that would find its prompt begun by one of them comes after it.
func (s *scheduler) admitBeside(most int, now time.Time) *sequence {
	q := s.queue.next()
	if q == nil || s.slots.running() == len(s.slots.at) || q.logprobs != nil {
		return nil
	}
	if s.leaves(q, now) || s.missesDeadline(q, now) {
		return nil
	}
	src, n := s.source(q)
	if q.target-n > min(most, s.longestChunk(q)) || s.waitsFor(q, n) || !s.admitFrom(q, src, n, now) {
		return nil
	}
	return q
}

// waitsFor says whether q, which finds n positions of its prompt, would find more of it after this step.
func (s *scheduler) waitsFor(q *sequence, n int) bool {
	return slices.ContainsFunc(s.slots.prefilling, func(p *sequence) bool {
		if q.group != nil && q.group == p.group {
			return true
		}
		if !s.caching || p.tenant != q.tenant && !s.sharePrefixes {
			return false
		}
		return s.common(q, p, shared(q, p, min(p.target, q.target-1))) >= n+panel
	})
}

// longestChunk is the most ids of a step of q's prompt, but for an image that has to be run whole.
func (s *scheduler) longestChunk(q *sequence) int {
	most := s.chunk
	switch {
	case !s.exact:
		return s.chunkEnd(q, q.past) - q.past
	case len(s.slots.decoding) > 0 && !s.deferring:
		most = s.latency.fitting(s.stallFor(q), s.chunk)
	}
	if q.logprobs != nil {
		most = min(most, logprobsChunk)
	}
	return most
}

// planChunk runs the next part of q's prompt, of so many ids at most, and says of how many. Only the last chunk wants a
// token, and not even that if the sequence was preempted and knows it.
func (s *scheduler) planChunk(q *sequence, most int) int {
	end := q.past + most
	if s.exact {
		end = s.border(q, q.past, end)
	}
	end = min(end, q.target)
	row := decoder.Row{Slot: q.slot, Past: q.past, IDs: q.ids[q.past:end], Spans: q.spans}
	if q.logprobs != nil && !q.logprobs.Complete() {
		row.Prompt = q.logprobs
	}
	if end == len(q.ids) {
		row.Sampler = q.sampler
	}
	s.batch.Rows, s.seqs = append(s.batch.Rows, row), append(s.seqs, q)
	return len(row.IDs)
}

// urgentStall is what a chunk of a prompt may take, in decode steps, where all that decode are of a lower class.
const urgentStall = 4

// stallFor is what a chunk of q's prompt may take, in decode steps.
func (s *scheduler) stallFor(q *sequence) float64 {
	for _, v := range s.slots.decoding {
		if v.class >= q.class {
			return s.stall
		}
	}
	return max(s.stall, urgentStall)
}

// planDecode runs the newest token of each decoding sequence, alone with drafts.
func (s *scheduler) planDecode(alone bool) {
	width := 1
	if alone {
		width = s.draftWidth()
	}
	used := 0 // rows up to the last that does not sit out
	for i, q := range s.slots.decoding {
		row := q.idleRow()
		if !q.pending() {
			row, used = s.decodeRow(q, width), i+1
		}
		s.batch.Rows, s.seqs = append(s.batch.Rows, row), append(s.seqs, q)
	}
	if used > 0 { // else what waits found no memory: the step takes the time until a mask is there
		s.batch.Rows, s.seqs = s.batch.Rows[:used], s.seqs[:used]
	}
}

// commit records that p has run. tokens are those of the rows with a sampler, in order: of a row with drafts, up to the
// first that is not the draft in its place.
func (s *scheduler) commit(p plan, tokens []decoder.Token, now time.Time) []delivery {
	s.out = s.out[:0]
	if p.batch.Wipe {
		s.wiped()
	}
	if len(p.seqs) == 0 {
		return s.out
	}
	s.count(p)
	s.measure(p, tokens, now)
	for i, q := range p.seqs {
		row := p.batch.Rows[i]
		if row.Sampler == nil && q.missed { // it sat the step out
			continue
		}
		if row.Sampler != nil && tokens[0].ID == decoder.NotReady {
			tokens = tokens[1:]
			s.miss(q, row)
			continue
		}
		q.missed = false
		s.ran(q, len(row.IDs)-row.Drafts)
		if q.phase == prefilling {
			s.totals.PromptTokens += int64(len(row.IDs))
			if q.past == q.target {
				s.slots.join()
			}
		}
		if row.Sampler == nil {
			continue
		}
		right := row.Right(tokens)
		for i, t := range tokens[:1+right] {
			if t.ID == decoder.NotReady {
				break // what the row gave before it stays
			}
			if i > 0 { // the draft before it is in the cache
				s.ran(q, 1)
			}
			s.accept(q, t, now)
		}
		tokens = tokens[1+right:]
		s.recordDrafts(q, row.Drafts, right)
	}
	return s.out
}

// measure records how long p took. Of a step that decoded beside chunks these took what it took longer than one
// without.
func (s *scheduler) measure(p plan, tokens []decoder.Token, now time.Time) {
	took, chunk := now.Sub(s.began), p.chunk()
	gap := now.Sub(s.decoded) - s.heldFor
	switch n := p.takes(tokens); {
	case p.decodes == 0:
		s.latency.recordChunk(chunk, took, now)
	case chunk > 0:
		s.latency.recordMixed(chunk, took, gap, now)
	default:
		s.latency.recordDecode(took, gap, len(p.seqs), n, now)
		if !slices.ContainsFunc(p.seqs, func(q *sequence) bool { return q.proposal.Behind }) {
			s.latency.recordDrafts(n, p.batch.Width() > 1, took)
		}
	}
	if p.decodes > 0 || len(s.slots.decoding) == 0 {
		s.decoded, s.heldFor = now, 0
	}
	if s.mixedSteps++; p.decodes == 0 || chunk == 0 {
		s.mixedSteps = 0
	}
}

// ran records that n more positions of q are in the cache.
func (s *scheduler) ran(q *sequence, n int) {
	q.past += n
	q.ran += n
	s.charge(q)
}

// charge has q's tenant pay for the positions that were run.
func (s *scheduler) charge(q *sequence) {
	if q.past <= q.charged { // it is run again
		return
	}
	prompt := max(0, min(q.past, q.prompt)-q.charged)
	s.queue.charge(q, promptCharge*prompt+generatedCharge*(q.past-q.charged-prompt))
	q.charged = q.past
}

// accept gives q its next token.
func (s *scheduler) accept(q *sequence, t decoder.Token, now time.Time) {
	q.ids = append(q.ids, t.ID)
	event := Event{Token: t, HasToken: true, Finish: q.finish(s.maxLen)}
	if q.timing.FirstToken.IsZero() {
		q.timing.FirstToken = now
		s.deadlines.release(q)
		if q.logprobs != nil {
			event.Prompt, q.logprobs = q.logprobs.List, nil
		}
	}
	s.totals.GeneratedTokens++
	if event.Finish != Running {
		s.finish(q, event, now)
		return
	}
	s.out = append(s.out, delivery{q, event})
}

// fail ends the sequences of a plan that could not be run.
func (s *scheduler) fail(p plan, err error, now time.Time) []delivery {
	s.out = s.out[:0]
	s.slots.wipe = s.slots.wipe || p.batch.Wipe // it may not have come to that
	s.count(p)
	s.totals.FailedSteps++
	for _, q := range p.seqs {
		s.finish(q, Event{Finish: Error, Err: err}, now)
	}
	return s.out
}

// cancel removes q, wherever it is; gone says that nobody has use for what it gave. If it has ended meanwhile nothing
// is left to do.
func (s *scheduler) cancel(q *sequence, gone bool, now time.Time) []delivery {
	s.out = s.out[:0]
	if q.phase != ended {
		if !gone {
			q.ran = 0
		}
		s.finish(q, Event{Finish: Cancelled}, now)
	}
	return s.out
}

// end removes everything: as an error if there is a cause, else as cancelled.
func (s *scheduler) end(cause error, now time.Time) []delivery {
	s.out = s.out[:0]
	event := Event{Finish: Cancelled}
	if cause != nil {
		event = Event{Finish: Error, Err: cause}
	}
	open := slices.AppendSeq(slices.Clone(s.slots.decoding), s.queue.all())
	open = append(open, s.slots.prefilling...)
	for _, q := range open {
		s.finish(q, event, now)
	}
	for _, f := range s.forgets { // the runner's memory goes with it
		close(f.done)
	}
	s.forgets = nil
	return s.out
}

// finish removes q from whatever holds it and delivers its last event.
func (s *scheduler) finish(q *sequence, event Event, now time.Time) {
	if q.phase == waiting {
		s.queue.remove(q)
	} else {
		var heir *sequence
		// A failed step may have left anything in the slots of its rows.
		if s.caching && event.Finish != Error && s.reusable(q) > 0 && !q.forgotten {
			heir = q
		}
		s.slots.leave(q, heir)
		q.strip()
	}
	s.slots.wipe = s.slots.wipe || q.forgotten
	s.queue.close(q)
	s.deadlines.release(q)
	s.resume(now)
	whole := event.Finish == Stop || event.Finish == Length
	if n := len(q.ids) - q.prompt; n > 0 {
		s.latency.recordAnswer(n, !whole)
	}
	if !whole {
		s.totals.WastedTokens += int64(q.ran)
	}
	q.phase = ended
	q.timing.Finished = now
	s.out = append(s.out, delivery{q, event})
}

// count adds up what a plan put on the device.
func (s *scheduler) count(p plan) {
	s.totals.Steps++
	if p.decodes < len(p.seqs) {
		s.totals.PrefillSteps++
		if p.decodes > 0 {
			s.totals.MixedSteps++
		}
	}
	s.totals.DecodeRows += int64(p.decodes)
	for _, m := range p.batch.Moves {
		s.totals.MovedTokens += int64(m.Len + m.Back)
	}
}

// load is what estimates are made of.
func (s *scheduler) load() load {
	l := load{latency: s.latency, slots: len(s.slots.at), decodes: len(s.slots.decoding) > 0, stall: s.stall}
	for _, q := range s.slots.decoding {
		l.running[q.class]++
	}
	for _, q := range s.slots.prefilling {
		l.running[q.class]++
		l.tokens[q.class] += q.target - q.past
	}
	for i := classes - 1; i >= 0; i-- {
		l.waiting[i] = s.queue.classes[i].entries.Len()
		l.tokens[i] += s.queue.classes[i].tokens
		if i < classes-1 {
			l.running[i] += l.running[i+1]
			l.waiting[i] += l.waiting[i+1]
			l.tokens[i] += l.tokens[i+1]
		}
	}
	return l
}

// stats returns the totals with the gauges of this moment.
func (s *scheduler) stats() Stats {
	t := s.totals
	t.Running, t.Waiting = s.slots.running(), s.queue.len()
	t.CachedSlots, t.Evictions = len(s.slots.cached), s.slots.evictions
	for i := range s.queue.classes {
		t.WaitingBy[i] = s.queue.classes[i].entries.Len()
	}
	for _, q := range s.slots.decoding {
		t.KVTokens += q.past
	}
	for _, q := range s.slots.prefilling {
		t.KVTokens += q.past
	}
	for _, n := range s.slots.touched {
		t.KVResident += n
	}
	return t
}
