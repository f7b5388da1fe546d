package loadtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Config is one run.
type Config struct {
	Target   Target
	Schedule Schedule
	Mix      *Mix
	Seed     uint64
	// WarmUp is a time at the start of each stage whose requests are sent but not measured.
	WarmUp time.Duration
	// Deadline is what each call is given, from the time it was due; 0: none.
	Deadline time.Duration
	// MaxOpen is the most requests open at once. One that is due beyond it is not sent and counts as failed: the loop
	// stays open. Default: 10,000.
	MaxOpen int
	// Scraper, if not nil, is asked every second.
	Scraper *Scraper
	// Progress, if not nil, is called every second and once at the end, where the rate is 0.
	Progress func(Progress)
}

// Delta is a piece of an answer's text: when it came, from the start of the run, and its tokens.
type Delta struct {
	At     time.Duration
	Tokens int
}

// Sample is one request as its sender saw it. Times are from the start of the run.
type Sample struct {
	ID     string
	Stage  int
	WarmUp bool
	// Due is when it should have been sent, Sent when it was, Ended when all was over.
	Due, Sent, Ended time.Duration
	Deltas           []Delta
	Images           int
	// Code is OK, a gRPC code, HTTP_429 and the like, or how it ended here: ABANDONED, NOT_SENT, INTERRUPTED, CUT.
	Code   string
	Error  string
	Answer Answer
}

// ok says whether the whole answer came.
func (s *Sample) ok() bool { return s.Code == codeOK }

// Window is the measured part of a stage.
type Window struct {
	Rate     float64 // requests/s that were asked for
	From, To time.Duration
}

// Result is a run that is over.
type Result struct {
	Started time.Time
	// Windows are those of the stages; of a trace, one.
	Windows []Window
	// Took is the time until the last request ended.
	Took time.Duration
	// Samples are in the order in which requests were due.
	Samples     []Sample
	Scraped     []Series
	Interrupted bool
}

// Progress is where a run stands.
type Progress struct {
	Elapsed                 time.Duration
	Due, Open, Done, Failed int
	// TokensPerSecond is that of the last second.
	TokensPerSecond float64
}

var errAbandoned = errors.New("given up on purpose")

// Run sends every request when it is due, and returns when all have ended. When ctx ends first the result says so.
func Run(ctx context.Context, c Config) (*Result, error) {
	if err := c.Mix.Check(); err != nil {
		return nil, err
	}
	if len(c.Schedule.Stages) == 0 && len(c.Schedule.Trace) == 0 {
		return nil, errors.New("nothing is due: the schedule has no stages and no trace")
	}
	for _, s := range c.Schedule.Stages {
		if !(s.Rate > 0) || s.Duration <= 0 {
			return nil, fmt.Errorf("stage of %v requests/s for %v: want both above 0", s.Rate, s.Duration)
		}
	}
	if c.MaxOpen <= 0 {
		c.MaxOpen = 10_000
	}
	l := &load{Config: c, start: time.Now()}
	r := &Result{Started: l.start}

	watching, stop := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	if c.Scraper != nil {
		watchers.Go(func() { r.Scraped = c.Scraper.watch(watching, l.start) })
	}
	if c.Progress != nil {
		watchers.Go(func() { l.report(watching) })
	}
	r.Windows = c.Schedule.windows(c.WarmUp, l.send(ctx))
	l.open.Wait()
	r.Took = time.Since(l.start)
	stop()
	watchers.Wait()
	if c.Progress != nil {
		c.Progress(l.progress(l.tokens))
	}
	r.Interrupted = ctx.Err() != nil
	r.Samples = l.samples
	slices.SortStableFunc(r.Samples, func(a, b Sample) int { return int(a.Due - b.Due) })
	return r, nil
}

// load is a run on its way.
type load struct {
	Config
	start time.Time
	open  sync.WaitGroup

	mu      sync.Mutex
	opened  int
	due     int
	failed  int
	tokens  int
	samples []Sample
}

// prepared is how many requests are made ahead of their time, so that making one does not delay it.
const prepared = 32

type dueRequest struct {
	Arrival
	*Request
}

