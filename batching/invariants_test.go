package batching

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
)

// invariants is what must hold between any two verbs of the scheduler.
func (s *scheduler) invariants() error {
	seen := map[*sequence]string{}
	owner := map[int]*sequence{} // of a KV slot that holds something
	own := func(q *sequence, where string, p phase) error {
		if seen[q] != "" {
			return fmt.Errorf("%s is %s and %s", q.id, seen[q], where)
		}
		seen[q] = where
		if q.phase != p {
			return fmt.Errorf("%s is %s in phase %d", q.id, where, q.phase)
		}
		return nil
	}
	lies := func(q *sequence, place int) error {
		if q.slot < place || q.slot >= len(s.slots.at) {
			return fmt.Errorf("%s lies in slot %d, its place is %d of %d", q.id, q.slot, place, len(s.slots.at))
		}
		if s.slots.at[q.slot] != q {
			return fmt.Errorf("%s lies in slot %d, which is not its own", q.id, q.slot)
		}
		if other := owner[q.slot]; other != nil {
			return fmt.Errorf("slot %d has %s and %s", q.slot, other.id, q.id)
		}
		owner[q.slot] = q
		return nil
	}
	if err := s.queue.invariants(); err != nil {
		return err
	}
	for q := range s.queue.all() {
		if err := own(q, "waiting", waiting); err != nil {
			return err
		}
		if q.past != 0 || len(q.ids) != q.prompt && q.timing.FirstScheduled.IsZero() {
			return fmt.Errorf("%s waits with past %d, %d generated", q.id, q.past, len(q.ids)-q.prompt)
		}
		if q.lost > 0 && q.timing.FirstScheduled.IsZero() {
			return fmt.Errorf("%s lost %d positions before it ran", q.id, q.lost)
		}
	}
	for i, q := range s.slots.decoding {
		if err := own(q, "decoding", decoding); err != nil {
			return err
		}
		if err := lies(q, i); err != nil {
			return err
		}
		made := len(q.ids) - q.prompt
		if q.past != len(q.ids)-1 && (s.exact || q.past < q.prompt || q.past >= len(q.ids)) || q.past >= s.maxLen ||
			made < 1 || made >= q.maxTokens {
			return fmt.Errorf("%s decodes with past %d of %d ids, %d of %d generated", q.id, q.past, len(q.ids), made, q.maxTokens)
		}
	}
	for i, q := range s.slots.prefilling {
		if err := own(q, "prefilling", prefilling); err != nil {
			return err
		}
		if err := lies(q, len(s.slots.decoding)+i); err != nil {
			return err
		}
		if q.past >= q.target || q.past != s.whole(q, q.past) ||
			q.target != len(q.ids) && (s.exact || q.target != q.prompt) {
			return fmt.Errorf("%s prefills with past %d of %d in chunks of %d", q.id, q.past, q.target, s.chunk)
		}
	}
	running := len(owner)
	for _, q := range s.slots.cached {
		if err := own(q, "cached", ended); err != nil {
			return err
		}
		if err := lies(q, 0); err != nil {
			return err
		}
		if s.reusable(q) < 1 || q.past > len(q.ids) || q.sampler != nil || !s.caching {
			return fmt.Errorf("%s is cached with %d positions of %d ids", q.id, q.past, len(q.ids))
		}
	}
	for slot, q := range s.slots.at {
		if q != owner[slot] {
			return fmt.Errorf("slot %d belongs to a sequence that is nowhere", slot)
		}
	}
	if _, held := s.held(); held > s.budget {
		return fmt.Errorf("%d KV positions are held of %d", held, s.budget)
	}
	due := 0
	for q := range seen {
		if q.due >= 0 {
			due++
			if q.phase == ended || s.deadlines[q.due] != q || !q.timing.FirstToken.IsZero() {
				return fmt.Errorf("%s is watched for its deadline at %d", q.id, q.due)
			}
		}
	}
	if due != len(s.deadlines) {
		return fmt.Errorf("%d deadlines are watched of %d sequences", len(s.deadlines), due)
	}
	if st := s.stats(); st.Running != running || st.CachedSlots != len(owner)-running ||
		st.Running+st.Waiting+st.CachedSlots != len(seen) {
		return fmt.Errorf("stats count %d running, %d waiting and %d cached of %d", st.Running, st.Waiting, st.CachedSlots, len(seen))
	}
	return nil
}

