package vision

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mmserve/mmserve/internal/crew"
	"github.com/mmserve/mmserve/internal/imaging"
)

// ErrClosed is given to callers of Encode after Close.
var ErrClosed = errors.New("the vision encoder is closed")

// Encoder turns prepared images into patch embeddings. One worker goroutine owns the tower and fills each run
// with tiles of whatever images wait; results are kept in a cache of bounded size. Callers may be many.
type Encoder struct {
	tower     Tower
	normalize Normalizer
	cache     *cache
	disk      *DiskCache    // nil if there is none
	reading   chan struct{} // has room for those that read it
	model     [32]byte      // what the disk's entries are for
	jobs      chan *job
	stop      chan struct{}
	done      chan struct{}
	closing   sync.Once

	turn   sync.Mutex  // held while the tower is used, and from Close on
	wiping atomic.Bool // the tower's memory is to be wiped when the turn is over

	mu      sync.Mutex
	stats   EncoderStats
	running *running // the tower's run, nil between runs
}

// running is a run of the tower: the images in it, and what ends it.
type running struct {
	entries []*entry
	end     context.CancelFunc
}

// EncoderStats counts what the encoder did since it was made.
type EncoderStats struct {
	// Runs is the number of tower runs, Tiles the tiles in them; an image that is not cut counts as one.
	Runs, Tiles int64
	// Hits counts Encode calls answered from a cache or by joining an encode under way, DiskHits those of them that were
	// read from a disk; Misses the others.
	Hits, DiskHits, Misses int64
	// CacheBytes is what the cache holds now, CacheEntries of how many images.
	CacheBytes   int64
	CacheEntries int
}

// job is one image on its way through the worker.
type job struct {
	image   *Image
	entry   *entry
	parts   int // of the image
	next    int // first part not yet put into a run
	left    int // parts whose patches have not come back
	patches []float32
	// priority is the entry's when the run was filled.
	priority int
}

// queueLength bounds jobs that wait for the worker; a caller past it waits in Encode, where its context counts.
const queueLength = 64

// NewEncoder starts the worker. cacheBytes bounds the patch embeddings kept for images that come again (0: none are
// kept).
func NewEncoder(t Tower, normalize Normalizer, cacheBytes int64) *Encoder {
	e := &Encoder{
		tower: t, normalize: normalize, cache: newCache(cacheBytes),
		jobs: make(chan *job, queueLength), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go e.work()
	return e
}

// KeepOn has patch embeddings kept on a disk too, which stays the caller's. model tells apart whatever would make
// others of the same image. It comes before the first Encode.
func (e *Encoder) KeepOn(disk *DiskCache, model [32]byte) {
	e.disk, e.model, e.reading = disk, model, make(chan struct{}, diskReaders)
}

// diskReaders is how many images are read from the disk at once. Where it hangs, further ones are encoded.
const diskReaders = 16

// onDisk is an image's key on disk.
func (e *Encoder) onDisk(img *Image) diskKey {
	return diskKey{model: e.model, digest: img.Digest, file: img.File, tenant: img.Tenant}
}

// load gives ent its patch embeddings from the disk, if they are there before ctx ends. The first caller waits for
// that as the others do.
func (e *Encoder) load(ctx context.Context, ent *entry, img *Image) bool {
	if e.disk == nil {
		return false
	}
	select {
	case e.reading <- struct{}{}:
	default:
		return false
	}
	read := make(chan []float32, 1)
	go func() { // a disk may hang; it has no context
		defer func() { <-e.reading }()
		read <- e.disk.get(e.onDisk(img))
	}()
	select {
	case patches := <-read:
		if patches == nil {
			return false
		}
		e.mu.Lock()
		e.stats.DiskHits++
		e.mu.Unlock()
		e.cache.finish(ent, patches, nil)
		return true
	case <-ctx.Done():
		return false
	}
}

// Encode returns the patch embeddings of an image, [tokens of all tiles, packed, hidden] row-major, and whether they
// were cached or already under way. The slice is shared and must not be written. Equal images (by Digest and Tenant)
// that come at the same time are encoded once, at the highest priority (WithPriority) of their callers. A caller whose
// context ends stops waiting; when the last one has gone before the image reached the tower, it is never encoded, and a
// run of the tower ends when nobody waits for any image in it.
func (e *Encoder) Encode(ctx context.Context, img *Image) (patches []float32, cached bool, err error) {
	ent, first := e.cache.join(key{img.Digest, img.Tenant}, img.File, imaging.Priority(ctx))
	defer e.leave(ent)
	if first && e.load(ctx, ent, img) {
		first = false
	}
	e.count(!first)
	if first {
		parts := e.tower.Parts(img)
		j := &job{image: img, entry: ent, parts: parts, left: parts}
		select {
		case e.jobs <- j:
		case <-ctx.Done():
			// Others may have joined meanwhile: they learn of it and try for themselves.
			e.cache.finish(ent, nil, errAbandoned)
			return nil, false, context.Cause(ctx)
		case <-e.stop:
			e.cache.finish(ent, nil, ErrClosed)
			return nil, false, ErrClosed
		}
	}
	select {
	case <-ent.done:
		if errors.Is(ent.err, errAbandoned) {
			if ctx.Err() != nil {
				return nil, false, context.Cause(ctx)
			}
			return e.Encode(ctx, img)
		}
		return ent.patches, !first, ent.err
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	case <-e.done:
		return nil, false, ErrClosed
	}
}

// Forget takes what there is of a tenant's file out of the cache, and gives its patch embeddings: callers of Encode may
// be using them still. What is being encoded stays as long as somebody waits for it. What the tower keeps of earlier
// runs is overwritten, after the one under way if there is one.
func (e *Encoder) Forget(tenant string, file [32]byte) (gone [][]float32) {
	e.wiping.Store(true)
	e.tidy()
	return e.cache.forget(tenant, file)
}

// tidy wipes the tower's memory if that is wanted, or leaves it to whoever has the turn.
func (e *Encoder) tidy() {
	for e.wiping.Load() && e.turn.TryLock() {
		if e.wiping.Swap(false) {
			_ = e.tower.Wipe() // zeros can always be written
		}
		e.turn.Unlock()
	}
}

func (e *Encoder) count(hit bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if hit {
		e.stats.Hits++
	} else {
		e.stats.Misses++
	}
}

// Stats is safe to call at any time.
func (e *Encoder) Stats() EncoderStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.CacheBytes, s.CacheEntries = e.cache.size()
	return s
}

