package server

import (
	"errors"
	"log/slog"
	"strings"
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

// streamed is a connection that has sent the headers of streams.
func streamed(f *inflight, ids ...uint32) *connection {
	c := newConnection(wireConn{}, &listener{inflight: f})
	for _, id := range ids {
		f.frame(c, frameHeaders, id, 10)
	}
	return c
}

// Streams are known from their headers on, each once, until they are taken back before a handler came.
func TestStreamsAreKnown(t *testing.T) {
	f := newInflight(1 << 30)
	c := streamed(f, 1, 5, 3, 5)
	if len(c.streams) != 2 || c.streams[1] == nil || c.streams[5] == nil || c.last != 5 || !c.greeted {
		t.Errorf("the streams are %v, the last %d", c.streams, c.last)
	}
	f.frame(c, frameData, 5, 100)
	f.frame(c, frameData, 7, 100) // of no stream
	if s := c.streams[5]; s.bytes != 100 || s.frames != 1 || s.held != 100+frameCost || f.used != 0 || s.early != 0 {
		t.Errorf("%+v; %d are used before a handler has it", s, f.used)
	}
	c.streams[1].claimed = true
	f.frame(c, frameReset, 1, 4)
	f.frame(c, frameReset, 5, 4)
	if len(c.streams) != 1 || c.streams[1] == nil {
		t.Errorf("after resets there are %v", c.streams)
	}
	c.streams[1].ended = true
	f.frame(c, frameData, 1, 100)
	if c.streams[1].bytes != 0 {
		t.Error("data of a stream that has ended count")
	}
}

// Streams that gRPC refused are forgotten once there are many, the old ones.
func TestStreamsArePruned(t *testing.T) {
	f := newInflight(1 << 30)
	c := streamed(f)
	for i := range uint32(2 * maxUnclaimed) {
		f.frame(c, frameHeaders, 2*i+1, 10)
	}
	c.streams[1].claimed, c.streams[3].claimed = true, true
	c.claims = 2
	for i := uint32(2 * maxUnclaimed); i < 2*maxUnclaimed+2; i++ {
		f.frame(c, frameHeaders, 2*i+1, 10)
	}
	if n := len(c.streams); n != 2*maxUnclaimed+2 {
		t.Errorf("%d streams are known with 2 calls, want all", n)
	}
	f.frame(c, frameHeaders, 2*(2*maxUnclaimed+2)+1, 10)
	left := c.last - 2*maxUnclaimed // the oldest that stays
	if n := len(c.streams); c.streams[1] == nil || c.streams[3] == nil || c.streams[left] == nil ||
		c.streams[left-2] != nil || n != maxUnclaimed+3 {
		t.Errorf("%d streams are known, want %d and the 2 calls; %d: %v", n, maxUnclaimed+1, left, c.streams[left])
	}
}

// receiving is a message of a stream that its handler waits for.
func receivingOf(f *inflight, most int64) (*connection, *inbound) {
	c := streamed(f, 1)
	s := c.streams[1]
	s.claimed, s.receiving, s.most = true, true, most
	return c, s
}

// A message may have its most bytes, and many frames if they are not tiny.
func TestMessagesAtTheirBorders(t *testing.T) {
	for _, c := range []struct {
		name          string
		frames, bytes int64
		refused       string
	}{
		{"the most bytes", 1, 1 << 20, ""},
		{"a byte more", 1, 1<<20 + 1, "at most 1048576 bytes"},
		{"many tiny frames", tinyFrames, 1, ""},
		{"a tiny frame more", tinyFrames + 1, 1, "frames of 1 bytes in the mean; want 128"},
		{"many frames that are not tiny", tinyFrames + 1, tinyBytes, ""},
		{"many that are a byte shorter", tinyFrames + 1, tinyBytes - 1, "frames of 127 bytes"},
	} {
		f := newInflight(1 << 30)
		conn, s := receivingOf(f, 1<<20)
		for range c.frames {
			f.frame(conn, frameData, 1, c.bytes)
		}
		if c.refused == "" && s.err != nil || c.refused != "" &&
			(s.err == nil || !strings.Contains(s.err.Error(), c.refused)) {
			t.Errorf("%s: %v, want %q", c.name, s.err, c.refused)
		}
		want := c.frames * (c.bytes + frameCost)
		if c.refused != "" {
			want = 0
		}
		if f.used != want || conn.receiving != want {
			t.Errorf("%s: %d are held, %d are being received, want %d", c.name, f.used, conn.receiving, want)
		}
	}
	f := newInflight(1 << 30)
	conn, s := receivingOf(f, 10)
	s.beyond = errInflight()
	if f.frame(conn, frameData, 1, 11); s.err != s.beyond {
		t.Errorf("%v, want why the request is not taken", s.err)
	}
	select {
	case <-s.refused:
	default:
		t.Error("nobody is told")
	}
}

// Of messages of one size on the connection that holds most the oldest is refused.
func TestOldestIsRefused(t *testing.T) {
	f := newInflight(1000)
	c := streamed(f, 1, 3, 5)
	f.conns[c] = struct{}{}
	for id, n := range map[uint32]int64{1: 100, 3: 300, 5: 300} {
		s := c.streams[id]
		s.claimed, s.receiving, s.most = true, true, 1<<30
		f.add(s, n)
	}
	other := streamed(f, 1)
	f.conns[other] = struct{}{}
	other.streams[1].claimed = true // whole: it is not received any more
	f.add(other.streams[1], 301)
	f.relieve()
	if c.streams[3].err == nil || c.streams[1].err != nil || c.streams[5].err != nil || f.used != 701 {
		t.Errorf("refused: %v, %v, %v; %d are held", c.streams[1].err, c.streams[3].err, c.streams[5].err, f.used)
	}
	f.add(other.streams[1], 1000)
	f.relieve()
	if f.used != 1301 || c.receiving != 0 || c.streams[1].err == nil || c.streams[5].err == nil {
		t.Errorf("%d are held, %d are being received", f.used, c.receiving)
	}
}

// Watchers hold nothing, are few, and leave their connection silent.
func TestWatchers(t *testing.T) {
	f := newInflight(1 << 30)
	c := streamed(f)
	var all []*inbound
	for i := range uint32(maxWatches + 1) {
		f.frame(c, frameHeaders, 2*i+1, 10)
		s := c.streams[2*i+1]
		s.claimed, s.receiving = true, true
		c.claims++
		f.add(s, streamCost)
		err := f.watch(s)
		if (err != nil) != (i == maxWatches) || s.held != 0 {
			t.Errorf("watcher %d: %v, it holds %d", i+1, err, s.held)
		}
		if err := f.watch(s); i < maxWatches && err != nil { // its next message
			t.Error(err)
		}
		all = append(all, s)
	}
	if f.used != 0 || c.watches != maxWatches || c.claims != maxWatches+1 {
		t.Errorf("%d are held by %d watchers of %d calls", f.used, c.watches, c.claims)
	}
	was := c.silent
	f.end(all[0])
	if c.watches != maxWatches-1 || c.claims != maxWatches || c.served || c.silent != was || len(c.streams) != maxWatches {
		t.Errorf("%d watchers of %d calls, served: %t", c.watches, c.claims, c.served)
	}
	f.end(all[maxWatches])
	if c.watches != maxWatches-1 || c.claims != maxWatches-1 || !c.served || c.silent == was {
		t.Errorf("after a call: %d watchers of %d calls, served: %t", c.watches, c.claims, c.served)
	}
	if err := f.watch(&inbound{refused: make(chan struct{})}); err != nil {
		t.Errorf("of a connection that is not Serve's: %v", err)
	}
}

// A stream's next message takes the place of the one before, unless that was refused.
func TestNextMessage(t *testing.T) {
	f := newInflight(1 << 30)
	conn, s := receivingOf(f, 1<<20)
	f.frame(conn, frameData, 1, 500)
	if err := f.complete(s, 500-prefix); err != nil || s.early != 0 || conn.receiving != 0 || f.used != 500+frameCost {
		t.Errorf("%v, %d early, %d being received, %d held", err, s.early, conn.receiving, f.used)
	}
	f.again(s)
	if f.used != streamCost || conn.receiving != streamCost || s.bytes != 0 || s.frames != 0 || s.ended {
		t.Errorf("%+v; %d are held", s, f.used)
	}
	f.refuse(s, errInflight())
	f.refuse(s, errSlowBody(time.Second)) // the first counts
	f.again(s)
	if f.used != 0 || s.receiving || s.err == nil || f.complete(s, 0) != s.err {
		t.Errorf("%+v; %d are held after a refusal", s, f.used)
	}
	if f.grow(s, 10); f.used != 0 {
		t.Errorf("%d are held", f.used)
	}
}

// Of connections without a call the one that never made any goes first, then the one whose last is longest ago.
func TestSilentConnections(t *testing.T) {
	f := newInflight(1 << 30)
	l := &listener{inflight: f, log: slog.New(slog.DiscardHandler)}
	now := time.Now()
	add := func(age time.Duration, served bool, claims, watches int) *connection {
		c := newConnection(wireConn{}, l)
		c.silent, c.served, c.claims, c.watches = now.Add(-age), served, claims, watches
		f.conns[c] = struct{}{}
		return c
	}
	busy := add(time.Hour, false, 1, 0)
	if l.silent() != nil || l.makeRoom() {
		t.Error("a connection with a call is silent")
	}
	add(time.Minute, true, 0, 0)
	oldest := add(2*time.Minute, true, 1, 1)
	if got := l.silent(); got != oldest {
		t.Errorf("%+v", got)
	}
	add(time.Second, false, 0, 0)
	first := add(2*time.Second, false, 2, 2)
	if got := l.silent(); got != first {
		t.Errorf("%+v", got)
	}
	if !l.makeRoom() || l.count() != 4 || first.closed.Err() == nil || busy.closed.Err() != nil {
		t.Errorf("%d connections are left", l.count())
	}
}
