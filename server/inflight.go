package server

import (
	"context"
	"reflect"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/mmserve/mmserve/serving"
)

// Costs that come on top of a message's bytes while it is received, in bytes.
const (
	streamCost = 16 << 10 // goroutines and buffers of a stream
	frameCost  = 160      // a DATA frame's place in gRPC's list of buffers
	// tinyFrames is how many DATA frames a message may have before their mean has to be tinyBytes: a message of one-byte
	// frames would take ten times its bytes to carry, and hundreds of times in processor time.
	tinyFrames, tinyBytes = 4096, 128
	// reclaimAbove is how much memory has to have been held, for it to be given back to the system at once.
	reclaimAbove = 48 << 20
)

// inflight is the byte budget over request messages: from the first byte on the wire until what they carry has
// been put to use. It reads the frames that connections receive, because gRPC tells nobody of a message before
// it is whole. Above the budget messages that are still on their way are refused, the largest of the connection
// that holds most first.
type inflight struct {
	limit   int64
	evicted atomic.Int64

	mu      sync.Mutex
	used    int64
	peak    int64 // since memory was given back
	reclaim bool  // somebody is about to give memory back
	open    int   // calls that run, watchers aside
	resting bool  // somebody is about to see whether none does

	reclaimedAt uint64 // allocatedBytes when memory was given back last, because no call ran
	conns       map[*connection]struct{}

	bulk, flood, waste *rate.Limiter // see bulkRate, floodRate and wasteRate
}

func newInflight(limit int64) *inflight {
	return &inflight{
		limit: limit, conns: map[*connection]struct{}{}, bulk: newBulk(), flood: newFlood(), waste: newWaste(),
	}
}

// bulky says whether what c receives now counts as bulk.
func (f *inflight) bulky(c *connection) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return c.receiving > bulkAfter
}

// inbound is one stream's message. Its fields are guarded by inflight.mu.
type inbound struct {
	conn             *connection // nil if its connection is none of Serve's
	id               uint32
	held             int64 // what it counts
	bytes, frames    int64
	most             int64 // bytes that the method takes
	beyond           error // what one of more is refused with; nil: by its size
	claimed          bool  // it has a handler, and counts
	watching         bool  // it is one of its connection's watches
	early            int64 // bytes, of those that came, that are the next message's
	receiving, ended bool

	refused chan struct{} // closed once err is set
	err     error
}

// frame takes note of a frame that c received, and gives what it counts against frameRate.
func (f *inflight) frame(c *connection, kind byte, id uint32, length int64) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.greeted = true
	switch kind {
	case frameHeaders:
		if id > c.last {
			c.last = id
			c.streams[id] = &inbound{conn: c, id: id, refused: make(chan struct{})}
			c.prune()
		}
	case frameReset:
		if s := c.streams[id]; s != nil && !s.claimed {
			delete(c.streams, id)
		}
	case frameData:
		if s := c.streams[id]; s != nil && !s.ended {
			f.data(s, length)
		}
	}
	return frameCount(kind, length, c.claims == 0)
}

func (f *inflight) data(s *inbound, length int64) {
	s.frames++
	s.bytes += length
	if s.claimed && !s.receiving {
		s.early += length
	}
	f.add(s, length+frameCost)
	switch {
	case !s.receiving:
	case s.frames > tinyFrames && s.bytes < s.frames*tinyBytes:
		f.refuse(s, exhausted("the message comes in frames of %d bytes in the mean; want %d", s.bytes/s.frames, tinyBytes))
	case s.bytes > s.most:
		err := s.beyond
		if err == nil {
			err = exhausted("the message is larger than this method takes: at most %d bytes", s.most)
		}
		f.refuse(s, err)
	default:
		f.relieve()
	}
}

// add counts n bytes of s, which count for all once it has a handler.
func (f *inflight) add(s *inbound, n int64) {
	s.held += n
	if !s.claimed || s.conn == nil {
		return
	}
	f.used += n
	f.peak = max(f.peak, f.used)
	if s.receiving {
		s.conn.receiving += n
	}
}

// relieve refuses messages until the rest is within the budget, or none is on its way.
func (f *inflight) relieve() {
	for f.used > f.limit {
		var most *connection
		for c := range f.conns {
			if c.receiving > 0 && (most == nil || c.receiving > most.receiving) {
				most = c
			}
		}
		if most == nil {
			return
		}
		var largest *inbound
		for _, s := range most.streams {
			if s.receiving && (largest == nil || s.held > largest.held || s.held == largest.held && s.id < largest.id) {
				largest = s
			}
		}
		if largest == nil {
			return
		}
		f.evicted.Add(1)
		f.refuse(largest, errInflight())
	}
}

func errInflight() error {
	return serving.Overloaded("the requests that are being received take all the memory there is for them: try again later")
}

// refuse ends the receipt of s with err.
func (f *inflight) refuse(s *inbound, err error) {
	if s.err == nil {
		s.err = err
		close(s.refused)
	}
	f.drop(s)
}

