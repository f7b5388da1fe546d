package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/cmd/internal/process"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// allowed is by how much a simulation may be off.
const allowed = 0.1

// real is a fleet of servers, in real time.
type real struct {
	ctx     context.Context
	began   time.Time
	clients []*client.Client
	open    sync.WaitGroup
	next    func(*call)

	mu    sync.Mutex  // is held while anything of the world happens
	fleet *simulation // for its router: its replicas have no engines
	err   error
}

// compare plays the same in a simulation and on three servers.
func (o options) compare(ctx context.Context, list []policy, out io.Writer) error {
	if o.replicas > 3 || o.work.image > 0 || o.scale || o.failAt > 0 || o.lag > 0 || o.pace.row > 0 {
		return errors.New("-real wants up to 3 replicas, no images, scaling, failures, lag or time of rows: its servers have none")
	}
	dir, err := os.MkdirTemp("", "mmserve-fleetsim")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	asked := o
	if o.pace, err = o.calibrate(ctx, dir); err != nil {
		return err
	}
	fmt.Fprintf(out, "one server, a call at a time: %v a prompt token, %v a step\n\n", o.pace.promptToken, o.pace.step)
	heading(out)
	failed := 0
	for _, p := range list {
		s := o.newSimulation(p)
		if err := o.play(ctx, s); err != nil {
			return err
		}
		simulated := o.result(s)
		measured, err := asked.measure(ctx, p, dir)
		if err != nil {
			return err
		}
		simulated.line(out, string(p)+", simulated")
		measured.line(out, string(p)+", real")
		failed += difference(out, simulated, measured)
	}
	if failed > 0 {
		return fmt.Errorf("%d numbers are off by more than %.0f %%", failed, 100*allowed)
	}
	return nil
}

// difference writes what is off by how much, and counts what is off by too much.
func difference(out io.Writer, simulated, measured *result) (failed int) {
	fmt.Fprintln(out)
	for _, v := range []struct {
		name string
		a, b float64
	}{
		{"answered/s", simulated.PerSecond, measured.PerSecond},
		{"TTFT mean", simulated.TTFT.Mean.Seconds(), measured.TTFT.Mean.Seconds()},
		{"TTFT p50", simulated.TTFT.P50.Seconds(), measured.TTFT.P50.Seconds()},
		{"TTFT p90", simulated.TTFT.P90.Seconds(), measured.TTFT.P90.Seconds()},
		{"whole mean", simulated.E2E.Mean.Seconds(), measured.E2E.Mean.Seconds()},
		{"whole p50", simulated.E2E.P50.Seconds(), measured.E2E.P50.Seconds()},
		{"whole p90", simulated.E2E.P90.Seconds(), measured.E2E.P90.Seconds()},
		{"prompt cached", simulated.PrefixHits, measured.PrefixHits},
	} {
		off, word := v.a/v.b-1, ""
		if v.b == 0 {
			off = 0
		}
		if math.Abs(off) > allowed {
			word = ": TOO MUCH"
			failed++
		}
		fmt.Fprintf(out, "- %s: %+.1f %%%s\n", v.name, 100*off, word)
	}
	fmt.Fprintln(out)
	return failed
}

// serve starts server i, and dials it.
func (o options) serve(ctx context.Context, i int, log string) (c *client.Client, stop func(), err error) {
	addr := fmt.Sprintf("127.0.0.%d:%d", i+1, o.port)
	server, err := process.Start(ctx, o.real, addr, fmt.Sprintf("%s-%d", log, i), "--admin-address", "",
		"--pace", fmt.Sprintf("%v,%v", o.pace.promptToken, o.pace.step), "--slots", fmt.Sprint(o.pace.slots),
		"--max-waiting", fmt.Sprint(o.pace.waiting), "--tenant-places", "1", "--max-len", fmt.Sprint(o.pace.context))
	if err != nil {
		return nil, nil, err
	}
	if c, err = client.Dial(addr, client.WithUnavailableRetries(0)); err != nil {
		server.Terminate()
		return nil, nil, err
	}
	return c, func() { _ = c.Close(); server.Terminate() }, nil
}

