// Command fleetsim simulates a fleet of mmserve in virtual time: the real engine of each replica over steps of known
// lengths, encoders with caches, routers, an autoscaler, zones that fail. With -real it has three real servers do the
// same work, and fails where they differ by more than a tenth.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are those of the command line.
type options struct {
	pace     pace
	work     workload
	policies string
	replicas int
	zones    int
	lag      time.Duration
	duration time.Duration
	warmUp   time.Duration
	seed     uint64
	price    float64 // of a replica's hour
	failAt   time.Duration
	scale    bool
	most     int
	target   float64
	start    time.Duration
	every    time.Duration
	calm     time.Duration
	real     string
	port     int
}

func main() {
	var o options
	o.flags(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fleetsim:", err)
		os.Exit(1)
	}
}

func (o *options) flags(f *flag.FlagSet) {
	p, w := &o.pace, &o.work
	f.DurationVar(&p.promptToken, "prompt-token", time.Millisecond, "time of a token of a prompt")
	f.DurationVar(&p.step, "step", 20*time.Millisecond, "time of a decode step")
	f.DurationVar(&p.row, "row", 0, "and of each of its rows")
	f.DurationVar(&p.encode, "encode", 100*time.Millisecond, "time of an image in the encoder")
	f.IntVar(&p.encoders, "encoders", 1, "images at once")
	f.IntVar(&p.slots, "slots", 16, "sequences of a replica that run at once")
	f.IntVar(&p.waiting, "waiting", 64, "and that wait")
	f.IntVar(&p.context, "context", 2048, "tokens of prompt and answer together")
	f.IntVar(&p.images, "cached-images", 256, "images in a replica's encoder cache")
	f.Float64Var(&w.rate, "rate", 3, "sessions a second")
	f.Float64Var(&w.swing, "swing", 0, "part of the rate that comes and goes over -period")
	f.DurationVar(&w.period, "period", 0, "of the rate; 0: it stays")
	f.IntVar(&w.turns, "turns", 1, "turns of a session")
	f.DurationVar(&w.think, "think", 5*time.Second, "between an answer and the next turn, in the mean")
	f.IntVar(&w.prompt, "prompt", 64, "tokens of a turn, in the mean")
	f.IntVar(&w.output, "output", 64, "tokens of an answer, in the mean")
	f.IntVar(&w.image, "image", 0, "tokens of the image that a session is about; 0: none")
	f.IntVar(&w.pool, "pool", 0, "images that sessions are about, the popular ones more often; 0: each has its own")
	f.StringVar(&o.policies, "policy", string(roundRobin), "round-robin, least-request, queue, affinity, both; several with commas, or all")
	f.IntVar(&o.replicas, "replicas", 3, "replicas, with -scale at the start and at least")
	f.IntVar(&o.zones, "zones", 3, "zones that they are spread over")
	f.DurationVar(&o.lag, "lag", 0, "how old the router's knowledge of queues gets")
	f.DurationVar(&o.duration, "duration", 5*time.Minute, "simulated time")
	f.DurationVar(&o.warmUp, "warm-up", 30*time.Second, "of it, not measured")
	f.Uint64Var(&o.seed, "seed", 1, "start of everything that is drawn")
	f.Float64Var(&o.price, "price", 1, "dollars of a replica's hour")
	f.DurationVar(&o.failAt, "zone-fails", 0, "when a zone fails; 0: never")
	f.BoolVar(&o.scale, "scale", false, "autoscale")
	f.IntVar(&o.most, "most", 1000, "replicas at most, with -scale")
	f.Float64Var(&o.target, "target", 12, "requests of a replica that the autoscaler wants")
	f.DurationVar(&o.start, "start", time.Minute, "from the wish for a replica to its first request")
	f.DurationVar(&o.every, "look", 15*time.Second, "between two looks of the autoscaler")
	f.DurationVar(&o.calm, "calm", 5*time.Minute, "how long fewer replicas have to do before one goes")
	f.StringVar(&o.real, "real", "", "compare with three real servers of this binary")
	f.IntVar(&o.port, "port", 20480, "that -real's servers listen at, on 127.0.0.1 to 127.0.0.3")
}

