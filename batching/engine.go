// Package batching decides who runs next. One goroutine steps: it schedules a batch of sequences, has it run, and
// commits what came out.
//
// A tour: Engine (engine.go) has the loop, and admission.go the way in, from Acquire over Submit to the end of a
// sequence. The scheduler (scheduler.go) is the policy, a plain value that only the loop's goroutine touches; slots
// (slots.go) says which sequence owns which KV slot, prefix.go from which one's KV a new sequence may start, and the
// queue (queue.go) who is next to get a slot; a
// sequence (sequence.go) is one request; its tokens reach the client through a Stream (stream.go), for which the loop
// never waits.
package batching

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/mmserve/mmserve/decoder"
)

// Runner runs one step: the seam between batching and the model. The engine's goroutine is the only caller.
type Runner interface {
	// Capacity is read once, by New; there is at least one slot.
	Capacity() decoder.Capacity
	// Run makes the batch's moves and then runs its rows; it returns one token for each row with a sampler, in the order
	// of the rows, valid until the next Run. An error that is decoder.ErrDevice ends the engine. Any other is the
	// rows' own: the moves have been made, and every other sequence's KV is as it was.
	Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error)
}

// Options tune an Engine. The zero value works.
type Options struct {
	// MaxWaiting is the number of requests accepted beyond the KV slots. Some of these places are kept for higher classes,
	// for other tenants and for calls of one answer: see Engine.AcquireFor.
	MaxWaiting int
	// BatchPlaces is the part of the places beyond the slots that requests of PriorityBatch may have together, and
	// TenantPlaces the part that one tenant may, or one caller without a tenant: above 0, up to 1; 0.75 if 0. A single
	// call on an idle engine may have all.
	BatchPlaces, TenantPlaces float64
	// PrefillChunk is the largest number of prompt tokens run in one step, but for an image that has to be run whole; 256
	// if 0. Unless the runner is exact (decoder.Capacity), chunks end at multiples of it, so that a prompt is cut alike
	// whatever else is running.
	PrefillChunk int
	// KVTokens is the number of positions that may have memory at once; Slots × MaxLen if 0, and at least MaxLen. When
	// running sequences need more, cached ones are evicted, and then the KV of the least important is computed again
	// later.
	KVTokens int
	// PrefillShare is the part of the time that chunks get while other sequences decode, above 0 and below 1; 0.5 if 0.
	// Their length follows from it: at 0.5 a chunk takes as long as a decode step, so that no token takes longer than two
	// steps, and at 0.8 five. Only where the runner is exact; elsewhere chunks are always PrefillChunk long.
	PrefillShare float64
	// Drafts is the most tokens of a sequence that are guessed, from what was said before or by the runner's draft model
	// if it has one (decoder.Capacity.Proposes), and then checked in one step; 0 if none. What a sequence gives does not
	// depend on it, however its tokens are picked. Only where the runner is exact.
	Drafts int
	// NoPrefixCache forgets what a sequence leaves in its KV slot. Otherwise a new sequence starts from the longest common
	// prefix with one that runs, or that has ended and whose slot no other has needed. Its tokens are the same.
	NoPrefixCache bool
	// SharePrefixes lets sequences start from those of other tenants.
	SharePrefixes bool
	// TenantWeights are the shares that tenants get of a class when all want more; 1 for whom it does not name.
	TenantWeights map[string]float64
	// AgeAfter is how long a request waits in one class before it rises to the next; 30 s if 0, never if below 0.
	AgeAfter time.Duration
	// Observe, if set, is told of every step, on the goroutine that steps: it must not wait.
	Observe func(Step)
	// Clock is time.Now if nil.
	Clock func() time.Time
}

