package batching

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func request(id string, prompt, limit int) Request {
	r := Request{ID: id, MaxTokens: limit}
	for i := range prompt {
		r.Input.IDs = append(r.Input.IDs, int32(len(id)+int(id[len(id)-1])+i)%40)
	}
	return r
}

func mustSubmit(t testing.TB, ctx context.Context, e *Engine, r Request) *Stream {
	t.Helper()
	ticket, err := e.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.Submit(ctx, ticket, r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// read takes a stream to its end.
func read(t testing.TB, s *Stream) (tokens []decoder.Token, last Event) {
	t.Helper()
	for {
		event, err := s.Next(context.Background())
		if err == io.EOF {
			return tokens, last
		}
		if err != nil || last.Finish != Running {
			t.Errorf("Next gave %+v %v after %+v", event, err, last)
			return tokens, last
		}
		if event.HasToken {
			tokens = append(tokens, event.Token)
		}
		last = event
	}
}

// start runs e until the returned function is called, which gives what Run returned.
func start(e *Engine) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1) // room for the one result, so that Run's goroutine ends unread too
	go func() { done <- e.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

func TestTokensAndTiming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := decodertest.NewHash(2, 100, 40)
		e, c := newChecked(decodertest.NewPaced(h, time.Millisecond, 10*time.Millisecond), Options{PrefillChunk: 8})
		c.tickets.Store(true)
		stop := start(e)
		begin := time.Now()
		r := request("a", 20, 5)
		s := mustSubmit(t, t.Context(), e, r)
		if got := s.Timing(); got.Submitted != begin || !got.FirstToken.IsZero() {
			t.Errorf("at first the timing is %+v", got)
		}
		tokens, last := read(t, s)
		want, err := h.Alone(r.Input, r.Sampling, r.MaxTokens)
		if err != nil || !slices.Equal(tokens, want) || last.Finish != Length {
			t.Errorf("got %v %v, alone it gives %v %v", tokens, last.Finish, want, err)
		}
		ttft := begin.Add(20 * time.Millisecond)
		if got, want := s.Timing(), (Timing{begin, begin, ttft, ttft.Add(4 * 10 * time.Millisecond), 0}); got != want {
			t.Errorf("timing %+v, want %+v", got, want)
		}
		if got, want := e.Stats(), (Stats{Slots: 2, MaxLen: 100, Steps: 7, PrefillSteps: 3, DecodeRows: 4, PromptTokens: 20,
			GeneratedTokens: 5, CachedSlots: 1, KVBudget: 200, KVResident: 24}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
		if err := stop(); err != nil {
			t.Errorf("Run gave %v", err)
		}
	})
}

// All slots and waiting places are taken: the next is refused at once, and accepted when one has ended.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots, waiting = 3, 2
		e, c := newChecked(decodertest.NewPaced(decodertest.NewHash(slots, 50, 40), 0, time.Second),
			Options{MaxWaiting: waiting})
		c.tickets.Store(true)
		stop := start(e)
		var streams []*Stream
		for i := range slots + waiting {
			streams = append(streams, mustSubmit(t, t.Context(), e, request(fmt.Sprint(i), 4, 5)))
		}
		begin := time.Now()
		if _, err := e.Acquire(); err != ErrBusy {
			t.Errorf("Acquire gave %v, want ErrBusy", err)
		}
		if time.Since(begin) > 0 {
			t.Errorf("it was refused after %v", time.Since(begin))
		}
		time.Sleep(3500 * time.Millisecond)
		if s := e.Stats(); s.Running != slots || s.Waiting != waiting || s.Accepted != slots+waiting {
			t.Errorf("stats %+v", s)
		}
		c.tickets.Store(false) // one ticket is out unsubmitted from here on
		read(t, streams[0])
		ticket, err := e.Acquire() // whoever has read an end finds its place free
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Acquire(); err != ErrBusy {
			t.Errorf("Acquire gave %v, want ErrBusy", err)
		}
		ticket.Release()
		ticket.Release()
		for _, s := range streams {
			if _, last := read(t, s); s != streams[0] && last.Finish != Length {
				t.Errorf("ended with %+v", last)
			}
		}
		if s := e.Stats(); s.Accepted != 0 || s.Running != 0 {
			t.Errorf("stats %+v", s)
		}
		stop()
	})
}

