package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Tokens: every simulated answer is made of one, prompts of others, which the embedded model has too.
const (
	answerToken = 5
	firstWord   = 100
	words       = 600
)

// workload is what users do: sessions of one or more turns, each about an image.
type workload struct {
	rate   float64       // sessions a second
	swing  float64       // how much the rate goes up and down over period, as a part of it
	period time.Duration // 0: the rate stays
	turns  int           // of a session
	think  time.Duration // between an answer and the next turn, in the mean
	prompt int           // tokens of a turn, in the mean; image tokens come on top in the first
	output int           // tokens of an answer, in the mean
	image  int           // tokens of an image; 0: there are none
	pool   int           // images that sessions are about, by Zipf's law of exponent 1.1; 0: each is new
}

// session is one conversation.
type session struct {
	id    int
	turn  int
	rng   *rand.Rand
	ids   []int32 // what has been said
	image int
}

// world is what users ask: a simulated fleet, or a real one.
type world interface {
	now() time.Duration
	// at has do happen at a time; nothing else of the world happens meanwhile.
	at(when time.Duration, do func() error)
	send(*call) error
}

// user makes sessions until a time. What a session says does not depend on what others do.
type user struct {
	workload
	world   world
	seed    uint64
	context int // of the model
	rng     *rand.Rand
	zipf    *rand.Zipf
	until   time.Duration
	begun   int
}

func newUser(w workload, world world, context int, seed uint64, until time.Duration) *user {
	u := &user{workload: w, world: world, context: context, seed: seed, until: until}
	u.rng = rand.New(rand.NewPCG(seed, 0))
	if w.pool > 1 {
		u.zipf = rand.NewZipf(u.rng, 1.1, 1, uint64(w.pool-1))
	}
	world.at(u.gap(0), u.begin)
	return u
}

// rateAt is the rate of sessions at a time.
func (w workload) rateAt(t time.Duration) float64 {
	if w.period == 0 {
		return w.rate
	}
	return w.rate * (1 - w.swing*math.Cos(2*math.Pi*t.Seconds()/w.period.Seconds()))
}

// gap is the time of the session after now: arrivals are Poisson's.
func (u *user) gap(now time.Duration) time.Duration {
	return now + time.Duration(u.rng.ExpFloat64()/u.rateAt(now)*float64(time.Second))
}

// begin begins a session, and has the next follow.
func (u *user) begin() error {
	now := u.world.now()
	if now >= u.until {
		return nil
	}
	u.world.at(u.gap(now), u.begin)
	u.begun++
	s := &session{id: u.begun, rng: rand.New(rand.NewPCG(u.seed, uint64(u.begun)))}
	switch {
	case u.image == 0:
	case u.zipf != nil:
		s.image = 1 + int(u.zipf.Uint64())
	default:
		s.image = u.begun
	}
	for i := range u.image { // as an image's place in the prompt: alike for the same image
		s.ids = append(s.ids, firstWord+int32(weight(uint64(s.image), i)%words))
	}
	return u.ask(s)
}

// around is a number from 1 to about twice the mean.
func around(rng *rand.Rand, mean int) int { return 1 + rng.IntN(max(1, 2*mean-1)) }

// ask sends the next turn of a session. One that the context has no room for ends the session.
func (u *user) ask(s *session) error {
	s.turn++
	for range around(s.rng, u.prompt) {
		s.ids = append(s.ids, firstWord+s.rng.Int32N(words))
	}
	output := around(s.rng, u.output)
	if len(s.ids)+output > u.context {
		return nil
	}
	return u.world.send(&call{
		name: fmt.Sprintf("%d-%d", s.id, s.turn), tenant: "fleet", session: s, ids: slices.Clone(s.ids), image: s.image,
		output: output,
	})
}

// next has a session that got its answer go on after a while.
func (u *user) next(c *call) {
	s := c.session
	if c.outcome != answered || s.turn >= u.turns {
		return
	}
	s.ids = append(s.ids, c.answer...)
	think := time.Duration(s.rng.ExpFloat64() * float64(u.think))
	u.world.at(u.world.now()+think, func() error {
		if u.world.now() >= u.until {
			return nil
		}
		return u.ask(s)
	})
}