// invariants of the queue: whoever is in a class is in one share of it, and the heap holds the shares that have anyone.
func (q *queue) invariants() error {
	for i := range q.classes {
		c := &q.classes[i]
		entries, tokens := 0, 0
		for name, t := range c.tenants {
			if t.tenant != name || t.open < t.len() {
				return fmt.Errorf("tenant %q has %d waiting of %d open", name, t.len(), t.open)
			}
			if t.len() > 0 && (t.index < 0 || c.waiting[t.index] != t) || t.len() == 0 && t.index >= 0 {
				return fmt.Errorf("tenant %q with %d waiting is at %d of the heap", name, t.len(), t.index)
			}
			for rank := range t.answers {
				for e := t.answers[rank].Front(); e != nil; e = e.Next() {
					s := e.Value.(*sequence)
					if s.share != t || s.class != i || s.inShare != e || s.rank() != rank {
						return fmt.Errorf("%s waits in another place than it knows", s.id)
					}
					entries++
					tokens += len(s.ids)
				}
			}
		}
		if err := c.shareInvariants(); err != nil {
			return err
		}
		if entries != c.entries.Len() || tokens != c.tokens {
			return fmt.Errorf("class %d has %d sequences of %d tokens, its tenants %d of %d", i, c.entries.Len(), c.tokens, entries, tokens)
		}
		since := time.Time{}
		for e := c.entries.Front(); e != nil; e = e.Next() {
			if s := e.Value.(*sequence); s.since.Before(since) {
				return fmt.Errorf("%s entered class %d before the one ahead of it", s.id, i)
			} else {
				since = s.since
			}
		}
		for j, t := range c.waiting {
			if t.index != j || t.key > t.counter || c.tenants[t.tenant] != t {
				return fmt.Errorf("tenant %q is at %d of the heap, not %d", t.tenant, j, t.index)
			}
		}
	}
	return nil
}

// invariants holds for a plan that was just made, before it has run.
func (p plan) invariants(s *scheduler) error {
	if len(p.batch.Rows) == 0 && len(p.batch.Releases) == 0 && !p.batch.Wipe || len(p.batch.Rows) != len(p.seqs) {
		return fmt.Errorf("a plan of %d rows for %d sequences", len(p.batch.Rows), len(p.seqs))
	}
	for i, q := range s.slots.decoding {
		if q.slot != i {
			return fmt.Errorf("%s lies in slot %d after the moves, its place is %d", q.id, q.slot, i)
		}
	}
	ids := 0
	for i, q := range s.slots.prefilling {
		if q.slot != len(s.slots.decoding)+i {
			return fmt.Errorf("%s prefills in slot %d after %d decoding", q.id, q.slot, len(s.slots.decoding))
		}
	}
	if len(s.slots.prefilling) > 1 { // short ones, each to its end
		for i, q := range s.slots.prefilling {
			r := p.batch.Rows[p.decodes+i]
			if ids += len(r.IDs); p.seqs[p.decodes+i] != q || r.Past+len(r.IDs) != q.target || ids > s.chunk || !s.slots.mixed {
				return fmt.Errorf("%s is read beside others with %d ids, %d with theirs", q.id, len(r.IDs), ids)
			}
		}
	}
	touched := 0
	for i, n := range s.slots.touched {
		touched += n
		if q := s.slots.at[i]; q == nil && n > 0 || q != nil && n < q.past {
			return fmt.Errorf("slot %d has memory for %d positions", i, n)
		}
	}
	if touched > s.budget {
		return fmt.Errorf("%d positions have memory, the budget is %d", touched, s.budget)
	}
	for i, q := range p.seqs {
		if (q.phase == decoding) != (i < p.decodes) || i >= p.decodes && p.decodes > 0 && !s.slots.mixed {
			return fmt.Errorf("row %d, of %d that decode, is that of %s in phase %d", i, p.decodes, q.id, q.phase)
		}
		r := p.batch.Rows[i]
		if r.Slot != q.slot || r.Past != q.past || (r.Sampler == q.sampler) != (r.Past+len(r.IDs)-r.Drafts == len(q.ids)) &&
			!q.missed {
			return fmt.Errorf("row %d is not that of %s", i, q.id)
		}
		if err := q.draftInvariants(s, r, p.batch.Width()); err != nil {
			return err
		}
		if end := r.Past + len(r.IDs); q.phase == prefilling && (end != q.target &&
			(end != s.whole(q, end) || r.Sampler != nil) || len(r.IDs) > s.chunk && !s.oneImage(r)) {
			return fmt.Errorf("%s's chunk ends at %d, of %d", q.id, end, q.prompt)
		}
	}
	return nil
}

// draftInvariants holds for the drafts of q's row in a step of that width, and for those that it may get.
func (q *sequence) draftInvariants(s *scheduler, r decoder.Row, width int) error {
	drafts := r.Drafts
	if r.Propose != nil {
		drafts += r.Propose.Most
	}
	made := len(q.ids) - q.prompt
	if drafts > 0 && (q.phase != decoding || drafts > s.drafts || made+drafts >= q.maxTokens || q.past+width > s.maxLen) {
		return fmt.Errorf("%s, %d of %d tokens generated, has %d drafts", q.id, made, q.maxTokens, drafts)
	}
	return nil
}

