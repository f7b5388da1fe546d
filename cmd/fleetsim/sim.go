package main

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mmserve/mmserve/batching"
)

// call is one request on its way through the fleet. Times are from the simulation's start.
type call struct {
	name    string
	tenant  string
	session *session
	ids     []int32
	image   int // its number, 0: none
	output  int // tokens of the answer

	sent, first, ended time.Duration
	tries              int // replicas that it was sent to
	outcome            outcome
	imageCached        bool
	cachedTokens       int // of the prompt

	replica   *replica
	stream    *batching.Stream
	prefilled int // positions that have been run, or were there
	tokens    int // that came
	answer    []int32
	// prefill and decode are what a real server says that they took.
	prefill, decode time.Duration
}

// outcome is how a call ended.
type outcome int

const (
	running outcome = iota
	answered
	refused // no replica had a place
	cut     // its replica failed while it was in its text
)

// maxTries is how many replicas a call is sent to, as package client does by default.
const maxTries = 4

// simulation is a fleet in virtual time. Events run one after the other.
type simulation struct {
	pace
	policy policy
	lag    time.Duration // of what the router knows of queues; 0: none
	zones  int

	rng      *rand.Rand
	time     atomic.Int64 // nanoseconds; engines read it as their clock
	events   events
	count    int // of events so far, which orders those of one time
	replicas []*replica
	calls    []*call
	scaler   *scaler
	known    []int // requests of each replica, as the router knows them
	turn     int
	used     time.Duration // of replicas, ready or not
	onFinish func(*call)
}

func (s *simulation) now() time.Duration { return time.Duration(s.time.Load()) }

// clock is the engines'.
func (s *simulation) clock() time.Time { return time.Unix(0, s.time.Load()) }

// at has do happen at a time.
func (s *simulation) at(when time.Duration, do func() error) {
	s.count++
	heap.Push(&s.events, event{when, s.count, do})
}

// run has everything happen up to a time.
func (s *simulation) run(until time.Duration) error {
	for len(s.events) > 0 && s.events[0].when <= until {
		e := heap.Pop(&s.events).(event)
		s.time.Store(int64(e.when))
		if err := e.do(); err != nil {
			return fmt.Errorf("at %v: %w", e.when, err)
		}
	}
	s.time.Store(int64(until))
	return nil
}

// end ends all replicas.
func (s *simulation) end() {
	for _, r := range s.replicas {
		r.wasReady = r.ready
		r.end()
	}
}

// send takes a new call in.
func (s *simulation) send(c *call) error {
	c.sent = s.now()
	s.calls = append(s.calls, c)
	return s.route(c)
}

// route gives a call to a replica, or has it wait as a client does when there is none.
func (s *simulation) route(c *call) error {
	c.tries++
	r := s.pick(c)
	if r == nil {
		s.again(c)
		return nil
	}
	c.replica = r
	r.requests++
	return r.arrive(c)
}

// again sends a call to another replica after a client's back-off, or gives it up.
func (s *simulation) again(c *call) {
	if c.tries >= maxTries {
		c.outcome, c.ended = refused, s.now()
		s.over(c)
		return
	}
	backOff := 200 * time.Millisecond << (c.tries - 1)
	s.at(s.now()+backOff/2+jitter(s.rng, backOff/2), func() error { return s.route(c) })
}

// refused has a call that found no place try elsewhere.
func (s *simulation) refused(c *call) { s.again(c) }

func (s *simulation) finish(c *call) {
	c.outcome = answered
	c.answer = slices.Repeat([]int32{answerToken}, c.output)
	s.over(c)
}

func (s *simulation) over(c *call) {
	if s.onFinish != nil {
		s.onFinish(c)
	}
}

// failZone ends every replica of a zone. What was in its text there is cut, the rest is sent elsewhere.
func (s *simulation) failZone(zone int) {
	for _, r := range s.replicas {
		if r.id%s.zones != zone || r.dead {
			continue
		}
		for _, c := range r.fail() {
			if c.tokens > 0 {
				c.outcome, c.ended = cut, s.now()
				s.over(c)
			} else {
				s.again(c)
			}
		}
		if s.scaler != nil {
			s.scaler.lost(r)
		}
	}
}

// jitter is a time up to most.
func jitter(rng *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(most) + 1))
}

type event struct {
	when  time.Duration
	order int
	do    func() error
}

// events is a heap of them, the next first.
type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].when < e[j].when || e[i].when == e[j].when && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	old[len(old)-1] = event{}
	*e = old[:len(old)-1]
	return last
}
