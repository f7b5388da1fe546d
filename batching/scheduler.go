package batching

import (
	"slices"
	"time"

	"github.com/mmserve/mmserve/decoder"
)

// plan is one step: the batch and whose rows they are. It is valid until the next schedule.
type plan struct {
	batch *decoder.Batch
	seqs  []*sequence // seqs[i] has batch.Rows[i]
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
// The policy: the queue says who is next. One sequence is in prefill at a time, in chunks; a chunk and a decode step
// take turns, and a chunk is as long as Options.PrefillShare allows, so that a long prompt slows the running sequences
// but never stops them, unless nobody waits for their tokens (gather.go).
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
	queue         queue // submitted, no slot yet
	deadlines     deadlines
	slots         slots
	deferring     bool // see deferDecode
	chunkLast     bool // the last step was a prefill chunk: a decode step has the next turn
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
		s.drafts = o.Drafts
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
		return s.slots.prefilling != nil || s.queue.len() > 0 && s.turn(s.queue.next()) || s.slots.idleMemory()
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
	s.chunkLast = s.slots.prefilling != nil && !s.decodesNext()
	if s.chunkLast {
		s.planChunk(s.slots.prefilling)
	} else {
		s.planDecode()
	}
	s.slots.releases(&s.batch, s.budget)
	s.batch.Wipe, s.slots.wipe = s.slots.wipe, false
	return plan{batch: &s.batch, seqs: s.seqs}
}

// decodesNext says whether it is the decoding sequences' turn.
func (s *scheduler) decodesNext() bool {
	return s.chunkLast && len(s.slots.decoding) > 0 && !s.deferring && !s.allPending()
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

// planChunk runs the next part of q's prompt. Only the last chunk wants a token, and not even that if the sequence was
// preempted and knows it.
func (s *scheduler) planChunk(q *sequence) {
	end := q.past + s.chunk
	switch {
	case !s.exact:
		end = s.chunkEnd(q, q.past)
	case len(s.slots.decoding) > 0 && !s.deferring:
		end = q.past + s.latency.fitting(s.stallFor(q), s.chunk)
	}
	if q.logprobs != nil && s.exact {
		end = min(end, q.past+logprobsChunk)
	}
	end = min(s.border(q, q.past, end), q.target)
	row := decoder.Row{Slot: q.slot, Past: q.past, IDs: q.ids[q.past:end], Spans: q.spans}
	if q.logprobs != nil && !q.logprobs.Complete() {
		row.Prompt = q.logprobs
	}
	if end == len(q.ids) {
		row.Sampler = q.sampler
	}
	s.batch.Rows, s.seqs = append(s.batch.Rows, row), append(s.seqs, q)
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

// planDecode runs the newest token of each decoding sequence.
func (s *scheduler) planDecode() {
	width := s.draftWidth()
	used := 0 // rows up to the last that does not sit out
	for i, q := range s.slots.decoding {
		row := q.idleRow()
		if !q.pending() {
			row, used = q.decodeRow(width), i+1
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
		q.recordDrafts(row.Drafts, right)
		s.totals.DraftedTokens += int64(row.Drafts)
		s.totals.RightDrafts += int64(right)
	}
	return s.out
}

// measure records how long p took.
func (s *scheduler) measure(p plan, tokens []decoder.Token, now time.Time) {
	took := now.Sub(s.began)
	if s.chunkLast {
		s.latency.recordChunk(len(p.batch.Rows[0].IDs), took, now)
	} else {
		n := p.takes(tokens)
		s.latency.recordDecode(took, now.Sub(s.decoded)-s.heldFor, len(p.seqs), n, now)
		s.latency.recordDrafts(n, p.batch.Width() > 1, took)
	}
	if !s.chunkLast || len(s.slots.decoding) == 0 {
		s.decoded, s.heldFor = now, 0
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
	if s.slots.prefilling != nil {
		open = append(open, s.slots.prefilling)
	}
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
	if s.chunkLast {
		s.totals.PrefillSteps++
	} else {
		s.totals.DecodeRows += int64(len(p.seqs))
	}
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
	if q := s.slots.prefilling; q != nil {
		l.running[q.class]++
		l.tokens[q.class] = q.target - q.past
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
	if q := s.slots.prefilling; q != nil {
		t.KVTokens += q.past
	}
	for _, n := range s.slots.touched {
		t.KVResident += n
	}
	return t
}