// A client that is gone frees its slot within a step, in whatever phase its sequence is.
func TestClientGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := decodertest.NewHash(2, 1000, 40)
		e, c := newChecked(decodertest.NewPaced(h, time.Millisecond, 100*time.Millisecond),
			Options{MaxWaiting: 10, PrefillChunk: 100})
		c.tickets.Store(true)
		stop := start(e)
		gone, leave := context.WithCancel(t.Context())
		decoding := mustSubmit(t, gone, e, request("a", 2, 900))
		if _, err := decoding.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		prefills := mustSubmit(t, gone, e, request("b", 900, 5))
		waits := mustSubmit(t, gone, e, request("c", 2, 5))
		time.Sleep(350 * time.Millisecond)
		if s := e.Stats(); s.Running != 2 || s.Waiting != 1 {
			t.Fatalf("stats %+v", s)
		}
		leave()
		before := e.Stats().Steps
		for name, s := range map[string]*Stream{"decoding": decoding, "prefilling": prefills, "waiting": waits} {
			if tokens, last := read(t, s); last.Finish != Cancelled || name != "decoding" && len(tokens) > 0 {
				t.Errorf("%s: %d tokens, %+v", name, len(tokens), last)
			}
		}
		if s := e.Stats(); s.Running != 0 || s.Waiting != 0 || s.Accepted != 0 || s.Steps > before+1 {
			t.Errorf("stats %+v; it was gone at step %d", s, before)
		}
		s := mustSubmit(t, t.Context(), e, request("d", 2, 900))
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Cancel()
		s.Cancel()
		if _, last := read(t, s); last.Finish != Cancelled {
			t.Errorf("after Cancel: %+v", last)
		}
		// One that is gone before it has even come.
		if tokens, last := read(t, mustSubmit(t, gone, e, request("e", 2, 900))); last.Finish != Cancelled {
			t.Errorf("%d tokens, %+v", len(tokens), last)
		}
		stop()
	})
}

// An engine with nothing to do sleeps: it runs nothing, and the bubble's goroutines are all blocked for a day.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newChecked(decodertest.NewHash(1, 50, 40), Options{})
		stop := start(e)
		read(t, mustSubmit(t, t.Context(), e, request("a", 2, 3)))
		synctest.Wait()
		steps := e.Stats().Steps
		time.Sleep(24 * time.Hour)
		if e.Stats().Steps != steps {
			t.Error("an idle engine stepped")
		}
		read(t, mustSubmit(t, t.Context(), e, request("a", 2, 3)))
		stop()
	})
}

// Steps of a sequence that nobody waits for are put off while another is coming, to one a second at most.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := decodertest.NewHash(3, 5000, 40)
		e, _ := newChecked(h, Options{})
		h.Fail = func(*decoder.Batch) error { time.Sleep(time.Millisecond); return nil }
		steps := func(d time.Duration) int64 {
			before := e.Stats().Steps
			time.Sleep(d)
			return e.Stats().Steps - before
		}
		coming := func() *Ticket {
			ticket, err := e.Acquire()
			if err != nil {
				t.Fatal(err)
			}
			ticket.WillSubmit()
			ticket.WillSubmit()
			return ticket
		}
		stop := start(e)
		defer stop()
		r := request("a", 2, 4000)
		r.Priority = PriorityBatch
		a := mustSubmit(t, t.Context(), e, r)
		if n := steps(100 * time.Millisecond); n < 90 {
			t.Errorf("%d steps in 100 ms with nothing to wait for", n)
		}
		ticket := coming()
		if n := steps(10 * time.Second); n < 9 || n > 12 {
			t.Errorf("%d steps in 10 s while another comes", n)
		}
		ticket.Release()
		if n := steps(100 * time.Millisecond); n < 90 {
			t.Errorf("%d steps in 100 ms after it went away", n)
		}
		ticket = coming()
		if n := steps(500 * time.Millisecond); n > 1 {
			t.Errorf("%d steps in 500 ms while another comes", n)
		}
		b, err := e.Submit(t.Context(), ticket, request("b", 2, 4000))
		if err != nil {
			t.Fatal(err)
		}
		ticket = coming()
		if n := steps(100 * time.Millisecond); n < 90 {
			t.Errorf("%d steps in 100 ms while somebody waits", n)
		}
		ticket.Release()
		a.Cancel()
		b.Cancel()
		read(t, a)
		read(t, b)
		if e.pending != 0 {
			t.Errorf("%d requests are coming", e.pending)
		}
	})
}

