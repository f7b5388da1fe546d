// Package imaging decodes image files to the RGB bytes that Pillow gives, turns them upright and resamples them.
//
// Every byte of a file is hostile. A file's header is read first; sides, pixels and the memory that decoding will hold
// follow from it and are judged before any memory is taken. Long loops look at their context.
package imaging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"runtime"
	"sync"
	"time"

	"github.com/mmserve/mmserve/internal/crew"
)

// ErrImage marks an image the caller has to change: undecodable, truncated, too large, empty.
// The wrapped text is safe to show to that caller; it never holds pixel content.
var ErrImage = errors.New("unusable image")

// RGB is a decoded image: W×H pixels, row-major, three interleaved bytes each.
type RGB struct {
	Pix  []uint8
	W, H int
}

// NewRGB gives a black image.
func NewRGB(w, h int) *RGB { return &RGB{Pix: make([]uint8, 3*w*h), W: w, H: h} }

// Row gives the bytes of row y.
func (p *RGB) Row(y int) []uint8 { return p.Pix[3*p.W*y:][:3*p.W] }

// Limits bound what one encoded image may cost. They are checked before any pixel memory is allocated.
type Limits struct {
	// MaxBytes bounds the encoded file. Zero stands for 64 MiB.
	MaxBytes int64
	// MaxPixels bounds width × height as the header gives them. Zero stands for 64,000,000, room for the 48 and
	// 50 megapixels of today's phones; Pillow warns from 89,478,485 and refuses twice that.
	MaxPixels int64
	// MaxFilePixels bounds it instead, where larger images are scaled down as they are decoded; the memory that decoding
	// may hold still follows from MaxPixels. Zero stands for MaxPixels.
	MaxFilePixels int64
	// MaxSide bounds width and height in pixels. Zero stands for 65,535, the most that a JPEG can have.
	MaxSide int
	// MaxTime bounds decoding and scaling, from when the budget has room. Zero stands for 30 s.
	MaxTime time.Duration
	// Budget is shared by all decodes of a process. Nil stands for DefaultDecodeBytes for each image alone.
	Budget *Budget
}

// DefaultLimits gives what zero Limits stand for.
func DefaultLimits() Limits {
	return Limits{MaxBytes: 64 << 20, MaxPixels: 64_000_000, MaxSide: 65_535, MaxTime: 30 * time.Second}
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	if l.MaxBytes == 0 {
		l.MaxBytes = d.MaxBytes
	}
	if l.MaxPixels == 0 {
		l.MaxPixels = d.MaxPixels
	}
	if l.MaxFilePixels == 0 {
		l.MaxFilePixels = l.MaxPixels
	}
	if l.MaxSide == 0 {
		l.MaxSide = d.MaxSide
	}
	if l.MaxTime == 0 {
		l.MaxTime = d.MaxTime
	}
	return l
}

// Within bounds the time of an image whose decoding begins now. The cause of the context's end wraps ErrImage then.
func (l Limits) Within(ctx context.Context) (context.Context, context.CancelFunc) {
	most := l.orDefault().MaxTime
	return context.WithTimeoutCause(ctx, most, fmt.Errorf("%w: decoding it takes longer than %v", ErrImage, most))
}

// decodeBytes is the most that one decode into strips may hold: an image of any format fits that takes four bytes a
// pixel. Lossless WebP takes eight, JPEG of many samples a pixel and progressive JPEG up to eight.
func (l Limits) decodeBytes() int64 {
	const least = 64 << 20 // what decoders take that does not grow with the image
	return max(Bytes(4, int(min(l.MaxPixels, 1<<40))), least)
}

// Bytes is the product of sizes, none negative; more than an int64 holds gives the largest.
func Bytes(sizes ...int) int64 {
	product := uint64(1)
	for _, n := range sizes {
		if n < 0 {
			return math.MaxInt64
		}
		high, low := bits.Mul64(product, uint64(n))
		if high != 0 || low > math.MaxInt64 {
			return math.MaxInt64
		}
		product = low
	}
	return int64(product)
}