// Close stops the worker after the run under way. Waiting callers get ErrClosed. The tower stays the caller's.
func (e *Encoder) Close() {
	e.closing.Do(func() {
		close(e.stop)
		<-e.done
		e.turn.Lock() // the tower is the caller's
	})
	<-e.done
}

// work is the worker: it owns the tower and the list of images under way.
func (e *Encoder) work() {
	defer close(e.done)
	var list []*job
	for {
		if len(list) == 0 {
			select {
			case j := <-e.jobs:
				list = append(list, j)
			case <-e.stop:
				return
			}
		}
		select {
		case <-e.stop:
			return
		default:
		}
		list = e.drain(list)
		e.turn.Lock()
		list = e.step(list)
		e.turn.Unlock()
		e.tidy()
	}
}

// drain takes in what else waits, drops images that nobody waits for any more and puts those of a higher priority
// first, also before those that lack only some of their tiles.
func (e *Encoder) drain(list []*job) []*job {
	for {
		select {
		case j := <-e.jobs:
			list = append(list, j)
			continue
		default:
		}
		kept := list[:0]
		for _, j := range list {
			if e.cache.abandoned(j.entry) {
				clear(j.patches)
				e.cache.finish(j.entry, nil, errAbandoned)
				continue
			}
			j.priority = e.cache.priorityOf(j.entry)
			kept = append(kept, j)
		}
		slices.SortStableFunc(kept, func(a, b *job) int { return cmp.Compare(b.priority, a.priority) })
		return kept
	}
}

// step fills one run with parts in the order of the list, and hands out what came back. A panic fails the images that
// it came of, and no others.
func (e *Encoder) step(list []*job) []*job {
	places := e.fill(list)
	if len(places) > 0 {
		err := e.run(places)
		e.mu.Lock()
		e.stats.Runs++
		e.stats.Tiles += int64(len(places))
		e.mu.Unlock()
		for at, j := range places {
			if err := crew.Try(func() error { e.handOut(j, at, err); return nil }); err != nil {
				e.fail(j, err)
			}
		}
	}
	return slices.DeleteFunc(list, func(j *job) bool { return j.left == 0 })
}

// run has the tower encode the parts at places, as long as somebody waits for one of them.
func (e *Encoder) run(places []*job) error {
	ctx, end := context.WithCancelCause(context.Background())
	r := &running{end: func() { end(errAbandoned) }}
	defer r.end()
	for _, j := range places {
		r.entries = append(r.entries, j.entry)
	}
	e.setRunning(r)
	defer e.setRunning(nil)
	e.endUnwanted() // the last caller may have left before
	return crew.Try(func() error { return e.tower.Run(ctx, len(places)) })
}

func (e *Encoder) setRunning(r *running) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running = r
}

// leave ends what a caller waits for.
func (e *Encoder) leave(ent *entry) {
	e.cache.leave(ent)
	e.endUnwanted()
}

// endUnwanted ends the run that is under way if nobody waits for any of its images.
func (e *Encoder) endUnwanted() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.running; r != nil && !e.cache.wanted(r.entries) {
		r.end()
	}
}

// fill loads parts of the images that wait until the run is full, and tells whose part is at which place.
func (e *Encoder) fill(list []*job) (places []*job) {
	most := e.tower.MaxParts()
	for _, j := range list {
		for ; j.next < j.parts && len(places) < most; j.next++ {
			err := crew.Try(func() error { return e.tower.Load(len(places), j.image, j.next, e.normalize) })
			if len(places) > 0 && errors.Is(err, errFull) {
				return places
			}
			if err != nil {
				e.fail(j, err)
				break
			}
			places = append(places, j)
		}
	}
	return places
}

// handOut gives a job the patches at a place of the run.
func (e *Encoder) handOut(j *job, at int, err error) {
	switch {
	case j.left == 0: // it failed before
		return
	case err != nil:
		e.fail(j, err)
		return
	}
	patches := e.tower.Patches(at)
	if j.patches == nil {
		j.patches = make([]float32, 0, j.parts*len(patches))
	}
	j.patches = append(j.patches, patches...)
	if j.left--; j.left == 0 {
		patches := e.tower.Pack(j.image.Grid, j.patches)
		if e.disk != nil {
			e.disk.put(e.onDisk(j.image), patches)
		}
		e.cache.finish(j.entry, patches, nil)
		if e.disk != nil && e.cache.isForgotten(j.entry) { // perhaps before there was anything to forget on disk
			e.disk.discard(e.onDisk(j.image))
		}
	}
}

// fail ends a job; parts of it may be in the run.
func (e *Encoder) fail(j *job, err error) {
	e.cache.finish(j.entry, nil, err)
	clear(j.patches)
	j.next, j.left = j.parts, 0
}
