package vision

import (
	"container/list"
	"errors"
	"slices"
	"sync"
)

// errAbandoned ends an encode that every caller left.
var errAbandoned = errors.New("nobody waits for this image")

// cache holds patch embeddings by image digest, least recently used first out, and joins callers that ask for
// the same image at the same time (single-flight).
type cache struct {
	mu      sync.Mutex
	budget  int64
	used    int64
	entries map[key]*entry
	order   *list.List // of *entry that are complete; front is the most recently used
}

// key tells images apart, and those of one tenant from another's: that an image was cached tells who asks that it was
// sent.
type key struct {
	digest [32]byte
	tenant string
}

// entry is one image, under way or complete. err and patches may be read once done is closed.
type entry struct {
	key     key
	file    [32]byte // the image's vision.Image.File
	done    chan struct{}
	patches []float32
	err     error
	waiters int           // guarded by cache.mu
	place   *list.Element // guarded by cache.mu; nil while under way
	over    bool          // guarded by cache.mu: done is closed
	// forgotten is set where the image was to be forgotten while it was under way and nobody waited: it is never kept.
	// Guarded by cache.mu.
	forgotten bool
	// priority is the highest of those who asked for the image while it was under way. Guarded by cache.mu.
	priority int
}

func newCache(budget int64) *cache {
	return &cache{budget: budget, entries: map[key]*entry{}, order: list.New()}
}

// join registers a waiter for an image; first tells that the caller has to see to its encoding.
// Every join is followed by one leave.
func (c *cache) join(key key, file [32]byte, priority int) (e *entry, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		e.waiters++
		e.priority = max(e.priority, priority)
		if e.place != nil {
			c.order.MoveToFront(e.place)
		}
		return e, false
	}
	e = &entry{key: key, file: file, done: make(chan struct{}), waiters: 1, priority: priority}
	c.entries[key] = e
	return e, true
}

func (c *cache) leave(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.waiters--
}

// wanted tells whether anybody waits for one of the entries.
func (c *cache) wanted(list []*entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(list, func(e *entry) bool { return e.waiters > 0 })
}

// priorityOf is an entry's.
func (c *cache) priorityOf(e *entry) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.priority
}

// abandoned tells whether an entry under way has no waiter left. It then leaves the map at once, so that a
// caller who comes now starts afresh.
func (c *cache) abandoned(e *entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.waiters > 0 || e.over {
		return false
	}
	c.unmap(e)
	return true
}

// finish completes an entry once; later calls do nothing. A failure is not kept.
func (c *cache) finish(e *entry, patches []float32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.over {
		return
	}
	if e.forgotten {
		clear(patches)
		patches, err = nil, errAbandoned
	}
	e.over, e.patches, e.err = true, patches, err
	close(e.done)
	size := int64(len(patches)) * 4
	if err != nil || size > c.budget || c.entries[e.key] != e {
		c.unmap(e)
		return
	}
	e.place = c.order.PushFront(e)
	c.used += size
	for c.used > c.budget {
		c.drop(c.order.Back().Value.(*entry))
	}
}

// isForgotten says whether an entry under way is never to be kept.
func (c *cache) isForgotten(e *entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.forgotten
}

// drop takes a complete entry out. c.mu is held.
func (c *cache) drop(e *entry) {
	c.order.Remove(e.place)
	c.used -= int64(len(e.patches)) * 4
	c.unmap(e)
}

// unmap takes an entry out of the map, where another one may have its key. c.mu is held.
func (c *cache) unmap(e *entry) {
	if c.entries[e.key] == e {
		delete(c.entries, e.key)
	}
}

// forget takes out what there is of a tenant's file, whatever it was prepared by, and gives its patch embeddings. What
// is under way stays if somebody waits for it, and is overwritten when it comes if nobody does.
func (c *cache) forget(tenant string, file [32]byte) (gone [][]float32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.entries {
		if k.tenant != tenant || e.file != file {
			continue
		}
		switch {
		case e.place != nil:
			c.drop(e)
			gone = append(gone, e.patches)
		case e.waiters == 0:
			e.forgotten = true
			c.unmap(e)
		}
	}
	return gone
}

func (c *cache) size() (bytes int64, entries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used, c.order.Len()
}