// The engine does not wait for a client that reads nothing, nor forget what it did not read.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := decodertest.NewHash(2, 500, 40)
		e, _ := newChecked(h, Options{})
		stop := start(e)
		slow := mustSubmit(t, t.Context(), e, request("a", 3, 400))
		read(t, mustSubmit(t, t.Context(), e, request("b", 3, 400)))
		synctest.Wait()
		if slow.Timing().Finished.IsZero() {
			t.Error("the engine waits for a reader")
		}
		want, _ := h.Alone(request("a", 3, 400).Input, decoder.Sampling{}, 400)
		if got, _ := read(t, slow); !slices.Equal(got, want) {
			t.Errorf("read %d tokens late, want %d", len(got), len(want))
		}
		stop()
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newChecked(decodertest.NewPaced(decodertest.NewHash(1, 50, 40), time.Hour, time.Hour), Options{})
		stop := start(e)
		s := mustSubmit(t, t.Context(), e, request("a", 2, 3))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Next(ctx); err != context.DeadlineExceeded {
			t.Errorf("Next gave %v", err)
		}
		if tokens, last := read(t, s); len(tokens) != 3 || last.Finish != Length {
			t.Errorf("then %v %+v", tokens, last)
		}
		stop()
	})
}

// A step that fails ends its rows; the others and those who come later go on.
func TestFailedStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("out of memory")
		h := decodertest.NewHash(2, 100, 40)
		e, c := newChecked(decodertest.NewPaced(h, time.Millisecond, time.Second), Options{MaxWaiting: 5})
		c.tickets.Store(true)
		h.Fail = func(b *decoder.Batch) error {
			if len(b.Rows[0].IDs) == 13 {
				return broken
			}
			return nil
		}
		stop := start(e)
		good, bad := mustSubmit(t, t.Context(), e, request("a", 5, 9)), mustSubmit(t, t.Context(), e, request("b", 13, 9))
		late := mustSubmit(t, t.Context(), e, request("c", 5, 9))
		if _, last := read(t, bad); last.Finish != Error || !errors.Is(last.Err, broken) {
			t.Errorf("the failed one: %+v", last)
		}
		for _, s := range []*Stream{good, late} {
			if tokens, last := read(t, s); len(tokens) != 9 || last.Finish != Length {
				t.Errorf("another: %d tokens, %+v", len(tokens), last)
			}
		}
		stop()
	})
}

// runnerFunc is a Runner for what an honest one never does.
type runnerFunc func(*decoder.Batch) ([]decoder.Token, error)

func (runnerFunc) Capacity() decoder.Capacity { return decoder.Capacity{Slots: 1, MaxLen: 100} }
func (f runnerFunc) Run(_ context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	return f(b)
}

// The device is lost: everything open ends with an error, and nothing is accepted any more.
func TestDeviceLost(t *testing.T) {
	for name, run := range map[string]runnerFunc{
		"error": func(*decoder.Batch) ([]decoder.Token, error) { return nil, fmt.Errorf("run: %w", decoder.ErrDevice) },
		"panic": func(b *decoder.Batch) ([]decoder.Token, error) { panic("index out of range") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := New(run, Options{MaxWaiting: 5})
				early, err := e.Acquire()
				if err != nil {
					t.Fatal(err)
				}
				var streams []*Stream
				for i := range 3 {
					streams = append(streams, mustSubmit(t, t.Context(), e, request(fmt.Sprint(i), 3, 3)))
				}
				err = e.Run(t.Context())
				if !errors.Is(err, decoder.ErrDevice) {
					t.Errorf("Run gave %v", err)
				}
				if name == "panic" && !strings.Contains(err.Error(), "index out of range") {
					t.Errorf("%v hides the panic", err)
				}
				for _, s := range streams {
					if _, last := read(t, s); last.Finish != Error || !errors.Is(last.Err, decoder.ErrDevice) {
						t.Errorf("ended with %+v", last)
					}
				}
				if _, err := e.Acquire(); !errors.Is(err, decoder.ErrDevice) {
					t.Errorf("Acquire gave %v", err)
				}
				if _, err := e.Submit(t.Context(), early, request("x", 3, 3)); !errors.Is(err, decoder.ErrDevice) {
					t.Errorf("Submit gave %v", err)
				}
				if s := e.Stats(); s.Accepted != 0 {
					t.Errorf("stats %+v", s)
				}
				if err := e.Drain(t.Context()); err != nil {
					t.Errorf("Drain gave %v", err)
				}
				if err := e.Run(t.Context()); err == nil {
					t.Error("Run ran twice")
				}
			})
		})
	}
}

func TestWrongNumberOfTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(runnerFunc(func(*decoder.Batch) ([]decoder.Token, error) { return make([]decoder.Token, 2), nil }),
			Options{})
		stop := start(e)
		if tokens, last := read(t, mustSubmit(t, t.Context(), e, request("a", 3, 3))); last.Finish != Error ||
			len(tokens) > 0 {
			t.Errorf("%v %+v", tokens, last)
		}
		stop()
	})
}

// Drain waits for what is open and refuses the rest; one who has a ticket may still use it.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newChecked(decodertest.NewPaced(decodertest.NewHash(1, 100, 40), 0, time.Second), Options{MaxWaiting: 3})
		stop := start(e)
		first := mustSubmit(t, t.Context(), e, request("a", 3, 11))
		ticket, err := e.Acquire()
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := e.Drain(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 requests") {
			t.Errorf("Drain gave %v", err)
		}
		if _, err := e.Acquire(); err != ErrDraining {
			t.Errorf("Acquire gave %v", err)
		}
		second, err := e.Submit(t.Context(), ticket, request("b", 3, 11))
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := e.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != 15*time.Second { // 5 of 10 decode steps are left of a, 10 of b
			t.Errorf("drained in %v", took)
		}
		for _, s := range []*Stream{first, second} {
			if tokens, last := read(t, s); len(tokens) != 11 || last.Finish != Length {
				t.Errorf("%d tokens, %+v", len(tokens), last)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Run is told to end in the middle of a step: every open request hears of it.
func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newChecked(decodertest.NewPaced(decodertest.NewHash(1, 100, 40), 0, time.Second), Options{MaxWaiting: 3})
		stop := start(e)
		var streams []*Stream
		for i := range 3 {
			streams = append(streams, mustSubmit(t, t.Context(), e, request(fmt.Sprint(i), 3, 50)))
		}
		time.Sleep(2500 * time.Millisecond)
		streams = append(streams, mustSubmit(t, t.Context(), e, request("unseen", 3, 50)))
		if err := stop(); err != nil {
			t.Errorf("Run gave %v", err)
		}
		for i, s := range streams {
			if tokens, last := read(t, s); last.Finish != Cancelled || (i == 0) != (len(tokens) == 3) {
				t.Errorf("%d: %d tokens, %+v", i, len(tokens), last)
			}
			s.Cancel()
		}
		if _, err := e.Acquire(); err != ErrDraining {
			t.Errorf("Acquire gave %v", err)
		}
	})
}

// A deadline that cannot be met is refused at once, before and after the prompt is known, and one that turns out not to
// be met ends the sequence while it waits.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, c := newChecked(decodertest.NewPaced(decodertest.NewHash(1, 500, 40), time.Millisecond, 10*time.Millisecond),
			Options{MaxWaiting: 9})
		c.tickets.Store(true)
		stop := start(e)
		if wait := e.Estimate(PriorityDefault, 100); wait != 0 {
			t.Errorf("an estimate of %v from nothing", wait)
		}
		read(t, mustSubmit(t, t.Context(), e, request("a", 100, 11)))
		if wait := e.Estimate(PriorityDefault, 200); wait != 200*time.Millisecond {
			t.Errorf("200 tokens are to take %v", wait)
		}
		c.tickets.Store(false)
		tickets, err := e.AcquireFor(Claim{Deadline: time.Now().Add(250 * time.Millisecond)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.AcquireFor(Claim{Deadline: time.Now().Add(50 * time.Millisecond), MaxTokens: 1})
		var late *DeadlineError
		if !errors.As(err, &late) || !errors.Is(err, ErrDeadline) || late.RetryAfter() != 160*time.Millisecond {
			t.Errorf("behind another AcquireFor gave %v, to be tried again after %v", err, late.RetryAfter())
		}
		first := mustSubmit(t, t.Context(), e, request("long", 10, 100)) // longer than an answer so far
		time.Sleep(time.Millisecond)
		r := request("b", 200, 1)
		r.Deadline = time.Now().Add(150 * time.Millisecond)
		if _, err := e.Submit(t.Context(), tickets[0], r); !errors.Is(err, ErrDeadline) {
			t.Errorf("Submit gave %v", err)
		}
		if _, err := e.AcquireFor(Claim{Priority: 7}); err == nil || !strings.Contains(err.Error(), "priority is 7") {
			t.Errorf("AcquireFor gave %v", err)
		}
		c.tickets.Store(true)

		r = request("d", 50, 9)
		r.Deadline = time.Now().Add(300 * time.Millisecond)
		second := mustSubmit(t, t.Context(), e, r)
		begin := time.Now()
		if tokens, last := read(t, second); len(tokens) > 0 || last.Finish != Expired || !errors.Is(last.Err, ErrDeadline) {
			t.Errorf("%d tokens, %+v", len(tokens), last)
		}
		if took := time.Since(begin); took < 300*time.Millisecond || took > 310*time.Millisecond {
			t.Errorf("it expired after %v", took)
		}
		if _, last := read(t, first); last.Finish != Length {
			t.Errorf("the other one: %+v", last)
		}
		stop()
	})
}

