package server

import (
	"runtime/metrics"
	"testing"
	"testing/synctest"
	"time"
)

// garbage is what calls leave behind.
var garbage []byte

// What calls leave is given back once none has run for a while, and not before; watchers do not count.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newInflight(1 << 30)
		l := &listener{inflight: f}
		rested := func() {
			time.Sleep(2 * restTime)
			synctest.Wait()
		}
		one, two, watcher := f.claimBody(newConnection(wireConn{}, l), 1), f.claimBody(newConnection(wireConn{}, l), 1),
			f.claimBody(newConnection(wireConn{}, l), 1)
		if err := f.watch(watcher); err != nil {
			t.Fatal(err)
		}
		garbage = make([]byte, 2*worthReclaiming)
		for i := range garbage {
			garbage[i] = 1
		}
		garbage = nil
		f.end(one)
		rested()
		f.end(two)
		three := f.claimBody(newConnection(wireConn{}, l), 1)
		rested()
		if f.at() != 0 {
			t.Error("memory was given back while a call ran")
		}
		before := released()
		f.end(three)
		rested()
		if n := released() - before; f.at() == 0 || n < worthReclaiming {
			t.Errorf("%d bytes were given back on an idle server", n)
		}
		at := f.at()
		f.end(f.claimBody(newConnection(wireConn{}, l), 1))
		rested()
		if f.at() != at {
			t.Error("next to nothing was given back")
		}
		f.end(watcher)
		if f.open != 0 {
			t.Errorf("%d calls are open after the last", f.open)
		}
	})
}

// released is what of the heap the system has, in bytes.
func released() int64 {
	list := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(list)
	return int64(list[0].Value.Uint64())
}

// at is reclaimedAt.
func (f *inflight) at() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reclaimedAt
}
