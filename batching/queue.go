package batching

import (
	"cmp"
	"container/heap"
	"container/list"
	"fmt"
	"iter"
	"time"
)

// Priority is the class of a request. A class waits while a higher one has any request waiting; see Options.AgeAfter.
type Priority int

const (
	PriorityBatch       Priority = -1
	PriorityDefault     Priority = 0
	PriorityInteractive Priority = 1
)

const classes = 3

func (p Priority) class() int { return int(p - PriorityBatch) }

func (p Priority) check() error {
	if c := p.class(); c < 0 || c >= classes {
		return fmt.Errorf("priority is %d, allowed are %d to %d", p, PriorityBatch, PriorityInteractive)
	}
	return nil
}

// A prompt token that is run, and a generated one, cost its tenant so many virtual tokens. They are the weights of the
// paper's experiments.
const (
	promptCharge    = 1
	generatedCharge = 2
)

// queue holds the sequences that wait for a slot. The highest class goes first; within a class the tenant that has
// received the least, and of one tenant first come, first served. No verb looks at more than a few of them.
//
// Fairness within a class is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models"
// (OSDI '24, algorithm 2): every token run for a tenant is counted over its weight, and a tenant that comes back after
// a pause is lifted to those that wait, so that a pause earns nothing.
type queue struct {
	classes  [classes]class
	weights  map[string]float64
	ageAfter time.Duration
	turn     int64 // counts the times that a tenant began to wait
}

// class is one Priority's part of the queue.
type class struct {
	tenants map[string]*share
	waiting shares    // those with a waiting sequence
	hungry  hungry    // the same, by when they were served last
	entries list.List // all waiting sequences, in the order in which they entered the class
	last    *share    // the one served last
	sweep   int       // the number of tenants at which to look for those to forget
	recent  recents
	tokens  int // ids to be run for the waiting
}

// share is what a tenant has received of one class.
type share struct {
	tenant  string
	weight  float64
	counter float64 // virtual tokens
	// Waiting sequences, the next one first: first answers of calls, and further ones. The lists take turns, so that a
	// call for many answers does not keep the tenant's other calls waiting for all of them.
	answers [2]list.List
	turnOf  int // the list whose turn it is while neither is empty
	open    int // waiting and running sequences
	hunger  hunger
	recent  recentUse

	// Where it stands in class.waiting. Counters only grow, so a key that is behind is brought up to date at the top.
	key   float64
	turn  int64
	index int
}

func newQueue(o Options) queue {
	q := queue{weights: o.TenantWeights, ageAfter: cmp.Or(o.AgeAfter, 30*time.Second)}
	for i := range q.classes {
		q.classes[i].tenants = map[string]*share{}
		q.classes[i].sweep = 64
	}
	return q
}

// push makes s wait: last of its tenant's, or first if it has run before.
func (q *queue) push(s *sequence, first bool, now time.Time) {
	c := &q.classes[s.class]
	s.since = now
	if s.share == nil {
		s.share = q.share(c, s.tenant)
		c.recent.weigh(s.share, cmp.Or(s.weight, q.weights[s.tenant], 1))
		s.share.open++
	}
	c.recent.note(s.share, now)
	t := s.share
	if t.len() == 0 {
		q.turn++
		if least := c.least(); least != nil {
			t.counter = max(t.counter, least.counter)
		} else if c.last != nil {
			t.counter = max(t.counter, c.last.counter)
		}
		t.key, t.turn = t.counter, q.turn
		heap.Push(&c.waiting, t)
		defer heap.Push(&c.hungry, t)
	}
	if answers := &t.answers[s.rank()]; first {
		s.inShare = answers.PushFront(s)
	} else {
		s.inShare = answers.PushBack(s)
	}
	s.inClass = c.entries.PushBack(s)
	c.tokens += len(s.ids)
}

// share gives the tenant's in c.
func (q *queue) share(c *class, tenant string) *share {
	if t := c.tenants[tenant]; t != nil {
		return t
	}
	if len(c.tenants) >= c.sweep {
		c.forget()
		c.sweep = 2*len(c.tenants) + 64
	}
	t := &share{tenant: tenant, weight: 1, index: -1}
	c.tenants[tenant] = t
	return t
}

// len is the number of the tenant's waiting sequences.
func (t *share) len() int { return t.answers[0].Len() + t.answers[1].Len() }

// head is the tenant's next sequence; one waits.
func (t *share) head() *sequence {
	front := t.answers[t.turnOf].Front()
	if front == nil {
		front = t.answers[1-t.turnOf].Front()
	}
	return front.Value.(*sequence)
}

// rank is the list of a share in which q waits: 0 of first answers, 1 of further ones.
func (q *sequence) rank() int {
	if q.further {
		return 1
	}
	return 0
}

// forget drops the tenants that have nothing open and would be lifted anyway.
func (c *class) forget() {
	floor := 0.0
	if least := c.least(); least != nil {
		floor = least.counter
	} else if c.last != nil {
		floor = c.last.counter
	}
	for name, t := range c.tenants {
		if t.open == 0 && t.recent.at == nil && t.counter <= floor {
			delete(c.tenants, name)
		}
	}
}

// least is the waiting tenant that has received the least, nil if none waits.
func (c *class) least() *share {
	for len(c.waiting) > 0 {
		t := c.waiting[0]
		if t.key == t.counter {
			return t
		}
		t.key = t.counter
		heap.Fix(&c.waiting, 0)
	}
	return nil
}

// next is the sequence whose turn it is, nil if none waits.
func (q *queue) next() *sequence {
	for i := classes - 1; i >= 0; i-- {
		if t := q.classes[i].least(); t != nil {
			return t.head()
		}
	}
	return nil
}

// start takes a waiting sequence out, to run.
func (q *queue) start(s *sequence, now time.Time) {
	s.share.hunger.served = now
	q.remove(s)
}

// remove takes a waiting sequence out, to end or to run.
func (q *queue) remove(s *sequence) {
	c := &q.classes[s.class]
	s.share.answers[s.rank()].Remove(s.inShare)
	s.share.turnOf = 1 - s.rank()
	c.entries.Remove(s.inClass)
	c.tokens -= len(s.ids)
	if s.share.len() == 0 {
		heap.Remove(&c.waiting, s.share.index)
		heap.Remove(&c.hungry, s.share.hunger.index)
		c.last = s.share
	}
}

// charge counts virtual tokens for s's tenant.
func (q *queue) charge(s *sequence, tokens int) { s.share.counter += float64(tokens) / s.share.weight }

// close says that s, which does not wait, has ended.
func (q *queue) close(s *sequence) {
	s.share.open--
	s.share = nil
}

func (q *queue) len() int {
	n := 0
	for i := range q.classes {
		n += q.classes[i].entries.Len()
	}
	return n
}

// all gives the waiting sequences class by class, the highest first.
func (q *queue) all() iter.Seq[*sequence] {
	return func(yield func(*sequence) bool) {
		for i := classes - 1; i >= 0; i-- {
			for e := q.classes[i].entries.Front(); e != nil; e = e.Next() {
				if !yield(e.Value.(*sequence)) {
					return
				}
			}
		}
	}
}

// shares is a heap of tenants by virtual tokens; among equals, who began to wait first.
type shares []*share

func (h shares) Len() int { return len(h) }
func (h shares) Less(i, j int) bool {
	return h[i].key < h[j].key || h[i].key == h[j].key && h[i].turn < h[j].turn
}
func (h shares) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *shares) Push(x any) {
	x.(*share).index = len(*h)
	*h = append(*h, x.(*share))
}
func (h *shares) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h, t.index = old[:len(old)-1], -1
	return t
}