// Engine runs accepted requests in batches. Its methods may be called from any goroutine.
type Engine struct {
	runner   Runner
	clock    func() time.Time
	capacity decoder.Capacity
	sched    *scheduler // owned by the goroutine in Run
	observer func(Step)
	rows     []StepRow // reused for each Step; of the goroutine in Run

	// wake has room for one note: the inbox is not empty, or pending has changed.
	wake chan struct{}
	// drained is closed when no ticket is out and none will be given.
	drained chan struct{}

	mu      sync.Mutex
	inbox   []message    // not yet seen by the scheduler; at most an arrival and a cancellation for each ticket out
	places  places       // tickets out, from Acquire to the end of the sequence
	unseen  [classes]int // those of them whose sequence the scheduler does not have yet
	probes  int          // those whose deadline is unlikely to be met
	pending int          // those whose request is about to be submitted
	refusal error        // what Acquire answers once it refuses for good
	started bool
	stopped bool // Run has returned, nobody reads the inbox
	stats   Stats
	load    load // as of stats
	stepped time.Time
}

// message tells the loop of a new sequence, that nobody wants one any more, if gone not even what it gave, or of what
// is to be forgotten.
type message struct {
	seq          *sequence
	cancel, gone bool
	forget       *forgetting
}

// arrives says whether it brings a sequence.
func (m message) arrives() bool { return !m.cancel && m.forget == nil }

// Stats is a snapshot between two steps. The gauges come first; from Steps on all are totals.
type Stats struct {
	Slots, MaxLen int // the runner's capacity
	Running       int // sequences in prefill or decode
	Waiting       int // sequences submitted, without a slot yet
	Accepted      int // tickets out: running, waiting, and requests that still prepare
	KVTokens      int // positions held by running sequences, of KVBudget
	KVBudget      int
	KVResident    int // positions that have memory: those held, of cached sequences, and what will be written again
	CachedSlots   int // slots that hold what ended sequences left
	// WaitingBy are those of Waiting by class, the lowest first.
	WaitingBy [classes]int

	Steps        int64 // batches run, failed ones too
	PrefillSteps int64 // those that ran chunks of prompts, and of these
	MixedSteps   int64 // those that decoded, too
	FailedSteps  int64
	// DecodeRows are the rows of all decode steps; over Steps - PrefillSteps + MixedSteps they are the mean batch size.
	DecodeRows      int64
	PromptTokens    int64 // prefilled
	GeneratedTokens int64
	DraftedTokens   int64 // guesses that were checked, and of these
	RightDrafts     int64 // the right ones, which count as generated too
	// ModelDrafts and RightModelDrafts are those of the two before that a draft model made.
	ModelDrafts, RightModelDrafts int64

	CachedTokens int64 // prompt positions that sequences found in the prefix cache instead
	Evictions    int64 // cached sequences whose slot was needed
	Preemptions  int64 // sequences that lost their KV to others for a time, for want of memory
	// GaveWay counts by class, the lowest first, the sequences that paused for one that outranked them.
	GaveWay      [classes]int64
	WastedTokens int64 // run for sequences that failed, expired, or whose context ended, or run again after a preemption
	MovedTokens  int64 // KV positions copied to keep the slots dense and to start from others' prefixes
}

// New returns an engine over r that accepts requests; they run once Run does.
func New(r Runner, o Options) *Engine {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	c := r.Capacity()
	e := &Engine{
		runner: r, clock: o.Clock, capacity: c, observer: o.Observe,
		places:  newPlaces(c.Slots, o),
		sched:   newScheduler(c, o),
		wake:    make(chan struct{}, 1),
		drained: make(chan struct{}),
	}
	e.stats, e.load = e.sched.stats(), e.sched.load()
	return e
}

// Run steps until ctx ends, which gives nil, or until the device is lost, which gives an error that is
// decoder.ErrDevice. Either way every open request then gets its final event, Cancelled or Error, and none is
// accepted any more. To let requests finish, Drain first and cancel second.
func (e *Engine) Run(ctx context.Context) (err error) {
	if err := e.start(); err != nil {
		return err
	}
	defer func() { e.stop(err) }()
	for e.receive(ctx) {
		plan := e.sched.schedule(e.clock())
		tokens, err := e.run(ctx, plan)
		switch {
		case err == nil:
			e.deliver(e.sched.commit(plan, tokens, e.clock()))
		case errors.Is(err, decoder.ErrDevice):
			return err
		case ctx.Err() == nil:
			e.deliver(e.sched.fail(plan, err, e.clock()))
		}
	}
	return nil
}