// send starts each request at its time, on a goroutine of its own. It returns the time at which nothing more was due.
func (l *load) send(ctx context.Context) (end time.Duration) {
	making, cancel := context.WithCancel(ctx)
	next := make(chan dueRequest, prepared)
	var maker sync.WaitGroup
	maker.Go(func() {
		defer close(next)
		// Arrivals and contents have generators of their own: another mix keeps the same times.
		times, contents := rand.New(rand.NewPCG(l.Seed, 1)), rand.New(rand.NewPCG(l.Seed, 2))
		n := 0
		for a := range l.Schedule.Arrivals(times) {
			select {
			case next <- dueRequest{a, l.Mix.Request(contents, n, a)}:
				n++
			case <-making.Done():
				return
			}
		}
	})
	defer maker.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for d := range next {
		timer.Reset(time.Until(l.start.Add(d.At)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return time.Since(l.start)
		}
		s := Sample{ID: d.ID, Stage: d.Stage, Due: d.At, WarmUp: d.At < l.Schedule.begin(d.Stage)+l.WarmUp,
			Images: len(d.Images)}
		if l.enter() {
			l.open.Go(func() { l.one(ctx, d.Request, s) })
			continue
		}
		s.Sent, s.Ended, s.Code = d.At, d.At, codeNotSent
		l.leave(s)
	}
	if l.Schedule.Limit > 0 && l.due == l.Schedule.Limit {
		return time.Since(l.start)
	}
	// Otherwise the schedule ends at its time, not with its last request.
	timer.Reset(time.Until(l.start.Add(l.Schedule.Duration())))
	select {
	case <-timer.C:
		return l.Schedule.Duration()
	case <-ctx.Done():
		return time.Since(l.start)
	}
}

// enter counts a request that is due, and says whether it may be sent.
func (l *load) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.due++
	ok := l.opened < l.MaxOpen
	if ok {
		l.opened++
	}
	return ok
}

// leave keeps what became of a request.
func (l *load) leave(s Sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.Code != codeNotSent {
		l.opened--
	}
	if !s.ok() && s.Code != codeAbandoned {
		l.failed++
	}
	l.samples = append(l.samples, s)
}

// one sends a request and sees it to its end.
func (l *load) one(run context.Context, r *Request, s Sample) {
	ctx := run
	due := l.start.Add(s.Due)
	if l.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, due.Add(l.Deadline))
		defer cancel()
	}
	if r.Abandon > 0 {
		// A cancellation, not a deadline: a server would be told of that and refuse.
		leaving, leave := context.WithCancelCause(ctx)
		timer := time.AfterFunc(time.Until(due.Add(r.Abandon)), func() { leave(errAbandoned) })
		defer timer.Stop()
		defer leave(nil)
		ctx = leaving
	}
	s.Sent = time.Since(l.start)
	answer, err := l.Target.Generate(ctx, r, func(n int) {
		s.Deltas = append(s.Deltas, Delta{time.Since(l.start), n})
		l.mu.Lock()
		l.tokens += n
		l.mu.Unlock()
	})
	s.Ended = time.Since(l.start)
	s.Answer, s.Code = answer, CodeOf(err)
	switch {
	case err == nil && answer.Finish == finishCancelled:
		s.Code = codeCut
	case err != nil && run.Err() != nil:
		s.Code = codeInterrupted
	case err != nil && errors.Is(context.Cause(ctx), errAbandoned):
		s.Code = codeAbandoned
	case err != nil:
		s.Error = err.Error()
	}
	l.leave(s)
}

// report calls Progress every second until ctx is done.
func (l *load) report(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := 0
	for {
		select {
		case <-ticker.C:
			p := l.progress(last)
			last += int(p.TokensPerSecond)
			l.Progress(p)
		case <-ctx.Done():
			return
		}
	}
}

// progress is where the run stands; before is the number of tokens a second ago.
func (l *load) progress(before int) Progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Progress{
		Elapsed: time.Since(l.start), Due: l.due, Open: l.opened, Done: len(l.samples), Failed: l.failed,
		TokensPerSecond: float64(l.tokens - before),
	}
}

// Join makes one result of runs that were made one after the other: each window is one of a stage of its own.
func Join(runs []*Result) *Result {
	out := &Result{Started: runs[0].Started}
	series := map[string]*Series{}
	var names []string
	for _, r := range runs {
		shift, stage := r.Started.Sub(out.Started), len(out.Windows)
		for _, w := range r.Windows {
			out.Windows = append(out.Windows, Window{w.Rate, w.From + shift, w.To + shift})
		}
		for _, s := range r.Samples {
			s.Stage += stage
			s.Due, s.Sent, s.Ended, s.Deltas = s.Due+shift, s.Sent+shift, s.Ended+shift, slices.Clone(s.Deltas)
			for i := range s.Deltas {
				s.Deltas[i].At += shift
			}
			out.Samples = append(out.Samples, s)
		}
		for _, s := range r.Scraped {
			if series[s.Name] == nil {
				series[s.Name] = &Series{Name: s.Name, Kind: s.Kind}
				names = append(names, s.Name)
			}
			for _, p := range s.Points {
				series[s.Name].Points = append(series[s.Name].Points, [2]float64{p[0] + shift.Seconds(), p[1]})
			}
		}
		out.Took = shift + r.Took
		out.Interrupted = out.Interrupted || r.Interrupted
	}
	for _, name := range names {
		out.Scraped = append(out.Scraped, *series[name])
	}
	return out
}