// Sum adds sizes, none negative; more than an int64 holds gives the largest.
func Sum(sizes ...int64) int64 {
	total := int64(0)
	for _, n := range sizes {
		if n < 0 || total > math.MaxInt64-n {
			return math.MaxInt64
		}
		total += n
	}
	return total
}

// scratch holds *RGB for the images between two stages.
var scratch sync.Pool

// maxScratch is the largest image that scratch keeps, in bytes: larger ones are rare and go back to the collector.
const maxScratch = 48 << 20

func scratchRGB(w, h int) *RGB {
	p, ok := scratch.Get().(*RGB)
	if !ok || cap(p.Pix) < 3*w*h {
		return NewRGB(w, h)
	}
	p.Pix, p.W, p.H = p.Pix[:3*w*h], w, h
	return p
}

// blackRGB is scratchRGB, cleared: for decoders that may leave pixels out.
func blackRGB(w, h int) *RGB {
	p := scratchRGB(w, h)
	clear(p.Pix)
	return p
}

// Release gives an image's memory back for others. p must not be used after it.
func Release(p *RGB) {
	if cap(p.Pix) <= maxScratch {
		scratch.Put(p)
	}
}

// eachBand calls f on bands that cover [0, n) on up to all cores, and waits. work estimates the operations of one row:
// what is too little to share runs on the caller's goroutine. Between bands it looks at ctx.
func eachBand(ctx context.Context, n, work int, f func(lo, hi int)) error {
	const worthwhile, often = 1 << 16, 1 << 23
	step := max(1, min(n, often/max(work, 1)))
	cores := min((n+step-1)/step, runtime.GOMAXPROCS(0))
	if cores <= 1 && n*work >= worthwhile {
		cores = min(n, runtime.GOMAXPROCS(0), 1+n*work/worthwhile)
		step = (n + cores - 1) / max(cores, 1)
	}
	var next int
	var mu sync.Mutex
	take := func() (lo, hi int) {
		mu.Lock()
		defer mu.Unlock()
		lo, hi = next, min(next+step, n)
		next = hi
		return lo, hi
	}
	run := func() {
		for ctx.Err() == nil {
			lo, hi := take()
			if lo == hi {
				return
			}
			f(lo, hi)
		}
	}
	if cores <= 1 {
		run()
		return context.Cause(ctx)
	}
	var bands crew.Group
	for range cores {
		bands.Go(func() error { run(); return nil })
	}
	_ = bands.Wait() // a band's panic is the caller's
	return context.Cause(ctx)
}

// contextReader ends with its context's error once that is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// meter reads compressed data as long as pixels come of them: hostile data go on for megabytes and make none, at much
// processor time a byte. It ends with its context's error once that is done.
type meter struct {
	ctx        context.Context
	rest       []byte
	used, made int64 // bytes
	slack      int64
}

// meterSlack is what compressed data may take before the first pixels. No compression that is read here makes data
// twice as long as they were.
const meterSlack = 1 << 20

func newMeter(ctx context.Context, b []byte, rowBytes int) *meter {
	return &meter{ctx: ctx, rest: b, slack: Sum(meterSlack, Bytes(2, rowBytes))}
}

var errNoPixels = errors.New("much data that hold no pixels")

// take says that n further bytes are used.
func (m *meter) take(n int) error {
	if m.ctx.Err() != nil {
		return context.Cause(m.ctx)
	}
	if m.used += int64(n); m.used > 2*m.made+m.slack {
		return errNoPixels
	}
	return nil
}

func (m *meter) Read(b []byte) (int, error) {
	if len(m.rest) == 0 {
		return 0, io.EOF
	}
	const often = 64 << 10
	n := copy(b[:min(len(b), often)], m.rest)
	m.rest = m.rest[n:]
	return n, m.take(n)
}

// errPanic is what a decoder's panic becomes. What it says may hold content, so it is left out.
var errPanic = errors.New("the decoder gave up")

func clip8(v int32) uint8 {
	if uint32(v) <= 255 {
		return uint8(v)
	}
	return uint8(^(v >> 31)) // 0 below, 255 above
}

// tooMany is the error of a count above its limit.
func tooMany(what string, n, most int) error {
	return fmt.Errorf("%d %s, at most %d are allowed", n, what, most)
}
