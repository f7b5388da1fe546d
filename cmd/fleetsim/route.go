package main

import (
	"fmt"
	"hash/fnv"
	"time"
)

// policy says which replica gets a call.
type policy string

const (
	roundRobin   policy = "round-robin"
	leastRequest policy = "least-request" // the less loaded of two at random, as package client has it
	queue        policy = "queue"         // the least loaded of all, as a gateway that scrapes queues
	affinity     policy = "affinity"      // where the conversation was, by rendezvous hashing
	both         policy = "both"          // so, unless that replica has more than its share
)

var policies = []policy{roundRobin, leastRequest, queue, affinity, both}

func parsePolicy(text string) (policy, error) {
	for _, p := range policies {
		if string(p) == text {
			return p, nil
		}
	}
	return "", fmt.Errorf("policy %q: want one of %v", text, policies)
}

// fairShare is how much more than the mean a replica may have before policy both passes it over.
const fairShare = 1.25

// pick gives the replica for a call, nil if none takes requests.
func (s *simulation) pick(c *call) *replica {
	ready := make([]*replica, 0, len(s.replicas))
	for _, r := range s.replicas {
		if r.ready {
			ready = append(ready, r)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	switch s.policy {
	case leastRequest:
		a, b := ready[s.rng.IntN(len(ready))], ready[s.rng.IntN(len(ready))]
		if b.requests < a.requests {
			return b
		}
		return a
	case queue:
		return s.least(ready)
	case affinity:
		return s.nearest(c, ready, func(*replica) bool { return true })
	case both:
		total := 0
		for _, r := range ready {
			total += s.seen(r)
		}
		most := fairShare*float64(total)/float64(len(ready)) + 1
		if r := s.nearest(c, ready, func(r *replica) bool { return float64(s.seen(r)) <= most }); r != nil {
			return r
		}
		return s.least(ready)
	}
	s.turn++
	return ready[s.turn%len(ready)]
}

// seen is what the router knows of a replica's requests.
func (s *simulation) seen(r *replica) int {
	if s.lag == 0 || r.id >= len(s.known) {
		return r.requests
	}
	return s.known[r.id]
}

// scrape has the router learn the queues, now and every lag from now.
func (s *simulation) scrape(until time.Duration) {
	s.known = s.known[:0]
	for _, r := range s.replicas {
		s.known = append(s.known, r.requests)
	}
	if s.now() < until {
		s.at(s.now()+s.lag, func() error { s.scrape(until); return nil })
	}
}

// least is the least loaded, of several one at random.
func (s *simulation) least(ready []*replica) *replica {
	var best *replica
	ties := 0
	for _, r := range ready {
		switch {
		case best == nil || s.seen(r) < s.seen(best):
			best, ties = r, 1
		case s.seen(r) == s.seen(best):
			if ties++; s.rng.IntN(ties) == 0 {
				best = r
			}
		}
	}
	return best
}

// nearest is the replica that a call's conversation, or its image, hashes to, of those that may have it (rendezvous
// hashing: Thaler and Ravishankar, 1998). When a replica goes, only what was there moves.
func (s *simulation) nearest(c *call, ready []*replica, may func(*replica) bool) *replica {
	var best *replica
	var most uint64
	for _, r := range ready {
		if w := weight(c.key(), r.id); (best == nil || w > most) && may(r) {
			best, most = r, w
		}
	}
	return best
}

// key is what a call's cached work hangs on: its image, which many conversations may share, or its conversation.
func (c *call) key() uint64 {
	if c.image != 0 {
		return uint64(c.image)
	}
	return uint64(c.session.id) | 1<<63
}

func weight(key uint64, replica int) uint64 {
	h := fnv.New64a()
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(key>>(8*i)), byte(uint64(replica)>>(8*i))
	}
	_, _ = h.Write(b[:])
	v := h.Sum64() // and mixed, as FNV's high bits hardly depend on the last bytes (MurmurHash3's finalizer)
	v ^= v >> 33
	v *= 0xff51afd7ed558ccd
	v ^= v >> 33
	v *= 0xc4ceb9fe1a85ec53
	return v ^ v>>33
}