// What nobody has use for is wasted: that of a client that is gone, not that of a reader that has seen enough.
func TestWastedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newChecked(decodertest.NewPaced(decodertest.NewHash(1, 500, 40), 0, time.Second),
			Options{NoPrefixCache: true})
		stop := start(e)
		for _, gone := range []bool{false, true} {
			ctx, leave := context.WithCancel(t.Context())
			s := mustSubmit(t, ctx, e, request("a", 10, 100))
			time.Sleep(2500 * time.Millisecond)
			want := int64(0)
			if gone {
				want = 10 + 3
				leave()
			} else {
				s.Cancel()
			}
			read(t, s)
			leave()
			if n := e.Stats().WastedTokens; n != want {
				t.Errorf("gone %v: %d tokens are wasted, want %d", gone, n, want)
			}
		}
		stop()
	})
}

func TestSubmitRefuses(t *testing.T) {
	e := New(decodertest.NewHash(1, 10, 40), Options{})
	other := New(decodertest.NewHash(1, 10, 40), Options{})
	for want, r := range map[string]Request{
		"has 0 tokens":    request("a", 0, 1),
		"has 11 tokens":   request("a", 11, 1),
		"max tokens is 0": request("a", 3, 0),
	} {
		ticket, err := e.Acquire()
		if err != nil {
			t.Fatal(err) // the ticket before was not given back
		}
		if _, err := e.Submit(t.Context(), ticket, r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if _, err := e.Submit(t.Context(), ticket, request("a", 3, 1)); err == nil {
			t.Error("a spent ticket was good")
		}
	}
	ticket, _ := other.Acquire()
	if _, err := e.Submit(t.Context(), ticket, request("a", 3, 1)); err == nil {
		t.Error("another engine's ticket was good")
	}
	if got := [2]int{e.Stats().Accepted, other.Stats().Accepted}; got != [2]int{} {
		t.Errorf("%v tickets are out", got)
	}
}

// The inbox has room for nothing twice, however often a client says that it is gone.
func TestCancelIsPostedOnce(t *testing.T) {
	e := New(decodertest.NewHash(1, 10, 40), Options{MaxWaiting: 1})
	late := mustSubmit(t, t.Context(), e, request("b", 3, 1))
	s := mustSubmit(t, t.Context(), e, request("a", 3, 1))
	for range 10 {
		s.Cancel()
	}
	if n := len(e.inbox); n != 3 {
		t.Errorf("%d messages for two arrivals and a cancellation", n)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Run(over); err != nil {
		t.Error(err)
	}
	late.Cancel()
	if n := len(e.inbox); n != 0 {
		t.Errorf("%d messages nobody will read", n)
	}
}

// The prompt is the engine's own copy: what a caller does with its slice, or its spare room, changes nothing.
func TestPromptIsCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := decodertest.NewHash(2, 50, 40)
		e, _ := newChecked(h, Options{})
		ids := append(make([]int32, 0, 50), 1, 2, 3)
		a := Request{ID: "a", Input: fusion.Input{IDs: ids}, MaxTokens: 9}
		b := Request{ID: "b", Input: fusion.Input{IDs: append(ids, 4)}, MaxTokens: 9}
		wantA, _ := h.Alone(a.Input, a.Sampling, 9)
		wantB, _ := h.Alone(b.Input, b.Sampling, 9)
		streamA, streamB := mustSubmit(t, t.Context(), e, a), mustSubmit(t, t.Context(), e, b)
		ids[0] = 9
		stop := start(e)
		gotA, _ := read(t, streamA)
		gotB, _ := read(t, streamB)
		if !slices.Equal(gotA, wantA) || !slices.Equal(gotB, wantB) {
			t.Errorf("got %v and %v, want %v and %v", gotA, gotB, wantA, wantB)
		}
		stop()
	})
}