// calibrate measures what one server's steps take on this machine, a call at a time: timers come late on a busy one.
func (o options) calibrate(ctx context.Context, dir string) (pace, error) {
	c, stop, err := o.serve(ctx, 0, filepath.Join(dir, "log-calibrate"))
	if err != nil {
		return o.pace, err
	}
	defer stop()
	const calls, prompt, output = 20, 100, 40
	w := &real{ctx: ctx, began: time.Now(), clients: []*client.Client{c}}
	var prefill, decode time.Duration
	rng := rand.New(rand.NewPCG(o.seed, 2))
	for i := range calls {
		q := &call{name: fmt.Sprintf("calibrate-%d", i), tenant: "fleet", output: output, replica: &replica{}}
		for range prompt {
			q.ids = append(q.ids, firstWord+rng.Int32N(words))
		}
		if err := w.ask(q); err != nil {
			return o.pace, fmt.Errorf("calibrate: %w", err)
		}
		prefill += q.prefill
		decode += q.decode
	}
	out := o.pace
	out.promptToken, out.step = prefill/(calls*prompt), decode/(calls*(output-1))
	return out, nil
}

// measure plays on servers.
func (o options) measure(ctx context.Context, p policy, dir string) (*result, error) {
	w := &real{ctx: ctx, fleet: &simulation{policy: p, rng: rand.New(rand.NewPCG(o.seed, 1<<63))}}
	for i := range o.replicas {
		c, stop, err := o.serve(ctx, i, filepath.Join(dir, "log-"+string(p)))
		if err != nil {
			return nil, err
		}
		defer stop()
		w.clients = append(w.clients, c)
		w.fleet.replicas = append(w.fleet.replicas, &replica{id: i, ready: true})
	}
	w.began = time.Now()
	w.mu.Lock()
	w.next = newUser(o.work, w, o.pace.context, o.seed, o.duration).next
	w.mu.Unlock()
	select {
	case <-time.After(o.duration):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.open.Wait()
	r := summarize(w.fleet.calls, o.warmUp, o.duration)
	r.Replicas = o.replicas
	return r, w.err
}

func (w *real) now() time.Duration { return time.Since(w.began) }

func (w *real) at(when time.Duration, do func() error) {
	time.AfterFunc(when-w.now(), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = errors.Join(w.err, do())
	})
}

// send implements world. The caller holds mu.
func (w *real) send(c *call) error {
	c.sent, c.tries = w.now(), 1
	w.fleet.calls = append(w.fleet.calls, c)
	c.replica = w.fleet.pick(c)
	c.replica.requests++
	w.open.Go(func() {
		err := w.ask(c)
		w.mu.Lock()
		defer w.mu.Unlock()
		c.ended = w.now()
		c.replica.requests--
		if c.outcome = answered; err != nil {
			c.outcome = refused
		}
		w.next(c)
	})
	return nil
}

// ask sends a call to its server and reads the answer.
func (w *real) ask(c *call) error {
	ids := make([]uint32, len(c.ids))
	for i, id := range c.ids {
		ids[i] = uint32(id)
	}
	in := client.Prompt(&pb.Part{Content: &pb.Part_TokenIds{TokenIds: &pb.TokenIds{Ids: ids}}})
	in.RequestId, in.Tenant, in.MaxTokens, in.IgnoreEos = c.name, c.tenant, proto.Uint32(uint32(c.output)), true
	in.ReturnTokenIds = true
	first := time.Duration(0)
	for e, err := range w.clients[c.replica.id].Stream(w.ctx, in) {
		if err != nil {
			return err
		}
		if first == 0 && e.GetStart() == nil {
			first = w.now()
		}
		for _, id := range append(e.GetDelta().GetTokenIds(), e.GetFinish().GetTokenIds()...) {
			c.answer = append(c.answer, int32(id))
		}
		if f := e.GetFinish(); f != nil {
			c.cachedTokens = int(f.GetUsage().GetCachedTokens())
			c.prefill, c.decode = f.GetTimings().GetPrefill().AsDuration(), f.GetTimings().GetDecode().AsDuration()
		}
	}
	c.first = first
	return nil
}