// drop stops counting s.
func (f *inflight) drop(s *inbound) {
	if s.claimed && s.conn != nil {
		f.used -= s.held
		if s.receiving {
			s.conn.receiving -= s.held
		}
	}
	s.held, s.receiving, s.ended = 0, false, true
	if f.used < f.limit/16 && f.peak > reclaimAbove && !f.reclaim {
		f.reclaim = true
		time.AfterFunc(200*time.Millisecond, f.giveBack)
	}
}

// giveBack returns to the system what large messages took: the collector would keep it for minutes on an idle server.
func (f *inflight) giveBack() {
	f.mu.Lock()
	quiet := f.used < f.limit/16
	if quiet {
		f.peak = f.used
	}
	f.reclaim = false
	f.mu.Unlock()
	if quiet {
		debug.FreeOSMemory()
	}
}

// claim has the message of ctx's stream count, up to most bytes, until end. A larger one is refused with beyond, or by
// its size if that is nil.
func (f *inflight) claim(ctx context.Context, most int64, beyond error) *inbound {
	s := &inbound{refused: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := connectionOf(ctx); c != nil {
		if known := c.streams[streamID(ctx)]; known != nil {
			s = known
		} else {
			s.conn, s.id = c, streamID(ctx)
			c.streams[s.id] = s
		}
		c.claims++
	}
	f.open++
	early := s.held
	s.held, s.most, s.beyond, s.claimed, s.receiving = 0, most, beyond, true, true
	f.add(s, early+streamCost)
	f.relieve()
	return s
}

// claimBody has the body of an HTTP request on c count, up to most bytes, until end. A connection has one at a time.
func (f *inflight) claimBody(c *connection, most int64) *inbound {
	s := &inbound{conn: c, id: 1, most: most, claimed: true, receiving: true, refused: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	c.streams[s.id] = s
	c.claims++
	f.open++
	f.add(s, streamCost)
	f.relieve()
	return s
}

// grow has n more bytes of a body count.
func (f *inflight) grow(s *inbound, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.receiving {
		f.add(s, n)
		f.relieve()
	}
}

// again has the next message of a stream count, instead of the one before.
func (f *inflight) again(s *inbound) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.err != nil {
		return
	}
	f.drop(s)
	s.bytes, s.frames, s.ended, s.receiving = s.early, 0, false, true
	f.add(s, s.early+streamCost)
	s.early = 0
	f.relieve()
}

// prefix is what stands before each message of a stream, in bytes.
const prefix = 5

// complete says that the message is whole, and its size: it cannot be refused any more, unless it has been.
func (f *inflight) complete(s *inbound, size int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.early = max(0, s.bytes-int64(size)-prefix)
	if s.receiving {
		if s.conn != nil {
			s.conn.receiving -= s.held
		}
		s.receiving = false
	}
	return s.err
}

// maxWatches is how many watchers a connection may have: calls that want no credential, and last.
const maxWatches = 8

// watch says that nothing is left of the message of a watcher: it holds no part of the budget while it lasts, and its
// connection counts as silent.
func (f *inflight) watch(s *inbound) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(s)
	if s.conn == nil || s.watching {
		return nil
	}
	if s.conn.watches >= maxWatches {
		return exhausted("a connection may have %d watchers", maxWatches)
	}
	s.conn.watches++
	s.watching = true
	f.close()
	return nil
}

// release says that what the message carried has been put to use.
func (f *inflight) release(s *inbound) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(s)
}

// end forgets the stream.
func (f *inflight) end(s *inbound) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(s)
	if !s.watching {
		f.close()
	}
	if c := s.conn; c != nil {
		delete(c.streams, s.id)
		c.claims--
		if s.watching {
			c.watches--
			return
		}
		c.silent = time.Now()
		c.served = true
	}
}

// usage is what counts now, and the number of connections.
func (f *inflight) usage() (bytes, connections int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used, int64(len(f.conns))
}

type inboundKey struct{}

// releaseMessage says that the images of ctx's request have been prepared: nothing large is left of its message.
func (s *Server) releaseMessage(ctx context.Context) {
	if in, ok := ctx.Value(inboundKey{}).(*inbound); ok {
		s.inflight.release(in)
	}
}

func connectionOf(ctx context.Context) *connection {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return nil
	}
	a, _ := p.Addr.(connectionAddr)
	return a.connection
}

// streamID is the HTTP/2 stream of a call, 0 if there is none. gRPC does not export it; TestStreamID holds that
// it is the wire's.
func streamID(ctx context.Context) uint32 {
	v := reflect.Indirect(reflect.ValueOf(grpc.ServerTransportStreamFromContext(ctx)))
	if v.Kind() != reflect.Struct {
		return 0
	}
	index, ok := idFields.Load(v.Type())
	if !ok {
		field, _ := v.Type().FieldByName("id") // no field: an empty index
		index, _ = idFields.LoadOrStore(v.Type(), field.Index)
	}
	if index := index.([]int); len(index) > 0 {
		if id := v.FieldByIndex(index); id.CanUint() {
			return uint32(id.Uint())
		}
	}
	return 0
}

// idFields has where streams' types have their number: a field is found by its name only once.
var idFields sync.Map