// check refuses what cannot be simulated.
func (o options) check() error {
	p, w := o.pace, o.work
	switch {
	case p.promptToken < 0 || p.step <= 0 || p.row < 0 || p.encode < 0:
		return errors.New("-step wants more than 0, the other times 0 or more")
	case p.slots < 1 || p.slots > 4096 || p.waiting < 0 || p.waiting > 1<<20 || p.context < 2 || p.context > 1<<20 ||
		p.encoders < 1 || p.images < 0:
		return errors.New("want 1 to 4096 -slots, -waiting of 0 or more, a -context of 2 to 1048576, -encoders of 1 or more")
	case !(w.rate > 0) || w.rate > 1e6 || !(w.swing >= 0 && w.swing < 1) || w.turns < 1 || w.prompt < 1 || w.output < 1 ||
		w.image < 0 || w.pool < 0 || w.think < 0:
		return errors.New("want a -rate above 0, a -swing of 0 to 1, and 1 or more -turns, -prompt and -output")
	case w.image+2*w.prompt+2*w.output > p.context:
		return fmt.Errorf("a first turn of up to %d tokens does not fit a -context of %d", w.image+2*w.prompt+2*w.output, p.context)
	case o.replicas < 1 || o.replicas > 100_000 || o.zones < 1 || o.duration <= o.warmUp || o.warmUp < 0 || o.lag < 0:
		return errors.New("want 1 to 100000 -replicas, 1 or more -zones, a -duration above -warm-up, a -lag of 0 or more")
	case o.scale && (o.most < o.replicas || !(o.target > 0) || o.start < 0 || o.every <= 0 || o.calm < 0):
		return errors.New("want -most of at least -replicas, a -target above 0, and -look above 0")
	}
	return nil
}

func run(ctx context.Context, o options, out io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	list, err := o.chosen()
	if err != nil {
		return err
	}
	if o.real != "" {
		return o.compare(ctx, list, out)
	}
	heading(out)
	for _, p := range list {
		s := o.newSimulation(p)
		if err := o.play(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		o.result(s).line(out, string(p))
		if o.failAt > 0 {
			late := "never again"
			if d := recovered(s.calls, o.warmUp, o.failAt, o.duration); d >= 0 {
				late = fmt.Sprintf("%v after the zone failed", d)
			}
			fmt.Fprintf(out, "\n%s: p99 of first tokens is within 1.5 times of before %s\n\n", p, late)
		}
	}
	return nil
}

func (o options) chosen() (list []policy, err error) {
	if o.policies == "all" {
		return policies, nil
	}
	for name := range strings.SplitSeq(o.policies, ",") {
		p, err := parsePolicy(name)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// newSimulation is a fleet whose replicas are ready.
func (o options) newSimulation(p policy) *simulation {
	s := &simulation{pace: o.pace, policy: p, lag: o.lag, zones: o.zones, rng: rand.New(rand.NewPCG(o.seed, 1<<63))}
	for range o.replicas {
		r := s.newReplica()
		r.ready = true
		s.pay(r)
	}
	if o.scale {
		s.scaler = &scaler{sim: s, least: o.replicas, most: o.most, target: o.target, every: o.every, start: o.start,
			calm: o.calm, replace: true}
		s.at(o.every, s.scaler.look)
	}
	if o.lag > 0 {
		s.scrape(o.duration)
	}
	if o.failAt > 0 {
		s.at(o.failAt, func() error { s.failZone(0); return nil })
	}
	return s
}

// play has users use the fleet.
func (o options) play(ctx context.Context, s *simulation) error {
	defer s.end()
	s.onFinish = newUser(o.work, s, o.pace.context, o.seed, o.duration).next
	for t := time.Second; t <= o.duration; t += time.Second {
		if err := errors.Join(ctx.Err(), s.run(t)); err != nil {
			return err
		}
	}
	return nil
}

func (o options) result(s *simulation) *result {
	r := summarize(s.calls, o.warmUp, o.duration)
	var busy time.Duration
	for _, x := range s.replicas {
		busy += x.busy
		if x.wasReady {
			r.Replicas++
		}
	}
	if s.scaler != nil {
		r.Peak = s.scaler.peak
	}
	r.Busy = busy.Seconds() / max(1, s.used.Seconds())
	if whole := summarize(s.calls, 0, o.duration); whole.Answered > 0 {
		r.CostPerMillion = s.used.Hours() * o.price / float64(whole.Answered) * 1e6
	}
	return r
}