// A hundred clients at once, for the race detector: some leave, some steps fail, the rest get what they would alone.
func TestManyClients(t *testing.T) {
	h := decodertest.NewHash(8, 120, 40)
	broken := errors.New("broken")
	steps := 0
	h.Fail = func(*decoder.Batch) error {
		if steps++; steps%97 == 0 {
			return broken
		}
		return nil
	}
	e, _ := newChecked(h, Options{MaxWaiting: 40, PrefillChunk: 16})
	stop := start(e)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ends := map[FinishReason]int{}
	for client := range 100 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(client), 9))
			for range 5 {
				ticket, err := e.Acquire()
				if err == ErrBusy {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if rng.IntN(10) == 0 {
					ticket.Release()
					continue
				}
				r := Request{ID: fmt.Sprint(client), MaxTokens: 1 + rng.IntN(30), Stop: []int32{rng.Int32N(40)}}
				for range 1 + rng.IntN(80) {
					r.Input.IDs = append(r.Input.IDs, rng.Int32N(40))
				}
				r.Input.Spans = []fusion.Span{{Len: 1, Digest: [32]byte{byte(client)}}}
				if rng.IntN(2) == 0 {
					r.Sampling = decoder.Sampling{Temperature: .8, TopP: .9, Seed: rng.Uint64()}
				}
				ctx, leave := context.WithCancel(t.Context())
				s, err := e.Submit(ctx, ticket, r)
				if err != nil {
					t.Error(err)
					leave()
					return
				}
				if rng.IntN(4) == 0 {
					leave()
				}
				tokens, last := read(t, s)
				leave()
				want, err := decodertest.NewHash(1, 120, 40).Alone(r.Input, r.Sampling, r.MaxTokens, r.Stop...)
				whole := last.Finish == Stop || last.Finish == Length
				if err != nil || len(tokens) > len(want) || !slices.Equal(tokens, want[:len(tokens)]) ||
					whole && len(tokens) != len(want) {
					t.Errorf("client %d got %v (%+v), alone %v %v", client, tokens, last, want, err)
				}
				mu.Lock()
				ends[last.Finish]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := e.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if ends[Stop] == 0 || ends[Length] == 0 {
		t.Errorf("ends: %v", ends)
	}
	if s := e.Stats(); s.Accepted != 0 || s.Running != 0 || s.Waiting != 0 || s.KVTokens != 0 {
		t.Errorf("stats %+v", s)
	}
}

// What a step costs without a model under it: rows decode while others wait for a slot.
func BenchmarkStep(b *testing.B) {
	for _, c := range []struct{ rows, waiting int }{{32, 0}, {256, 0}, {256, 10}, {256, 10_000}} {
		b.Run(fmt.Sprintf("rows=%d/waiting=%d", c.rows, c.waiting), func(b *testing.B) {
			s := newScheduler(decoder.Capacity{Slots: c.rows, MaxLen: 1 << 30}, Options{})
			tokens := make([]decoder.Token, c.rows)
			now := time.Now()
			for range c.rows + c.waiting {
				s.add(newSequence(request("a", 100, 1<<30), now), now)
			}
			for len(s.slots.decoding) < c.rows {
				p := s.schedule(now)
				s.commit(p, tokens[:p.takes(tokens)], now)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.expire(now)
				s.commit(s.schedule(now), tokens, now)
				s.stats()
			}
		})
	}
}

// attached counts the functions that wait for a context's end.
type attached struct {
	context.Context
	n int
}

// Done is a channel of its own, or context would look past this type.
func (a *attached) Done() <-chan struct{} { return make(chan struct{}) }

func (a *attached) AfterFunc(func()) (stop func() bool) {
	a.n++
	return func() bool { a.n--; return true }
}

// A sequence that has ended lets go of its request's context, which may live on.
func TestContextIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newChecked(decodertest.NewHash(1, 50, 40), Options{})
		ctx := &attached{Context: t.Context()}
		s := mustSubmit(t, ctx, e, request("a", 3, 3))
		if ctx.n != 1 {
			t.Fatalf("%d functions wait for the context of an open request", ctx.n)
		}
		stop := start(e)
		read(t, s)
		stop()
		if ctx.n != 0 {
			t.Errorf("%d functions wait for the context of an ended request", ctx.n)
		}
	})
}