// drafts holds for a plan that has run, perhaps with drafts of a model's, and is not committed yet.
func (p plan) drafts(s *scheduler) error {
	for i, q := range p.seqs {
		r := p.batch.Rows[i]
		if err := q.draftInvariants(s, r, p.batch.Width()); err != nil {
			return err
		}
		if r.Propose != nil && s.proposes || r.IDs[0] != q.ids[q.past] || s.slots.touched[r.Slot] < r.Past+len(r.IDs) {
			return fmt.Errorf("after its step %s has the row %+v", q.id, r)
		}
		for _, id := range r.IDs[len(r.IDs)-r.Drafts:] {
			if slices.Contains(q.stop, id) {
				return fmt.Errorf("a stop id of %s is drafted", q.id)
			}
		}
	}
	return nil
}

// oneImage tells that a row is all positions of an image and nothing else, as they have to be run at once.
func (s *scheduler) oneImage(r decoder.Row) bool {
	return s.wholeImages && slices.ContainsFunc(r.Spans,
		func(p fusion.Span) bool { return p.Start == r.Past && p.Len == len(r.IDs) })
}

// ticketInvariants counts tickets. Only the loop's goroutine may call it; unsubmitted is the number of tickets that
// requests hold that they have not submitted.
func (e *Engine) ticketInvariants(unsubmitted int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := unsubmitted + e.sched.queue.len() + e.sched.slots.running()
	for _, m := range e.inbox {
		if !m.cancel {
			n++
		}
	}
	p := &e.places
	if n != p.open || p.open > p.limit {
		return fmt.Errorf("%d tickets are out of %d, %d requests are open", p.open, p.limit, n)
	}
	held, unseen := 0, 0
	for h, n := range p.holders {
		if held += n; n < 1 {
			return fmt.Errorf("%v has %d tickets", h, n)
		}
	}
	for _, n := range e.unseen {
		unseen += n
	}
	if held != p.open || unseen != p.open-e.sched.queue.len()-e.sched.slots.running() || e.probes < 0 {
		return fmt.Errorf("%d tickets are out, %d by holder, %d of them unseen, %d are probes", p.open, held, unseen, e.probes)
	}
	return nil
}

// checked runs the invariants from within every step of an engine, on the goroutine that owns the scheduler. A breach
// is a panic, which ends the engine and with it the test.
type checked struct {
	Runner
	engine *Engine
	// tickets says that every ticket out is a submitted request's.
	tickets atomic.Bool
}

func newChecked(r Runner, o Options) (*Engine, *checked) {
	c := &checked{Runner: r}
	c.engine = New(c, o)
	return c.engine, c
}

func (c *checked) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	s := c.engine.sched
	err := s.invariants()
	if err == nil {
		p := plan{batch: b, seqs: s.seqs}
		for p.decodes < len(p.seqs) && p.seqs[p.decodes].phase == decoding {
			p.decodes++
		}
		err = p.invariants(s)
	}
	if err == nil && c.tickets.Load() {
		err = c.engine.ticketInvariants(0)
	}
	if err != nil {
		panic(err)
	}
	return c.Runner.Run(ctx, b)
}

// shareInvariants holds what the class knows of tenants' turns and parts.
func (c *class) shareInvariants() error {
	waiting, recent, weight := 0, 0, 0.0
	for name, t := range c.tenants {
		if t.len() > 0 {
			waiting++
			if h := t.hunger; c.hungry[h.index] != t || h.key.Before(c.hungry[0].hunger.key) {
				return fmt.Errorf("tenant %q is at %d of the hungry", name, h.index)
			}
		}
		if at := t.recent.at; at != nil {
			recent++
			weight += t.weight
			if at.Value != t {
				return fmt.Errorf("tenant %q has another's place among the recent", name)
			}
		} else if t.open > 0 {
			return fmt.Errorf("tenant %q has %d open and is not among the recent", name, t.open)
		}
		if running := t.running(); running < 0 {
			return fmt.Errorf("tenant %q runs %d", name, running)
		}
	}
	if len(c.hungry) != waiting || c.recent.shares.Len() != recent {
		return fmt.Errorf("%d are hungry of %d that wait, %d are recent of %d", len(c.hungry), waiting,
			c.recent.shares.Len(), recent)
	}
	if diff := c.recent.weight - weight; diff > 1e-6*(1+weight) || diff < -1e-6*(1+weight) {
		return fmt.Errorf("the recent weigh %v, not %v", c.recent.weight, weight)
	}
	return nil
}
