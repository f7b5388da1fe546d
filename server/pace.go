package server

import (
	"context"
	"errors"
	"runtime"
	"time"

	"golang.org/x/time/rate"
)

// Clients that flood are read more slowly. To close their connections would have them connect again, which costs more.
const (
	// frameRate is how many frames a connection may send in a second, DATA aside, and frameBurst how many at once.
	frameRate, frameBurst = 2000, 4000
	// floodRate is how many frames are read in a second for each processor from those that send more, all together.
	floodRate = 1000
	// floodTime is how long a connection may send more without a pause; it is closed then.
	floodTime = 30 * time.Second
	// resetCost is what a call that is taken back counts: opening and resetting calls without end costs a server far more
	// than its client (CVE-2023-44487).
	resetCost = 4
	// idlePingCost is what a ping counts on a connection without a call. Clients send one now and then, to hear that the
	// server lives; the many that measure the bandwidth come while answers do.
	idlePingCost = 20
	// tinyData is the length in bytes up to which a DATA frame counts as any other.
	tinyData = 64

	// bulkAfter is how many bytes of messages that are not whole yet a connection has received when the
	// rest counts as bulk.
	bulkAfter = 1 << 20
	// bulkRate is how many bytes of bulk are read in a second for each processor, from all connections
	// together, and bulkBurst how many at once. A processor decodes less than this of what cameras make, and
	// receives five times as much.
	bulkRate, bulkBurst = 32 << 20, 16 << 20
	// wasteRate and wasteBurst are the same of what is read to be thrown away: bodies over HTTP that were refused.
	wasteRate, wasteBurst = 8 << 20, 16 << 20
)

// newBulk is the limiter of bulk that all connections share, newWaste the one of what is thrown away, newFlood the one
// of frames beyond their own.
func newBulk() *rate.Limiter {
	return rate.NewLimiter(rate.Limit(bulkRate*runtime.GOMAXPROCS(0)), bulkBurst)
}

func newWaste() *rate.Limiter {
	return rate.NewLimiter(rate.Limit(wasteRate*runtime.GOMAXPROCS(0)), wasteBurst)
}

func newFlood() *rate.Limiter {
	return rate.NewLimiter(rate.Limit(floodRate*runtime.GOMAXPROCS(0)), frameBurst)
}

// frameCount is what a frame counts against frameRate; idle says that its connection has no call.
func frameCount(kind byte, length int64, idle bool) int {
	switch {
	case kind == frameReset:
		return resetCost
	case kind == framePing && idle:
		return idlePingCost
	case kind == frameData && length > tinyData:
		return 0
	}
	return 1
}

var errFlood = errors.New("the client sends more frames than a connection may")

// pace waits as long as the reading goroutine has to before it goes on after n bytes with frames frames that count, or
// until the connection is closed. It fails where the connection has sent too many for floodTime.
func (c *connection) pace(n, frames int, bulk bool) error {
	now, shared := time.Now(), c.listener.inflight
	c.clock = c.clock.Add(now.Sub(c.resumed))
	c.resumed = now
	own := delay(c.frames, c.clock, frames)
	wait := own
	switch {
	case frames == 0: // which says nothing of the others
	case own <= 0:
		c.flooding = time.Time{}
	case c.flooding.IsZero():
		c.flooding = now
	case now.Sub(c.flooding) > floodTime:
		return errFlood
	}
	if own > 0 {
		wait = max(wait, delay(shared.flood, now, frames))
	}
	if bulk {
		wait = max(wait, delay(shared.bulk, now, n))
	}
	if wait <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.closed, min(wait, 2*floodTime))
	defer cancel()
	<-ctx.Done()
	c.clock, c.resumed = c.clock.Add(max(0, own)), time.Now()
	return nil
}

// delay takes n from l, and gives how long it is until they are due.
func delay(l *rate.Limiter, now time.Time, n int) (wait time.Duration) {
	for ; n > 0; n -= l.Burst() {
		wait = l.ReserveN(now, min(n, l.Burst())).DelayFrom(now)
	}
	return wait
}
