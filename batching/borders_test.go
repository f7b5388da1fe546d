package batching

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
)

// The time for which decode steps were put off is none that tokens take.
func TestHoldIsNoGap(t *testing.T) {
	h := newHistory(t, decodertest.NewHash(3, 64, 40), Options{PrefillChunk: 8})
	h.token, h.decode = time.Millisecond, 2*time.Millisecond
	h.command("submit a prompt=2 max=20 priority=batch")
	for range 2 {
		h.step(nil)
	}
	for range 6 {
		if wait := h.sched.hold(1, h.now); wait != longestHold {
			t.Fatalf("a step is put off by %v", wait)
		}
		h.now = h.now.Add(200 * time.Millisecond)
		if wait := h.sched.hold(1, h.now); wait != longestHold-200*time.Millisecond {
			t.Fatalf("200 ms later by %v", wait)
		}
		h.step(nil)
		if h.sched.heldFor != 0 || !h.sched.holdSince.IsZero() {
			t.Fatalf("%v of a hold are left after a step", h.sched.heldFor)
		}
	}
	if gap := h.sched.latency.gap.mean(); gap < 0.002 || gap > 0.004 {
		t.Errorf("a token takes %v s, want 3 ms: a step and the time before it", gap)
	}
}

// Of requests whose deadlines seem out of reach one in four slots is let in, and another once that has left.
func TestProbes(t *testing.T) {
	for slots, want := range map[int]int{1: 1, 4: 1, 7: 1, 8: 2} {
		synctest.Test(t, func(t *testing.T) {
			runner := decodertest.NewPaced(decodertest.NewHash(slots, 500, 40), time.Millisecond, 10*time.Millisecond)
			e, c := newChecked(runner, Options{MaxWaiting: 9})
			stop := start(e)
			read(t, mustSubmit(t, t.Context(), e, request("a", 100, 11)))
			c.tickets.Store(false)
			var late *DeadlineError
			var in []*Ticket
			ask := func() error {
				tickets, err := e.AcquireFor(Claim{Prompt: 200, Deadline: time.Now().Add(50 * time.Millisecond)})
				in = append(in, tickets...)
				return err
			}
			for range want {
				if err := ask(); err != nil {
					t.Fatalf("%d slots: %v with %d of %d let in", slots, err, len(in), want)
				}
			}
			for range 2 {
				if err := ask(); !errors.As(err, &late) {
					t.Errorf("%d slots: %v with %d let in", slots, err, len(in))
				}
				in[0].Release()
				in = in[1:]
				if err := ask(); err != nil {
					t.Errorf("%d slots: %v after one has left", slots, err)
				}
			}
			for _, ticket := range in {
				ticket.Release()
			}
			c.tickets.Store(true)
			stop()
		})
	}
}

// Tenants that have gone are forgotten: a thousand that come one after another leave no more than two sweeps.
func TestTenantsAreForgotten(t *testing.T) {
	h := newHistory(t, decodertest.NewHash(1, 64, 40), Options{})
	h.decode = time.Millisecond
	for i := range 1000 {
		id := fmt.Sprint("r", i)
		h.submit(Request{ID: id, Tenant: id, MaxTokens: 2, Input: fusion.Input{IDs: []int32{1, int32(i % 40)}}})
		for range 3 {
			h.step(nil)
		}
		if h.ended[id] != Length {
			t.Fatalf("%s has ended with %v", id, h.ended[id])
		}
	}
	class := &h.sched.queue.classes[PriorityDefault.class()]
	if n := len(class.tenants); n < 1 || n > 2*(2+64) {
		t.Errorf("%d tenants are known of a thousand that have gone", n)
	}
}
