package caption

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/imaging"
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

// job is an image on its way.
type job struct {
	item      Item
	questions []Question
	data      []byte
	look      Row // what is known of the content
	err       error
	read      chan struct{} // closed when the fields above are set

	mu   sync.Mutex
	cost int64 // share of the byte budget
	open int   // tasks that still need data
}

// task is one question about an image.
type task struct {
	job    *job
	prompt string
	row    Row
}

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

// newJob makes a job with the questions that have no answer for the item as it is; nil if there are none.
func (r *runner) newJob(it Item) (*job, error) {
	j := &job{item: it, read: make(chan struct{})}
	for _, q := range r.o.Config.Questions {
		row, err := r.o.Output.Row(it.Path, q.Name, it.Prompt)
		if err != nil {
			return nil, err
		}
		if row != nil && it.Version != "" && row.Version == it.Version && !r.again(row) {
			r.stats.skip(row)
			continue
		}
		j.questions = append(j.questions, q)
	}
	if len(j.questions) == 0 {
		return nil, nil
	}
	j.cost = it.Size
	if it.Data != nil {
		j.cost = int64(len(it.Data))
	} else if j.cost == 0 {
		j.cost = unknownSize
	}
	j.cost = min(j.cost, imageBudget)
	return j, nil
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

// readAll reads and hashes jobs until there are no more.
func (r *runner) readAll(ctx context.Context) {
	for j := range r.work {
		j.err = j.item.Err
		if j.err == nil {
			j.err = j.load(ctx, r.o.Asker)
		}
		close(j.read)
	}
}

// load reads the content and looks at it.
func (j *job) load(ctx context.Context, a Asker) (err error) {
	limit := imaging.DefaultLimits().MaxBytes
	j.data, err = Read(ctx, j.item, limit)
	for try := 0; try < 3 && errors.Is(err, errChanged); try++ {
		if sleep(ctx, settle<<try) != nil {
			break
		}
		if it := fileItem(j.item.Path); j.item.Local && it.Err == nil {
			j.item.Version = it.Version
		}
		j.data, err = Read(ctx, j.item, limit)
	}
	j.item.Data = nil
	if err != nil {
		return err
	}
	sum := sha256.Sum256(j.data)
	j.look.SHA256 = hex.EncodeToString(sum[:])
	return a.Look(&j.look, j.data)
}

// decideAll takes jobs in the order of the source, which makes the first of several copies the one that is asked about.
func (r *runner) decideAll(ctx context.Context) {
	for j := range r.ordered {
		select {
		case <-j.read:
		case <-ctx.Done():
			return
		}
		if r.stopped() {
			r.dropped = true
			r.budget.Release(j.cost)
			continue
		}
		j.open = len(j.questions)
		for _, q := range j.questions {
			if err := r.decide(ctx, j, q); err != nil {
				r.fail(err)
				return
			}
		}
	}
}

// decide finds out whether a question is answered, being asked, or to be asked; and then asks it.
func (r *runner) decide(ctx context.Context, j *job, q Question) error {
	t := r.newTask(j, q)
	had, err := r.o.Output.Row(j.item.Path, q.Name, j.item.Prompt)
	if err != nil || ctx.Err() != nil { // reading may have failed because the run ends
		return err
	}
	if j.err != nil {
		t.row.fail(j.err)
	}
	same := had != nil && had.Key == t.row.Key && had.ErrorCode == t.row.ErrorCode && had.Error == t.row.Error
	if same && j.err != nil || had != nil && j.err == nil && had.Key == t.row.Key && !r.again(had) {
		r.stats.skip(had)
		r.drop(t)
		return nil
	}
	if j.err != nil {
		return r.done(ctx, t)
	}
	if !r.o.NoDedupe {
		copied, err := r.copyOrClaim(ctx, t)
		if err != nil || copied {
			return err
		}
	}
	if err := r.lim.acquire(ctx); err != nil {
		return nil // the run ends: nothing is lost, nothing was asked
	}
	r.asks.Go(func() {
		defer r.lim.release()
		r.ask(ctx, t)
	})
	return nil
}

func (r *runner) newTask(j *job, q Question) *task {
	t := &task{job: j, prompt: q.Text, row: j.look}
	if j.item.Prompt != "" {
		t.prompt = j.item.Prompt
	}
	t.row.setPath(j.item)
	t.row.FileName = t.row.ID
	if r.o.FileName != nil {
		t.row.FileName = r.o.FileName(j.item)
	}
	t.row.Question, t.row.Prompt, t.row.Version = q.Name, j.item.Prompt, j.item.Version
	if j.look.SHA256 != "" {
		t.row.Key = key(j.look.SHA256, t.prompt, r.digest)
	}
	return t
}

// copyOrClaim copies the answer of another image with the same bytes, now or when it comes. Else the task is the one
// that copies wait for.
func (r *runner) copyOrClaim(ctx context.Context, t *task) (copied bool, err error) {
	r.mu.Lock()
	waiters, ok := r.inflight[t.row.Key]
	if ok {
		r.inflight[t.row.Key] = append(waiters, t)
		r.mu.Unlock()
		r.freeData(t)
		select {
		case r.waiting <- struct{}{}:
		case <-ctx.Done():
		}
		return true, nil
	}
	first, err := r.o.Output.ByKey(t.row.Key)
	if err == nil && (first == nil || first.path() == t.row.path() || r.again(first)) {
		r.inflight[t.row.Key] = nil
		first = nil
	}
	r.mu.Unlock()
	if err != nil || first == nil {
		return false, err
	}
	t.row.copyFrom(first)
	return true, r.done(ctx, t)
}

// copyFrom takes another row's answer over.
func (r *Row) copyFrom(first *Row) {
	r.DuplicateOf = first.ID
	r.Text, r.Data, r.Choice, r.ChoiceScore = first.Text, first.Data, first.Choice, first.ChoiceScore
	r.FinishReason, r.Seed, r.Model, r.ModelDigest = first.FinishReason, first.Seed, first.Model, first.ModelDigest
	r.PromptTokens, r.ImageTokens, r.CompletionTokens = first.PromptTokens, first.ImageTokens, first.CompletionTokens
	r.ErrorCode, r.Error = first.ErrorCode, first.Error
}

// ask calls until there is an answer or an error that stays.
func (r *runner) ask(ctx context.Context, t *task) {
	started := time.Now()
	in, err := r.o.Asker.Request(ctx, t.job.data, t.prompt)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		t.row.fail(err)
		_ = r.done(ctx, t)
		return
	}
	for tries := 0; ; {
		if err := r.brk.pass(ctx); err != nil {
			r.fail(err)
			return
		}
		t.row.Attempts++
		out, err := call(ctx, r.o.Server, in)
		if ctx.Err() != nil {
			return // no row: the next run asks
		}
		if err == nil {
			if err := r.o.Config.checkModel(out); err != nil {
				r.fail(err)
				return
			}
			r.brk.success()
			r.lim.success()
			r.o.Asker.Answer(&t.row, out)
			break
		}
		switch judge(err) {
		case runFailed:
			r.fail(fmt.Errorf("%w: %w", ErrGivenUp, err))
			return
		case itemFailed:
			r.brk.success()
			if r.o.ShrinkMaxTokens && shrinkMaxTokens(in, err) {
				continue
			}
			t.row.fail(err)
		case tryLater:
			r.wait(ctx, err)
			continue
		case tryAgain:
			if !r.brk.failure(ctx, err) {
				tries++
			}
			if tries < r.o.Attempts {
				r.stats.retried.Add(1)
				_ = sleep(ctx, client.BackOff(tries))
				continue
			}
			t.row.fail(err)
		}
		break
	}
	t.row.Seconds = seconds(time.Since(started))
	_ = r.done(ctx, t)
}

