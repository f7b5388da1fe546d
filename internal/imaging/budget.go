package imaging

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
)

// DefaultDecodeBytes is the budget that decodes share by default: room for one progressive JPEG of 64 megapixels at
// full chroma, or for ten photos of 12 megapixels.
const DefaultDecodeBytes = 1 << 30

// Budget is the memory and the cores that all decodes of a process share. Its methods may be called concurrently.
//
// Large images may hold 7/8 of the bytes and half of the cores at most: the small ones of others pass beside them. Of
// those that wait the higher priority goes first, then who came first. It is our own because x/sync's semaphore has no
// priorities.
type Budget struct {
	size                int64
	cores, largeCores   int
	mu                  sync.Mutex
	bytes, largeBytes   int64 // in use
	running, runningBig int
	waiting             []*claim
}

// claim is a decode that waits or runs.
type claim struct {
	bytes    int64
	large    bool
	priority int
	granted  chan struct{}
}

// NewBudget gives a budget of bytes.
func NewBudget(bytes int64) *Budget {
	cores := runtime.GOMAXPROCS(0)
	return &Budget{size: bytes, cores: cores, largeCores: max(1, cores/2)}
}

// largest is the most that one image may take of a budget of size.
func largest(size int64) int64 { return size - size/8 }

// Largest is the most bytes that one image may take.
func (b *Budget) Largest() int64 {
	if b == nil {
		return largest(DefaultDecodeBytes)
	}
	return largest(b.size)
}

type priorityKey struct{}

// WithPriority says how soon the work on images that is done for ctx is wanted: of those who wait for a budget or a
// vision encoder, the higher goes first. Without it the priority is 0.
func WithPriority(ctx context.Context, priority int) context.Context {
	return context.WithValue(ctx, priorityKey{}, priority)
}

// Priority is what WithPriority said.
func Priority(ctx context.Context) int {
	p, _ := ctx.Value(priorityKey{}).(int)
	return p
}

// Acquire waits for n bytes and a core and returns what gives them back. More than Largest is an ErrImage at once.
// A nil Budget judges n and waits for nothing.
func (b *Budget) Acquire(ctx context.Context, n int64) (release func(), err error) {
	if n > b.Largest() {
		return nil, fmt.Errorf("%w: decoding and preparing it takes %d bytes, at most %d are allowed", ErrImage, n, b.Largest())
	}
	if b == nil {
		return func() { collect(n) }, nil
	}
	c := &claim{bytes: n, large: n > b.size/16, priority: Priority(ctx), granted: make(chan struct{})}
	b.mu.Lock()
	at, _ := slices.BinarySearchFunc(b.waiting, c, func(w, c *claim) int { // behind its equals
		return cmp.Or(cmp.Compare(c.priority, w.priority), -1)
	})
	b.waiting = slices.Insert(b.waiting, at, c)
	b.grant()
	b.mu.Unlock()
	select {
	case <-c.granted:
	case <-ctx.Done():
		b.leave(c)
		return nil, context.Cause(ctx)
	}
	return func() {
		collect(n)
		b.giveBack(c)
	}, nil
}

// leave gives up a claim, which may have been granted meanwhile.
func (b *Budget) leave(c *claim) {
	b.mu.Lock()
	at := slices.Index(b.waiting, c)
	if at >= 0 {
		b.waiting = slices.Delete(b.waiting, at, at+1)
		b.grant() // it may have been what others waited behind
	}
	b.mu.Unlock()
	if at < 0 {
		b.giveBack(c)
	}
}

func (b *Budget) giveBack(c *claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes -= c.bytes
	if c.large {
		b.largeBytes -= c.bytes
		b.runningBig--
	} else {
		b.running--
	}
	b.grant()
}

// grant admits in order whom there is room for. Who lacks bytes that nobody of his size holds too many of blocks all
// behind him; who lacks a core, or a large one the large ones' share, those of his size alone. b.mu is held.
func (b *Budget) grant() {
	var blocked [2]bool // small and large ones
	b.waiting = slices.DeleteFunc(b.waiting, func(c *claim) bool {
		size, full := 0, b.running >= b.cores
		if c.large { // takes no core of the small ones
			size, full = 1, b.runningBig >= b.largeCores || b.largeBytes+c.bytes > largest(b.size)
		}
		switch {
		case blocked[size]:
			return false
		case full:
			blocked[size] = true
			return false
		case b.bytes+c.bytes > b.size:
			blocked = [2]bool{true, true}
			return false
		}
		b.bytes += c.bytes
		if c.large {
			b.largeBytes += c.bytes
			b.runningBig++
		} else {
			b.running++
		}
		close(c.granted)
		return true
	})
}

// worthCollecting is from how many bytes on a decode's garbage is collected before its share of a budget is given back:
// images of that size are not kept for reuse, and would stand beside those of the next.
const worthCollecting = 64 << 20

// collect returns the memory of a large decode to the system.
func collect(n int64) {
	if n > worthCollecting {
		debug.FreeOSMemory()
	}
}
