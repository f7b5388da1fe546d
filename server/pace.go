package server

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/time/rate"
)

// Clients that flood are read more slowly. To close their connections would have them connect again, which costs more.
const (
	// frameRate is how many frames a connection may send in a second, DATA aside, and frameBurst how many at once.
	frameRate, frameBurst = 2000, 4000
	// resetCost is what a call that is taken back counts: opening and resetting calls without end costs a server far more
	// than its client (CVE-2023-44487).
	resetCost = 4
	// tinyData is the length in bytes up to which a DATA frame counts as any other.
	tinyData = 64

	// bulkAfter is how many bytes of messages that are not whole yet a connection has received when the rest counts as bulk.
	bulkAfter = 1 << 20
	// bulkRate is how many bytes of bulk are read in a second for each processor, from all connections together, and
	// bulkBurst how many at once. A processor decodes less than this of what cameras make, and receives five times as much.
	bulkRate, bulkBurst = 32 << 20, 16 << 20
)

// newBulk is the limiter of bulk that all connections share.
func newBulk() *rate.Limiter {
	return rate.NewLimiter(rate.Limit(bulkRate*runtime.GOMAXPROCS(0)), bulkBurst)
}

// frameCount is what a frame counts against frameRate.
func frameCount(kind byte, length int64) int {
	switch {
	case kind == frameReset:
		return resetCost
	case kind == frameData && length > tinyData:
		return 0
	}
	return 1
}

// pace waits as long as the reading goroutine has to before it goes on after n bytes with
// frames frames that count, or until the connection is closed.
func (c *connection) pace(n, frames int, bulk bool) {
	now, wait := time.Now(), time.Duration(0)
	for ; frames > 0; frames -= frameBurst {
		wait = c.frames.ReserveN(now, min(frames, frameBurst)).DelayFrom(now)
	}
	if bulk {
		wait = max(wait, c.listener.inflight.bulk.ReserveN(now, min(n, bulkBurst)).DelayFrom(now))
	}
	if wait <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(c.closed, wait)
	defer cancel()
	<-ctx.Done()
}