// receive hands what has arrived to the scheduler and sleeps until there is something to run. It is false when ctx
// has ended.
func (e *Engine) receive(ctx context.Context) bool {
	for ctx.Err() == nil {
		inbox, pending := e.takeInbox()
		for _, m := range inbox {
			switch {
			case m.forget != nil:
				e.sched.forget(m.forget)
			case m.cancel:
				e.deliver(e.sched.cancel(m.seq, m.gone, e.clock()))
			default:
				e.sched.add(m.seq, e.clock())
			}
		}
		e.deliver(e.sched.expire(e.clock()))
		var late <-chan time.Time
		if e.sched.busy() {
			hold := e.sched.hold(pending, e.clock())
			if hold == 0 {
				return true
			}
			late = time.After(hold)
		}
		select {
		case <-e.wake:
		case <-late:
		case <-ctx.Done():
		}
	}
	return false
}

// takeInbox gives what has arrived, and how many requests are about to.
func (e *Engine) takeInbox() (in []message, pending int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	in, e.inbox = e.inbox, nil
	for _, m := range in {
		if m.arrives() {
			e.unseen[m.seq.ticket.class]--
		}
	}
	return in, e.pending
}

// run is the one place where a panic of the runner is caught. What the runner's memory looks like afterwards nobody
// knows, so it counts as a lost device.
func (e *Engine) run(ctx context.Context, p plan) (tokens []decoder.Token, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: the runner panicked: %v\n%s", decoder.ErrDevice, v, debug.Stack())
		}
	}()
	began := e.clock()
	tokens, err = e.runner.Run(ctx, p.batch)
	if err == nil && len(tokens) != p.takes(tokens) {
		err = fmt.Errorf("the runner gave %d tokens where %d rows take %d", len(tokens), len(p.seqs), p.takes(tokens))
	}
	e.observe(p, began, err)
	return tokens, err
}

// deliver pushes events to their streams. Tickets of sequences that ended come back first, so that a client who has
// read the end can be accepted again.
func (e *Engine) deliver(list []delivery) {
	e.mu.Lock()
	before := e.stats
	e.stats, e.load = e.sched.stats(), e.sched.load()
	e.mark(before)
	for _, d := range list {
		if d.event.Finish != Running {
			e.release(d.seq.ticket)
		}
	}
	e.mu.Unlock()
	for _, d := range list {
		if d.event.Finish != Running {
			d.seq.detach()
		}
		d.seq.stream.push(d.event, d.seq.timing)
	}
}

func (e *Engine) start() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.started {
		return errors.New("batching: Run was called before")
	}
	e.started = true
	return nil
}

// stop refuses all further work and ends what is open; cause is nil when ctx has ended.
func (e *Engine) stop(cause error) {
	e.mu.Lock()
	e.stopped = true
	if cause != nil {
		e.refuse(fmt.Errorf("the engine has stopped: %w", cause))
	} else {
		e.refuse(ErrDraining)
	}
	in := e.inbox
	e.inbox = nil
	e.mu.Unlock()
	for _, m := range in {
		switch {
		case m.forget != nil:
			e.sched.forget(m.forget)
		case m.arrives():
			e.sched.add(m.seq, e.clock())
		}
	}
	e.deliver(e.sched.end(cause, e.clock()))
}

// Places is the most answers that may be open at once: slots and waiting places. A call for more is never taken.
func (e *Engine) Places() int { return e.places.limit }

// Stats returns the latest snapshot.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Accepted = e.places.open
	for _, m := range e.inbox {
		if m.arrives() {
			s.Waiting++
		}
	}
	return s
}
