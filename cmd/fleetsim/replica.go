package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
)

// pace is what the steps of a replica take, as measured of one server.
type pace struct {
	promptToken time.Duration // a token of a prefill chunk
	step        time.Duration // a decode step
	row         time.Duration // each row of it
	encode      time.Duration // an image, on one core
	encoders    int           // images at once
	slots       int
	waiting     int // places beyond the slots
	context     int
	images      int // that the encoder cache holds
}

// replica is one server: the real engine over a runner that takes virtual time, and an encoder with a cache.
//
// The engine's goroutine and the simulation's take turns: the engine runs from when it is resumed until it asks for its
// next step or has nothing open, and the simulation waits meanwhile.
type replica struct {
	id     int
	sim    *simulation
	engine *batching.Engine
	stop   context.CancelFunc
	ended  chan error

	parked chan time.Duration // the engine asks for a step that takes so long; below 0: nothing is open
	resume chan bool          // the step is over; false: the replica has failed
	steps  bool               // a step is under way
	dead   bool
	ready  bool // it takes requests
	// wasReady is ready at the end of the simulation.
	wasReady bool

	open     []*call // submitted and not over; of the engine's goroutine while it runs
	over     []*call // ended with the step that was observed last
	requests int     // routed here and not over, those that are encoded too

	encoding  []*call // whose images are being encoded
	encoderQ  []*call // and those that wait for that
	cached    lru
	tokens    []decoder.Token
	busySince time.Duration // the engine has something to do
	busy      time.Duration // it had, in all
}

// errFailed is what a runner of a failed replica gives.
var errFailed = fmt.Errorf("%w: the zone is gone", decoder.ErrDevice)

func (s *simulation) newReplica() *replica {
	r := &replica{
		id: len(s.replicas), sim: s, parked: make(chan time.Duration), resume: make(chan bool), ended: make(chan error, 1),
		cached: lru{most: s.pace.images},
	}
	r.engine = batching.New(r, batching.Options{
		MaxWaiting: s.pace.waiting, Observe: r.observe, Clock: s.clock, TenantPlaces: 1,
	})
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() { r.ended <- r.engine.Run(ctx) }()
	s.replicas = append(s.replicas, r)
	return r
}

// Capacity implements batching.Runner.
func (r *replica) Capacity() decoder.Capacity {
	return decoder.Capacity{Slots: r.sim.pace.slots, MaxLen: r.sim.pace.context, Exact: true}
}

// Run implements batching.Runner: it takes virtual time.
func (r *replica) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	r.tokens = r.tokens[:0]
	for i := range b.Rows {
		if b.Rows[i].Sampler != nil {
			r.tokens = append(r.tokens, decoder.Token{ID: answerToken})
		}
	}
	if len(b.Rows) == 0 || ctx.Err() != nil {
		return r.tokens, ctx.Err()
	}
	r.parked <- r.sim.pace.took(b)
	if !<-r.resume {
		return nil, errFailed
	}
	return r.tokens, nil
}

// took is what a batch takes: a chunk of one prompt, or a decode step.
func (p pace) took(b *decoder.Batch) time.Duration {
	if len(b.Rows) == 1 && (len(b.Rows[0].IDs) > 1 || b.Rows[0].Past == 0) {
		return time.Duration(len(b.Rows[0].IDs)) * p.promptToken
	}
	return p.step + time.Duration(len(b.Rows))*p.row
}

// observe notes tokens, on the engine's goroutine.
func (r *replica) observe(s batching.Step) {
	if s.Err != nil {
		return
	}
	for _, row := range s.Rows {
		c := row.Tag.(*call)
		if c.prefilled == 0 && row.Past > 0 {
			c.cachedTokens = row.Past
		}
		c.prefilled = row.Past + row.Tokens
		if c.prefilled < len(c.ids) {
			continue
		}
		if c.tokens++; c.tokens == 1 {
			c.first = r.sim.now()
		}
		if c.tokens == c.output {
			c.ended = r.sim.now()
			r.over = append(r.over, c)
		}
	}
	if len(r.over) == len(r.open) {
		r.parked <- -1
	}
}

