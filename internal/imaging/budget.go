package imaging

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"golang.org/x/sync/semaphore"
)

// DefaultDecodeBytes is the budget that decodes share by default: room for one progressive JPEG of 64 megapixels at full
// chroma, or for ten photos of 12 megapixels.
const DefaultDecodeBytes = 1 << 30

// Budget is the memory and the cores that all decodes of a process share. Its methods may be called concurrently.
//
// Large images may hold 7/8 of the bytes and half of the cores at most: the small ones of others pass beside them.
type Budget struct {
	size         int64
	bytes, large *semaphore.Weighted
	cores        *semaphore.Weighted
	largeCores   *semaphore.Weighted
}

// NewBudget gives a budget of bytes.
func NewBudget(bytes int64) *Budget {
	cores := int64(runtime.GOMAXPROCS(0))
	return &Budget{
		size: bytes, bytes: semaphore.NewWeighted(bytes), large: semaphore.NewWeighted(largest(bytes)),
		cores: semaphore.NewWeighted(cores), largeCores: semaphore.NewWeighted(max(1, cores/2)),
	}
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

// Acquire waits for n bytes and a core and returns what gives them back. More than Largest is an ErrImage at once.
// A nil Budget judges n and waits for nothing.
func (b *Budget) Acquire(ctx context.Context, n int64) (release func(), err error) {
	if n > b.Largest() {
		return nil, fmt.Errorf("%w: decoding and preparing it takes %d bytes, at most %d are allowed", ErrImage, n, b.Largest())
	}
	if b == nil {
		return func() { collect(n) }, nil
	}
	type share struct {
		of *semaphore.Weighted
		n  int64
	}
	shares := []share{{b.bytes, n}, {b.cores, 1}}
	if n > b.size/16 {
		shares = []share{{b.largeCores, 1}, {b.large, n}, {b.bytes, n}} // a large one takes no core of the small ones
	}
	taken := 0
	release = func() {
		if taken == len(shares) {
			collect(n)
		}
		for _, s := range shares[:taken] {
			s.of.Release(s.n)
		}
	}
	for _, s := range shares {
		if err := s.of.Acquire(ctx, s.n); err != nil {
			release()
			return nil, context.Cause(ctx)
		}
		taken++
	}
	return release, nil
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