// wait waits as long as a full server wants.
func (r *runner) wait(ctx context.Context, err error) {
	r.stats.refused.Add(1)
	r.lim.refused(time.Now())
	delay, _ := client.RetryDelay(err)
	_ = sleep(ctx, delay+rand.N(delay+1))
}

// done hands a row to the writer.
func (r *runner) done(ctx context.Context, t *task) error {
	select {
	case r.rows <- t:
	case <-ctx.Done():
	}
	return nil
}

// writeAll writes rows until there are no more. Rows that wait for the one that was written follow it.
func (r *runner) writeAll(ctx context.Context) {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := r.o.Output.Sync(); err != nil {
				r.fail(err)
			}
		case t, ok := <-r.rows:
			if !ok {
				return
			}
			if err := r.write(ctx, t); err != nil {
				r.fail(err)
			}
		}
	}
}

func (r *runner) write(ctx context.Context, t *task) error {
	err := r.append(t)
	if t.row.Key == "" || t.row.DuplicateOf != "" || r.o.NoDedupe {
		return err
	}
	r.mu.Lock()
	copies, claimed := r.inflight[t.row.Key]
	if claimed {
		delete(r.inflight, t.row.Key)
	}
	r.mu.Unlock()
	for _, c := range copies {
		select {
		case <-r.waiting:
		case <-ctx.Done():
			return err
		}
		if err == nil {
			err = r.appendCopy(c, &t.row)
		}
	}
	return err
}

// appendCopy writes the row of a copy, unless it is a second mention of a path that has one.
func (r *runner) appendCopy(c *task, first *Row) error {
	had, err := r.o.Output.Row(c.row.path(), c.row.Question, c.row.Prompt)
	if err != nil {
		return err
	}
	if had != nil && had.Key == c.row.Key {
		r.stats.skip(had)
		r.drop(c)
		return nil
	}
	c.row.copyFrom(first)
	return r.append(c)
}

// append writes one row and counts it.
func (r *runner) append(t *task) error {
	defer r.drop(t)
	image := t.job.image()
	if r.o.Writing != nil {
		if err := r.o.Writing(t.job.item, &t.row); err != nil {
			t.row.fail(err)
		}
	}
	if err := r.o.Output.Append(&t.row, image); err != nil {
		return err
	}
	if r.o.Written != nil {
		r.o.Written(&t.row, image)
	}
	r.stats.imageBytes.Add(int64(len(image)))
	r.stats.wrote(&t.row)
	failed, all := r.stats.failed.Load(), r.stats.written.Load()
	if r.o.MaxErrors > 0 && failed > r.o.MaxErrors ||
		r.o.MaxErrorShare > 0 && all >= leastForRate && float64(failed) > r.o.MaxErrorShare*float64(all) {
		return fmt.Errorf("%w: %d of %d", ErrTooManyErrors, failed, all)
	}
	return nil
}

// image gives the bytes; nil for a copy, whose bytes another job has.
func (j *job) image() []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.data
}

// drop gives the image's memory back when no question needs it any more.
func (r *runner) drop(t *task) {
	t.job.mu.Lock()
	defer t.job.mu.Unlock()
	if t.job.open--; t.job.open == 0 {
		t.job.data = nil
		r.budget.Release(t.job.cost)
	}
}

// freeData gives the memory of a copy back before its row is written.
func (r *runner) freeData(t *task) {
	t.job.mu.Lock()
	defer t.job.mu.Unlock()
	if t.job.open == 1 {
		t.job.data = nil
		r.budget.Release(t.job.cost)
		t.job.cost = 0
	}
}
