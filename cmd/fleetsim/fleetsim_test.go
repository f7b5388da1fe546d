package main

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
)

// defaults are the command line's, with some of them changed.
func defaults(t *testing.T, change func(*options)) options {
	t.Helper()
	o := options{
		pace: pace{promptToken: time.Millisecond, step: 20 * time.Millisecond, encode: 50 * time.Millisecond, encoders: 1,
			slots: 4, waiting: 64, context: 512, images: 16},
		work:     workload{rate: 3, turns: 1, think: time.Second, prompt: 30, output: 20},
		policies: "round-robin", replicas: 3, zones: 3, duration: time.Minute, seed: 1, price: 1,
		most: 20, target: 4, start: 5 * time.Second, every: 5 * time.Second, calm: 20 * time.Second,
	}
	change(&o)
	if err := o.check(); err != nil {
		t.Fatal(err)
	}
	return o
}

// play simulates, and gives what came of it.
func play(t *testing.T, p policy, change func(*options)) (*simulation, *result) {
	t.Helper()
	o := defaults(t, change)
	s := o.newSimulation(p)
	if err := o.play(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s, o.result(s)
}

// text is a result without its values one by one.
func text(r *result) string {
	short := *r
	short.first, short.whole = nil, nil
	return fmt.Sprintf("%+v", short)
}

// A simulated replica does what the engine does over a runner of that pace in (a bubble's) time: the same calls have
// the same first tokens and ends.
func TestReplicaIsTheEngine(t *testing.T) {
	s, _ := play(t, roundRobin, func(o *options) { o.replicas, o.work.rate, o.duration = 1, 4, 20*time.Second })
	if len(s.calls) < 50 {
		t.Fatalf("%d calls", len(s.calls))
	}
	synctest.Test(t, func(t *testing.T) {
		e := batching.New(decodertest.NewPaced(decodertest.NewHash(4, 512, 768), time.Millisecond, 20*time.Millisecond),
			batching.Options{MaxWaiting: 64, TenantPlaces: 1})
		ended := make(chan error, 1)
		go func() { ended <- e.Run(t.Context()) }()
		began := time.Now()
		for _, c := range s.calls {
			if c.outcome != answered {
				continue // it was under way at the end
			}
			time.Sleep(c.sent - time.Since(began))
			ticket, err := e.AcquireFor(batching.Claim{Tenant: c.tenant})
			if err != nil {
				t.Fatal(err)
			}
			stream, err := e.Submit(t.Context(), ticket[0], batching.Request{Input: fusion.Input{IDs: c.ids},
				MaxTokens: c.output, Tenant: c.tenant, NoDrafts: true, Sampling: decoder.Sampling{TopP: 1}})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				first := time.Duration(0)
				for {
					event, err := stream.Next(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					if event.HasToken && first == 0 {
						first = time.Since(began)
					}
					if event.Finish != batching.Running {
						break
					}
				}
				if first != c.first || time.Since(began) != c.ended {
					t.Errorf("%s: first token at %v, end at %v; simulated %v and %v", c.name, first, time.Since(began), c.first, c.ended)
				}
			}()
		}
		time.Sleep(time.Minute)
		if err := e.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// The same seed gives the same run, and every call ends in one way.
func TestSimulationRepeats(t *testing.T) {
	change := func(o *options) {
		o.work.turns, o.work.image, o.work.pool, o.work.rate, o.replicas = 3, 64, 20, 5, 6
		o.failAt, o.scale = 30*time.Second, true
	}
	one, first := play(t, both, change)
	two, second := play(t, both, change)
	if text(first) != text(second) || len(one.calls) != len(two.calls) {
		t.Errorf("%s\n%s", text(first), text(second))
	}
	under := 0
	for _, c := range one.calls {
		switch c.outcome {
		case running:
			under++
		case answered:
			if c.tokens != c.output || c.first < c.sent || c.ended < c.first {
				t.Errorf("%s: %d tokens of %d, sent at %v, first at %v, over at %v", c.name, c.tokens, c.output, c.sent, c.first, c.ended)
			}
		}
	}
	if under > 20 || first.Cut == 0 || first.Retried == 0 || first.Refused > 0 {
		t.Errorf("%d under way at the end, %s", under, text(first))
	}
}

// Affinity finds caches, queues find free replicas, and both do some of each.
func TestPolicies(t *testing.T) {
	results := map[policy]*result{}
	for _, p := range policies {
		_, results[p] = play(t, p, func(o *options) {
			o.work.turns, o.work.image, o.work.pool, o.work.rate, o.replicas = 3, 64, 200, 4, 6
			o.pace.images, o.duration = 8, 2*time.Minute
		})
		t.Logf("%-14s %s", p, text(results[p]))
	}
	for _, near := range []policy{affinity, both} {
		for _, far := range []policy{roundRobin, leastRequest, queue} {
			if results[near].PrefixHits < results[far].PrefixHits+0.1 {
				t.Errorf("%s has %.2f of prompts cached, %s %.2f", near, results[near].PrefixHits, far, results[far].PrefixHits)
			}
		}
	}
	if results[affinity].ImageHits < results[queue].ImageHits+0.1 {
		t.Errorf("images cached: affinity %.2f, queue %.2f", results[affinity].ImageHits, results[queue].ImageHits)
	}
	if results[both].TTFT.P99 > results[affinity].TTFT.P99 {
		t.Errorf("TTFT p99: both %v, affinity %v", results[both].TTFT.P99, results[affinity].TTFT.P99)
	}
}

// An autoscaler follows a rate that grows, within its bounds, and gives back what is not needed.
func TestScaler(t *testing.T) {
	s, r := play(t, queue, func(o *options) {
		o.scale, o.replicas, o.work.rate, o.work.swing, o.work.period = true, 2, 8, 0.9, 4*time.Minute
		o.duration, o.work.output = 4*time.Minute, 60
	})
	if s.scaler.peak < 5 || s.scaler.peak > 20 || r.Replicas >= s.scaler.peak || r.Replicas < 2 {
		t.Errorf("at most %d replicas, %d at the end", s.scaler.peak, r.Replicas)
	}
}

// A zone that fails takes what was in its text with it, and nothing else.
func TestZone(t *testing.T) {
	s, r := play(t, queue, func(o *options) { o.replicas, o.work.rate, o.failAt = 9, 20, 30*time.Second })
	for _, c := range s.calls {
		if c.outcome == cut && (c.replica.id%3 != 0 || c.first == 0 || c.first > 30*time.Second) {
			t.Errorf("%s was cut on replica %d, first token at %v", c.name, c.replica.id, c.first)
		}
	}
	if r.Cut == 0 || r.Refused > 0 || r.Replicas != 6 {
		t.Error(text(r))
	}
	if late := recovered(s.calls, 0, 30*time.Second, time.Minute); late < 0 || late > 15*time.Second {
		t.Errorf("recovered after %v", late)
	}
}

// What cannot be simulated is refused.
func TestCheck(t *testing.T) {
	for name, change := range map[string]func(*options){
		"no step": func(o *options) { o.pace.step = 0 }, "no slots": func(o *options) { o.pace.slots = 0 },
		"no rate": func(o *options) { o.work.rate = 0 }, "no context": func(o *options) { o.pace.context = 20 },
		"no replicas": func(o *options) { o.replicas = 0 }, "no time": func(o *options) { o.warmUp = o.duration },
		"no target": func(o *options) { o.scale, o.target = true, 0 }, "all swing": func(o *options) { o.work.swing = 1 },
	} {
		o := defaults(t, func(*options) {})
		change(&o)
		if o.check() == nil {
			t.Errorf("%s is simulated", name)
		}
	}
	if _, err := parsePolicy("random"); err == nil || !strings.Contains(err.Error(), "round-robin") {
		t.Error(err)
	}
}
