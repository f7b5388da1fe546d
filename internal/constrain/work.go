package constrain

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"time"
)

// ErrWork says that a constraint's masks cost more than one request may use. It concerns that request only.
var ErrWork = errors.New("the constraint takes too much work for each token: simplify its patterns and alternatives")

const (
	// The units of work are about 10 ns each: a transition that is known is one, a new one is several a thread.
	// requestWork is what a request may use whatever its length, some 0.7 s; tokenWork is added with each token.
	requestWork = 1 << 26
	tokenWork   = 1 << 17

	// sliceWork is the work between two looks at the context and the clock, some 0.3 ms; quickSlices is how many of
	// them a computation may take before it leaves the quick lane.
	sliceWork   = 1 << 15
	quickSlices = 8
)

// lanes are where compilations and masks run, never on the engine's goroutine. Each computation starts in the quick
// lane. One that takes longer goes on in the slow lane, where it waits for others and rests half of the time, so that
// expensive constraints neither hold up cheap ones nor take the processor from the model.
type lanes struct {
	quick, slow chan struct{} // one note for each that runs
}

func newLanes() *lanes {
	return &lanes{
		quick: make(chan struct{}, max(runtime.GOMAXPROCS(0), 2)),
		slow:  make(chan struct{}, max(runtime.GOMAXPROCS(0)/4, 1)),
	}
}

// allowance is the work that the answers of one request may still use.
type allowance struct{ left atomic.Int64 }

func newAllowance(units int64) *allowance {
	a := new(allowance)
	a.left.Store(units)
	return a
}

// meter measures one computation. A nil meter measures nothing. One goroutine uses it.
type meter struct {
	ctx    context.Context
	lanes  *lanes
	allow  *allowance
	used   int // since the last look
	slices int
	began  time.Time // of the slice
	slow   bool
	err    error
}

// start waits for a place in the quick lane. end gives back whatever place is held.
func (l *lanes) start(ctx context.Context, allow *allowance) (*meter, error) {
	m := &meter{ctx: ctx, lanes: l, allow: allow}
	if err := m.take(l.quick); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *meter) take(lane chan struct{}) error {
	select {
	case lane <- struct{}{}:
		m.began = time.Now()
		return nil
	case <-m.ctx.Done():
		return context.Cause(m.ctx)
	}
}

func (m *meter) end() {
	switch {
	case m.slow:
		<-m.lanes.slow
	default:
		<-m.lanes.quick
	}
}

// spend takes n units and reports whether the computation may go on. Once it fails it goes on failing.
func (m *meter) spend(n int) bool {
	if m == nil {
		return true
	}
	if m.used += n; m.used < sliceWork {
		return m.err == nil
	}
	return m.look()
}

// failed reports whether spend has failed.
func (m *meter) failed() bool { return m != nil && m.err != nil }

// look charges the slice that has ended, and changes lanes or rests where it is time to.
func (m *meter) look() bool {
	if m.err != nil {
		return false
	}
	left := m.allow.left.Add(-int64(m.used))
	m.used = 0
	m.slices++
	switch {
	case m.ctx.Err() != nil:
		m.err = context.Cause(m.ctx)
	case left < 0:
		m.err = ErrWork
	case m.slow:
		m.rest(time.Since(m.began))
		m.began = time.Now()
	case m.slices >= quickSlices:
		m.changeLane()
	}
	return m.err == nil
}

// changeLane gives the place in the quick lane up and waits for one in the slow lane. If the context ends meanwhile no
// place of the slow lane is held, so the quick one is kept until then.
func (m *meter) changeLane() {
	<-m.lanes.quick
	if err := m.take(m.lanes.slow); err != nil {
		m.err = err
		m.lanes.quick <- struct{}{} // for end; others leave theirs without waiting for this one
		return
	}
	m.slow = true
}

// rest sleeps as long as the slice took.
func (m *meter) rest(d time.Duration) {
	timer := time.NewTimer(min(d, 10*time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.ctx.Done():
	}
}
