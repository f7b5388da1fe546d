package main

import (
	"math"
	"time"
)

// scaler is an autoscaler as Kubernetes' HorizontalPodAutoscaler is one: it looks every so often at the requests of
// each replica, asks for as many replicas as bring that to its target, and takes them away only after a while.
type scaler struct {
	sim         *simulation
	least, most int
	target      float64       // requests of a replica, running and waiting
	every       time.Duration // between looks
	start       time.Duration // from the wish for a replica to its first request: node, image, weights
	calm        time.Duration // how long fewer have to do before one goes: the highest wish within it counts
	replace     bool          // replicas that fail are started anew, as a Deployment's are

	wishes []wish
	coming int
	peak   int
}

type wish struct {
	at   time.Duration
	want int
}

// tolerance is by how much the ratio to the target may be off before anything changes (Kubernetes' default).
const tolerance = 0.1

// look decides, and looks again.
func (a *scaler) look() error {
	s := a.sim
	ready, requests := 0, 0
	for _, r := range s.replicas {
		if r.ready {
			ready++
			requests += r.requests
		}
	}
	want := ready
	if ready > 0 {
		if ratio := float64(requests) / float64(ready) / a.target; math.Abs(ratio-1) > tolerance {
			want = int(math.Ceil(float64(requests) / a.target))
		}
	}
	want = min(max(want, a.least), a.most)
	a.wishes = append(a.wishes, wish{s.now(), want})
	for len(a.wishes) > 0 && a.wishes[0].at < s.now()-a.calm {
		a.wishes = a.wishes[1:]
	}
	most := want
	for _, w := range a.wishes {
		most = max(most, w.want)
	}
	switch have := ready + a.coming; {
	case want > have:
		for range want - have {
			a.add()
		}
	case most < have && a.coming == 0:
		a.remove(have - most)
	}
	a.peak = max(a.peak, ready+a.coming)
	s.at(s.now()+a.every, a.look)
	return nil
}

// add starts a replica.
func (a *scaler) add() {
	s := a.sim
	a.coming++
	r := s.newReplica()
	asked := s.now()
	s.at(s.now()+a.start, func() error {
		a.coming--
		r.ready = true
		s.used += s.now() - asked
		s.pay(r)
		return nil
	})
}

// remove drains so many replicas, the newest first: they take no more requests.
func (a *scaler) remove(n int) {
	for i := len(a.sim.replicas) - 1; i >= 0 && n > 0; i-- {
		if r := a.sim.replicas[i]; r.ready {
			r.ready = false
			n--
		}
	}
}

// lost has a replica that failed replaced.
func (a *scaler) lost(*replica) {
	if a.replace {
		a.add()
	}
}

// pay counts the time of a replica for as long as it is there: until it is drained and empty, or fails.
func (s *simulation) pay(r *replica) {
	const each = time.Second
	s.at(s.now()+each, func() error {
		if r.dead || !r.ready && r.requests == 0 {
			return nil
		}
		s.used += each
		s.pay(r)
		return nil
	})
}
