package caption

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrGivenUp is the error of a run that found no server to answer.
var ErrGivenUp = errors.New("given up")

const (
	// pauseAfter is how many calls fail in a row before all of them pause.
	pauseAfter = 20
	// probeEvery is how often a paused run asks for the servers' health.
	probeEvery = time.Second
	// mostPauses is how often a run pauses without an answer between before it gives up.
	mostPauses = 5
)

// breaker holds calls back while the servers do not answer.
type breaker struct {
	server   Server
	patience time.Duration // how long to wait for health
	say      func(string)  // a line for the person who watches

	mu     sync.Mutex
	row    int           // failures since the last answer
	pauses int           // pauses since the last answer
	open   chan struct{} // closed when calls may go; nil if they may now
	err    error         // why the run is given up
	probes sync.WaitGroup
}

// pass waits until calls may go.
func (b *breaker) pass(ctx context.Context) error {
	for {
		b.mu.Lock()
		wait, err := b.open, b.err
		b.mu.Unlock()
		if err != nil || wait == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wait:
		}
	}
}

// success ends a row of failures.
func (b *breaker) success() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.row, b.pauses = 0, 0
}

// failure tells of a call that failed for a reason that is not the item's. It reports whether the failure is the
// server's, as far as its health shows: then it does not count against the item.
func (b *breaker) failure(ctx context.Context, err error) (servers bool) {
	unavailable := status.Code(err) == codes.Unavailable
	b.mu.Lock()
	b.row++
	many := b.row >= pauseAfter
	paused := b.open != nil
	b.mu.Unlock()
	if paused {
		return unavailable
	}
	if unavailable && b.healthy(ctx) != nil {
		b.pause(ctx, fmt.Sprintf("no server takes requests (%s)", codeName(status.Code(err))))
		return true
	}
	if many {
		b.pause(ctx, fmt.Sprintf("%d calls in a row failed (%s)", pauseAfter, codeName(status.Code(err))))
	}
	return false
}

func (b *breaker) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return b.server.Healthy(ctx)
}

// pause stops all calls and waits, on a goroutine of its own, for health.
func (b *breaker) pause(ctx context.Context, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != nil || ctx.Err() != nil {
		return
	}
	b.open, b.row = make(chan struct{}), 0
	b.pauses++
	pauses := b.pauses
	b.say(fmt.Sprintf("paused: %s; waiting for health, up to %v", why, b.patience))
	b.probes.Go(func() {
		err := b.await(ctx, pauses)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.err = err
		close(b.open)
		b.open = nil
		if err == nil {
			b.say("going on: a server takes requests")
		}
	})
}

// await waits until a server is healthy.
func (b *breaker) await(ctx context.Context, pauses int) error {
	if pauses > mostPauses {
		return fmt.Errorf("%w: %d pauses without an answer between", ErrGivenUp, mostPauses)
	}
	started := time.Now()
	delay := probeEvery * time.Duration(pauses) // a server may say that it is healthy and fail all the same
	for {
		if err := sleep(ctx, delay); err != nil {
			return err
		}
		err := b.healthy(ctx)
		if err == nil {
			return nil
		}
		if time.Since(started) >= b.patience {
			return fmt.Errorf(
				"%w: no server took requests for %v: %s",
				ErrGivenUp,
				b.patience,
				status.Convert(err).Message(),
			)
		}
		delay = probeEvery
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// paused tells whether calls are held back.
func (b *breaker) paused() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open != nil
}
