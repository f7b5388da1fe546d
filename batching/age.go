package batching

import (
	"container/heap"
	"time"
)

// A class waits while a higher one has any request waiting, so requests rise. But only those of tenants that get
// nothing: a tenant that has more waiting than is its share would otherwise rise above those who ask for less.

// hunger is since when a tenant's waiting sequences have got no slot.
type hunger struct {
	served time.Time // when one of them last got a slot
	key    time.Time // the later of that and when the oldest began to wait, as of the last look; it only grows
	index  int
}

// since is the later of when the tenant was served and when its oldest waiting sequence began to wait.
func (t *share) since() time.Time {
	if oldest := t.oldest(); oldest.since.After(t.hunger.served) {
		return oldest.since
	}
	return t.hunger.served
}

// oldest is the waiting sequence that stands first in one of the lists and has waited longer.
func (t *share) oldest() *sequence {
	var oldest *sequence
	for i := range t.answers {
		if front := t.answers[i].Front(); front != nil {
			if s := front.Value.(*sequence); oldest == nil || s.since.Before(oldest.since) {
				oldest = s
			}
		}
	}
	return oldest
}

// age lifts those that have waited in one class for too long into the next, if nothing of their tenant got a slot
// meanwhile.
func (q *queue) age(now time.Time) {
	if q.ageAfter < 0 {
		return
	}
	for i := classes - 2; i >= 0; i-- {
		c := &q.classes[i]
		for t := c.hungriest(); t != nil && now.Sub(t.hunger.key) >= q.ageAfter; t = c.hungriest() {
			s := t.oldest()
			q.remove(s)
			q.close(s)
			s.class++
			q.push(s, false, now)
		}
	}
}

// hungriest is the waiting tenant that has got nothing for longest, nil if none waits.
func (c *class) hungriest() *share {
	for len(c.hungry) > 0 {
		t := c.hungry[0]
		since := t.since()
		if !since.After(t.hunger.key) {
			return t
		}
		t.hunger.key = since
		heap.Fix(&c.hungry, 0)
	}
	return nil
}

// hungry is a heap of tenants by since when they have got nothing.
type hungry []*share

func (h hungry) Len() int           { return len(h) }
func (h hungry) Less(i, j int) bool { return h[i].hunger.key.Before(h[j].hunger.key) }
func (h hungry) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].hunger.index, h[j].hunger.index = i, j
}
func (h *hungry) Push(x any) {
	t := x.(*share)
	t.hunger.index, t.hunger.key = len(*h), t.since()
	*h = append(*h, t)
}
func (h *hungry) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return t
}
