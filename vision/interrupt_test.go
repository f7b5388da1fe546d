package vision

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowTower runs until it is interrupted, or for an hour.
type slowTower struct {
	countingTower
	stop        chan struct{}
	interrupted atomic.Int32
}

func (s *slowTower) Run(n int) error {
	select {
	case <-s.stop:
		return errors.New("interrupted")
	case <-time.After(time.Hour):
		return s.countingTower.Run(n)
	}
}

func (s *slowTower) Interrupt() error {
	s.interrupted.Add(1)
	select {
	case s.stop <- struct{}{}:
	default:
	}
	return nil
}

func TestRunThatNobodyWaitsForIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &slowTower{countingTower: countingTower{in: make([]float32, 4)}, stop: make(chan struct{})}
		e := NewEncoder(tower, widen, 1<<20)
		start := time.Now()
		first, leaveFirst := context.WithCancel(t.Context())
		second, leaveSecond := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { e.Encode(first, imageOf(1)) })
		wg.Go(func() { e.Encode(second, imageOf(1)) })
		time.Sleep(time.Second)
		leaveFirst()
		time.Sleep(time.Second)
		if n := tower.interrupted.Load(); n != 0 {
			t.Errorf("interrupted %d times while one waits", n)
		}
		leaveSecond()
		wg.Wait()
		time.Sleep(time.Second)
		// The next caller's run begins at once and is whole.
		got, cached, err := e.Encode(t.Context(), imageOf(1))
		if took := time.Since(start); err != nil || cached || got[0] != 1 || took > time.Hour+4*time.Second {
			t.Errorf("got %v, cached %v, %v after %v", got, cached, err, took)
		}
		wg.Go(func() {
			if _, _, err := e.Encode(t.Context(), imageOf(2)); !errors.Is(err, ErrClosed) {
				t.Errorf("while the encoder closes: %v", err)
			}
		})
		time.Sleep(time.Second)
		closing := time.Now()
		e.Close()
		if took := time.Since(closing); took > time.Second {
			t.Errorf("closing took %v", took)
		}
		wg.Wait()
	})
}
