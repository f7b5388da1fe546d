package server

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/serving"
)

// TestMemoryIsGivenBack holds that memory goes back to the system a moment after much of it was held, and only then.
func TestMemoryIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newInflight(16 << 30)
		l := &listener{inflight: f}
		held := func(n int64) *inbound {
			s := f.claimBody(newConnection(wireConn{}, l), 1<<40)
			f.grow(s, n-streamCost)
			return s
		}
		look := func() (reclaim bool, used, peak int64) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.reclaim, f.used, f.peak
		}
		for _, c := range []struct {
			most  int64
			gives bool
		}{{reclaimAbove, false}, {reclaimAbove + 1, true}, {100, false}} {
			f.end(held(c.most))
			if reclaim, used, _ := look(); reclaim != c.gives || used != 0 {
				t.Errorf("after %d bytes memory is given back: %t; %d are held", c.most, reclaim, used)
			}
			if c.gives {
				time.Sleep(201 * time.Millisecond)
				synctest.Wait()
			}
			if reclaim, _, peak := look(); reclaim || peak != 0 && c.gives {
				t.Errorf("%d bytes later: it is given back again: %t, the most was %d", c.most, reclaim, peak)
			}
		}
		large := held(reclaimAbove + 1)
		f.end(large)
		busy := held(f.limit / 16)
		time.Sleep(201 * time.Millisecond)
		synctest.Wait()
		if reclaim, _, peak := look(); peak != f.limit/16 || reclaim {
			t.Errorf("while a sixteenth is held the most becomes %d", peak)
		}
		f.end(busy)
		time.Sleep(201 * time.Millisecond)
		synctest.Wait()
		if f.peak != 0 || f.used != 0 {
			t.Errorf("at the end %d are held, the most is %d", f.used, f.peak)
		}
	})
}

// TestLargestIsRefused holds that the budget may be filled to its last byte, and that beyond it the largest message of
// the connection that holds most is refused, never one that is whole.
func TestLargestIsRefused(t *testing.T) {
	const each = 1 << 20
	f := newInflight(3*each + 100)
	l := &listener{inflight: f}
	one := f.claimBody(newConnection(wireConn{}, l), 1<<40)
	two := f.claimBody(newConnection(wireConn{}, l), 1<<40)
	f.conns[one.conn], f.conns[two.conn] = struct{}{}, struct{}{}
	f.grow(one, each-streamCost)
	f.grow(two, 2*each+100-streamCost)
	if f.used != f.limit || one.err != nil || two.err != nil {
		t.Fatalf("%d of %d are held: %v, %v", f.used, f.limit, one.err, two.err)
	}
	f.grow(one, 1)
	var told *serving.Error
	if !errors.As(two.err, &told) || told.Kind != serving.Exhausted || one.err != nil ||
		f.used != each+1 || f.evicted.Load() != 1 {
		t.Errorf("%v and %v; %d are held", one.err, two.err, f.used)
	}
	if err := f.complete(one, 0); err != nil || one.conn.receiving != 0 {
		t.Errorf("%v; %d are being received", err, one.conn.receiving)
	}
	if err := f.complete(two, 0); err == nil {
		t.Error("a refused message is whole")
	}
	three := f.claimBody(newConnection(wireConn{}, l), 1<<40)
	f.conns[three.conn] = struct{}{}
	f.grow(three, 2*each+101)
	if three.err == nil || one.err != nil || f.used != each+1 {
		t.Errorf("%v beside a whole message, %v; %d are held", three.err, one.err, f.used)
	}
	f.grow(three, each) // of a message that is refused nothing counts
	if f.end(three); f.used != each+1 || three.conn.claims != 0 || !three.conn.served {
		t.Errorf("%d are held after the end", f.used)
	}
	if f.release(one); f.used != 0 {
		t.Errorf("%d are held of what was put to use", f.used)
	}
}

// What comes of a stream's next message before that is asked for counts too.
func TestInflightEarly(t *testing.T) {
	f := newInflight(1 << 30)
	c := newConnection(wireConn{}, &listener{inflight: f})
	s := &inbound{conn: c, id: 1, most: 1 << 20, claimed: true, receiving: true, refused: make(chan struct{})}
	c.streams[1] = s
	f.frame(c, frameData, 1, 1000) // the message, and the first bytes of the next one
	if err := f.complete(s, 800-prefix); err != nil {
		t.Fatal(err)
	}
	f.frame(c, frameData, 1, 5000)
	f.again(s)
	if want := int64(200 + 5000 + streamCost); s.held != want || f.used != want || s.bytes != 5200 {
		t.Errorf("%d bytes are held, %d in all, of %d that came; want %d", s.held, f.used, s.bytes, want)
	}
	f.release(s)
	if f.used != 0 || c.receiving != 0 {
		t.Errorf("%d are held, %d are being received", f.used, c.receiving)
	}
}
