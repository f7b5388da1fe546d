package caption

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// Output keeps rows. A Journal is one.
type Output interface {
	// Append writes a row; image is what it is about, nil for rows that failed before it was read.
	Append(r *Row, image []byte) error
	// Row gives the latest row about a question to an image; nil if there is none.
	Row(path, question, prompt string) (*Row, error)
	// ByKey gives a row whose answer holds for everything with its key; nil if there is none.
	ByKey(key string) (*Row, error)
	// Sync has what was appended survive a crash of the machine.
	Sync() error
}

// Asker is what a run asks of the servers: about images, or something else that items hold. It is safe for concurrent
// use.
type Asker interface {
	// Look fills in what the row says of an item's content, or tells why it cannot be asked about.
	Look(r *Row, data []byte) error
	// Request is what to send. Errors are the item's.
	Request(ctx context.Context, data []byte, prompt string) (*pb.GenerateRequest, error)
	// Answer fills the row in.
	Answer(r *Row, out *pb.GenerateResponse)
}

// Retry says which rows that failed in an earlier run are asked again.
type Retry string

const (
	// RetryTransient asks again what may succeed this time.
	RetryTransient Retry = "transient"
	// RetryAll asks everything that failed again.
	RetryAll Retry = "all"
	// RetryNone asks nothing again.
	RetryNone Retry = "none"
)

// Options are a run's. Source, Config, Server and Output are required.
type Options struct {
	Source Source
	Config Config
	Server Server
	Output Output
	// Asker defaults to one that asks Config's questions about images.
	Asker Asker

	// InFlight is how many calls are open at once; 0 adapts, up to MostInFlight.
	InFlight, MostInFlight int
	// Priority is that of the requests.
	Priority pb.Priority
	// Retry defaults to RetryTransient.
	Retry Retry
	// ShrinkMaxTokens takes max_tokens as an upper bound, as OpenAI does: where it is more than fits, less is asked
	// for.
	ShrinkMaxTokens bool
	// NoDedupe asks about each copy of an image.
	NoDedupe bool
	// MaxErrors ends the run when more items than that failed; MaxErrorShare when a larger share of at least 100 did.
	// 0: no limit.
	MaxErrors     int64
	MaxErrorShare float64
	// Attempts is how often a call is made that fails for no reason of the item's. Default: 5.
	Attempts int
	// Patience is how long to wait for a server that takes requests.
	Patience time.Duration
	// Stop, once closed, ends the run when what is in flight is answered.
	Stop <-chan struct{}
	// FileName gives a row's file_name. Nil: the item's ID.
	FileName func(Item) string
	// Before may keep an item from being asked at all, as what has a sidecar; nil keeps none.
	Before func(Item) bool
	// Writing is called before a row is written; its error becomes the row's. It may be nil.
	Writing func(Item, *Row) error
	// Written is told of each row that was written, in order. It may be nil.
	Written func(r *Row, image []byte)
	// Say gets lines for the person who watches. It may be nil.
	Say func(string)
}

// The errors with which a run ends early.
var (
	// ErrInterrupted: Stop was closed.
	ErrInterrupted = errors.New("interrupted")
	// ErrTooManyErrors: more items failed than Options allow.
	ErrTooManyErrors = errors.New("too many items failed")
)

const (
	readers      = 4
	readAhead    = 64        // images read and not yet asked about, at most
	imageBudget  = 256 << 20 // bytes of images read and not yet answered
	unknownSize  = 4 << 20   // what an image of unknown size is taken for
	mostWaiting  = 4096      // copies of images in flight that wait for the answer
	syncEvery    = time.Second
	leastForRate = 100 // items before a share of errors counts
)

// runner is a run in progress.
type runner struct {
	o       Options
	digest  string
	lim     *limiter
	brk     *breaker
	budget  *semaphore.Weighted
	stats   *Stats
	fail    context.CancelCauseFunc
	work    chan *job
	ordered chan *job
	rows    chan *task
	asks    sync.WaitGroup
	waiting chan struct{} // one token for each copy that waits
	dropped bool          // images were read and not asked about, because of Stop; owned by decideAll

	mu       sync.Mutex
	inflight map[string][]*task // by key: the copies that wait for the answer
}

// Run asks about every item of the source and writes a row for each. It returns when all are written, when Stop is
// closed and what was in flight is written, when ctx ends, or when going on is of no use. The rows written by then are
// whole.
func Run(ctx context.Context, o Options, stats *Stats) error {
	if o.Attempts == 0 {
		o.Attempts = 5
	}
	if o.Retry == "" {
		o.Retry = RetryTransient
	}
	if o.Asker == nil {
		o.Asker = imageAsker{&o.Config, o.Priority}
	}
	if o.Say == nil {
		o.Say = func(string) {}
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	r := &runner{
		o: o, digest: o.Config.digest(), lim: newLimiter(o.InFlight, o.MostInFlight),
		brk:    &breaker{server: o.Server, patience: o.Patience, say: o.Say},
		budget: semaphore.NewWeighted(imageBudget), stats: stats, fail: fail,
		work: make(chan *job), ordered: make(chan *job, readAhead), rows: make(chan *task, readAhead),
		waiting: make(chan struct{}, mostWaiting), inflight: map[string][]*task{},
	}
	stats.start(r)
	defer stats.end()
	var stages, writer sync.WaitGroup
	var listErr error
	listing, stop := context.WithCancel(ctx) // until the end, because items may need what their source has open
	defer stop()
	go func() { // a source may be waiting for standard input
		select {
		case <-o.Stop:
			stop()
		case <-listing.Done():
		}
	}()
	stages.Go(func() { listErr = r.list(ctx, listing) })
	for range readers {
		stages.Go(func() { r.readAll(ctx) })
	}
	stages.Go(func() { r.decideAll(ctx) })
	writer.Go(func() { r.writeAll(ctx) })
	stages.Wait()
	r.asks.Wait()
	close(r.rows)
	writer.Wait()
	cause := context.Cause(ctx)
	fail(nil)
	r.brk.probes.Wait()
	if err := errors.Join(cause, o.Output.Sync(), listErr); err != nil {
		return err
	}
	if r.dropped {
		return ErrInterrupted
	}
	return nil
}

// stopped tells whether the run is to end when what is in flight is answered.
func (r *runner) stopped() bool {
	select {
	case <-r.o.Stop:
		return true
	default:
		return false
	}
}

// list turns the source's items into jobs, in order. What is done and unchanged does not become one.
func (r *runner) list(ctx, listing context.Context) error {
	defer close(r.ordered)
	defer close(r.work)
	var index int64
	for it, err := range r.o.Source(listing) {
		if r.stopped() {
			return ErrInterrupted
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		it.Index = index
		index++
		r.stats.listed.Add(1)
		if r.o.Before != nil && it.Err == nil && r.o.Before(it) {
			r.stats.skipped.Add(1)
			continue
		}
		j, err := r.newJob(it)
		if err != nil {
			r.fail(err)
			return nil
		}
		if j == nil {
			continue
		}
		if r.budget.Acquire(ctx, j.cost) != nil {
			return nil
		}
		for _, c := range []chan *job{r.ordered, r.work} {
			select {
			case c <- j:
			case <-ctx.Done():
				return nil
			}
		}
	}
	return nil
}

// again tells whether the question of an earlier row is to be asked again.
func (r *runner) again(row *Row) bool {
	switch {
	case row.OK() || r.o.Retry == RetryNone:
		return false
	case r.o.Retry == RetryAll:
		return true
	}
	return !row.final()
}
