package caption

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// lines collects what a run says.
type lines struct {
	mu   sync.Mutex
	said []string
}

func (l *lines) say(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, s)
}

// A server that goes away for a while costs no item, however few calls are in flight, and the run says that it waits.
func TestServerGoneForAMinute(t *testing.T) {
	for _, inFlight := range []int{1, 8} {
		dir := imageFolder(t, 40)
		out := filepath.Join(t.TempDir(), "out.jsonl")
		synctest.Test(t, func(t *testing.T) {
			s := &hashServer{delay: 10 * time.Millisecond}
			var l lines
			n := 0
			stats, err := captionInto(t.Context(), t, dir, out, func(o *Options) {
				o.Server, o.InFlight, o.Say, o.Patience = s, inFlight, l.say, 10*time.Minute
				o.Written = func(*Row, []byte) {
					if n++; n == 10 {
						s.down.Store(true)
						time.AfterFunc(time.Minute, func() { s.down.Store(false) })
					}
				}
			})
			if n := stats.Snapshot(); err != nil || n.Written != 40 || n.Failed != 0 || n.Elapsed < time.Minute ||
				n.Elapsed > 2*time.Minute {
				t.Errorf("%d in flight: %v, %+v", inFlight, err, n)
			}
			if said := strings.Join(l.said, "\n"); !strings.Contains(
				said,
				"paused: no server takes requests (UNAVAILABLE)",
			) ||
				!strings.Contains(said, "going on") {
				t.Errorf("%s", said)
			}
			for _, n := range s.asked {
				if n > 1 {
					t.Error("asked twice")
				}
			}
		})
	}
}

func TestServerGoneForGoodIsGivenUp(t *testing.T) {
	dir := imageFolder(t, 40)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	synctest.Test(t, func(t *testing.T) {
		s := &hashServer{}
		s.down.Store(true)
		started := time.Now()
		stats, err := captionInto(
			t.Context(),
			t,
			dir,
			out,
			func(o *Options) { o.Server, o.Patience = s, 5*time.Minute },
		)
		if took := time.Since(started); !errors.Is(err, ErrGivenUp) || took < 5*time.Minute || took > 6*time.Minute ||
			stats.Snapshot().Written != 0 {
			t.Errorf("%v after %v, %+v", err, took, stats.Snapshot())
		}
	})
}

// Twenty failures in a row pause a run whose servers say that they are healthy; five pauses without an answer end it.
// Items that fail for long are rows.
func TestManyFailuresInARowPause(t *testing.T) {
	dir := imageFolder(t, 400)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	synctest.Test(t, func(t *testing.T) {
		s := &hashServer{trouble: func(int64) error { return status.Error(codes.Internal, "a step failed") }}
		var l lines
		_, err := captionInto(t.Context(), t, dir, out, func(o *Options) { o.Server, o.Say = s, l.say })
		if !errors.Is(err, ErrGivenUp) || s.calls.Load() < 100 || s.calls.Load() > 160 {
			t.Errorf("%v after %d calls", err, s.calls.Load())
		}
		if !strings.Contains(strings.Join(l.said, "\n"), "paused: 20 calls in a row failed (INTERNAL)") {
			t.Errorf("%q", l.said)
		}
	})
}

func TestSuccessEndsARowOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &breaker{server: &hashServer{}, patience: time.Minute, say: func(string) {}}
		bad := status.Error(codes.Internal, "")
		for i := range 200 {
			if b.failure(t.Context(), bad); i%(pauseAfter-1) == 0 {
				b.success()
			}
		}
		if b.paused() {
			t.Error("paused")
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range pauseAfter {
			b.failure(ctx, bad)
		}
		if !b.paused() {
			t.Error("not paused")
		}
		cancel()
		b.probes.Wait()
	})
}

// The limit grows while the servers take what comes, and falls when they are full; refusals at once count once.
func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 20)
		work := func(n int) {
			var wg sync.WaitGroup
			for range n {
				if err := l.acquire(t.Context()); err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					time.Sleep(time.Millisecond)
					l.success()
					l.release()
				})
			}
			wg.Wait()
		}
		if _, limit := l.now(); limit != 10 {
			t.Errorf("starts at %d", limit)
		}
		work(1000)
		if _, limit := l.now(); limit != 20 {
			t.Errorf("grows to %d", limit)
		}
		for range 10 {
			l.refused(time.Now())
		}
		if _, limit := l.now(); limit != 14 {
			t.Errorf("falls to %d", limit)
		}
		for range 50 {
			time.Sleep(2 * time.Second)
			l.refused(time.Now())
		}
		if _, limit := l.now(); limit != 1 {
			t.Errorf("falls to %d", limit)
		}
		work(3)
		fixed := newLimiter(3, 99)
		fixed.refused(time.Now())
		fixed.success()
		if _, limit := fixed.now(); limit != 3 {
			t.Errorf("a fixed one is %d", limit)
		}
	})
}

// Calls in flight never exceed the limit.
func TestInFlightIsBounded(t *testing.T) {
	dir := imageFolder(t, 100)
	s := &hashServer{delay: 2 * time.Millisecond}
	if _, err := captionInto(t.Context(), t, dir, filepath.Join(t.TempDir(), "o.jsonl"),
		func(o *Options) { o.Server, o.InFlight = s, 5 }); err != nil {
		t.Fatal(err)
	}
	if n := s.most.Load(); n != 5 {
		t.Errorf("%d in flight", n)
	}
}

// Many copies of one image wait for its answer without holding each other up.
func TestManyCopiesInFlight(t *testing.T) {
	dir := t.TempDir()
	for i := range mostWaiting/16 + 10 {
		pngFile(t, filepath.Join(dir, fmt.Sprintf("%d.png", i)), 1)
	}
	s := &hashServer{delay: 50 * time.Millisecond}
	stats, err := captionInto(
		t.Context(),
		t,
		dir,
		filepath.Join(t.TempDir(), "o.jsonl"),
		func(o *Options) { o.Server = s },
	)
	if n := stats.Snapshot(); err != nil || s.calls.Load() != 1 || n.Duplicates != n.Written-1 {
		t.Errorf("%v, %d calls, %+v", err, s.calls.Load(), n)
	}
}