// submit gives a call to the engine. It is false where there is no place.
func (r *replica) submit(c *call) (bool, error) {
	tickets, err := r.engine.AcquireFor(batching.Claim{Tenant: c.tenant})
	if errors.Is(err, batching.ErrBusy) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c.prefilled, c.tokens, c.cachedTokens = 0, 0, 0
	c.stream, err = r.engine.Submit(context.Background(), tickets[0], batching.Request{
		ID: c.name, Input: fusion.Input{IDs: c.ids}, MaxTokens: c.output, Tenant: c.tenant, Tag: c, NoDrafts: true,
		Sampling: decoder.Sampling{TopP: 1},
	})
	if err != nil {
		return false, err
	}
	r.open = append(r.open, c)
	if !r.steps {
		r.park()
	}
	return true, nil
}

// park waits until the engine asks for a step, or has nothing open, and settles the calls that ended.
func (r *replica) park() {
	took := <-r.parked
	for _, c := range r.over {
		drain(c.stream)
		r.open = slices.DeleteFunc(r.open, func(o *call) bool { return o == c })
		r.requests--
		r.sim.finish(c)
	}
	r.over = r.over[:0]
	if took < 0 {
		r.idle()
		return
	}
	if !r.steps {
		r.steps, r.busySince = true, r.sim.now()
	}
	r.sim.at(r.sim.now()+took, r.step)
}

func (r *replica) idle() {
	if r.steps {
		r.steps = false
		r.busy += r.sim.now() - r.busySince
	}
}

// step ends the step under way.
func (r *replica) step() error {
	if r.dead {
		return nil
	}
	r.resume <- true
	r.park()
	return nil
}

// drain reads a stream that has ended to its end, so that its place is free again.
func drain(s *batching.Stream) {
	for {
		if e, err := s.Next(context.Background()); err != nil || e.Finish != batching.Running {
			return
		}
	}
}

// fail ends the replica as a zone that goes away does. It gives the calls that were there.
func (r *replica) fail() []*call {
	lost := slices.Concat(r.open, r.encoding, r.encoderQ)
	r.end()
	return lost
}

// end ends the replica, whatever it does.
func (r *replica) end() {
	if r.dead {
		return
	}
	if r.dead, r.ready = true, false; r.steps {
		r.idle()
		r.resume <- false
	} else {
		r.stop()
	}
	<-r.ended
}

// arrive takes a call: its image is encoded, unless that is cached, and then it goes to the engine.
func (r *replica) arrive(c *call) error {
	if c.image == 0 {
		return r.enter(c)
	}
	if c.imageCached = r.cached.use(c.image); c.imageCached {
		return r.enter(c)
	}
	if len(r.encoding) < r.sim.pace.encoders {
		r.encode(c)
	} else {
		r.encoderQ = append(r.encoderQ, c)
	}
	return nil
}

// encode takes an image's time; then the next that waits has its turn.
func (r *replica) encode(c *call) {
	r.encoding = append(r.encoding, c)
	r.sim.at(r.sim.now()+r.sim.pace.encode, func() error {
		if r.dead {
			return nil
		}
		r.encoding = slices.DeleteFunc(r.encoding, func(o *call) bool { return o == c })
		r.cached.add(c.image)
		if len(r.encoderQ) > 0 {
			next := r.encoderQ[0]
			r.encoderQ = r.encoderQ[1:]
			r.encode(next)
		}
		return r.enter(c)
	})
}

// enter takes a call whose image is there to the engine.
func (r *replica) enter(c *call) error {
	ok, err := r.submit(c)
	if err == nil && !ok {
		r.requests--
		r.sim.refused(c)
	}
	return err
}

// lru is a set of images of which the latest used are kept.
type lru struct {
	most int
	list []int // the latest last
}

// use says whether an image is there, and makes it the latest.
func (l *lru) use(image int) bool {
	i := slices.Index(l.list, image)
	if i < 0 {
		return false
	}
	l.list = append(slices.Delete(l.list, i, i+1), image)
	return true
}

func (l *lru) add(image int) {
	if l.most == 0 || l.use(image) {
		return
	}
	if len(l.list) == l.most {
		l.list = slices.Delete(l.list, 0, 1)
	}
	l.list = append(l.list, image)
}
