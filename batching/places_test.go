package batching

import (
	"errors"
	"fmt"
	"testing"

	"github.com/mmserve/mmserve/decoder/decodertest"
)

// fillPlaces acquires places of a kind until there are none, and says how many it got.
func fillPlaces(t *testing.T, e *Engine, c Claim) int {
	t.Helper()
	for n := 0; ; n++ {
		_, err := e.AcquireFor(c)
		if errors.Is(err, ErrBusy) {
			return n
		}
		if err != nil || n > 1000 {
			t.Fatalf("after %d: %v", n, err)
		}
	}
}

// Batch requests and tenants have their parts of the waiting places, and no more; the others find the rest.
func TestPlacesAreKept(t *testing.T) {
	const slots, waiting = 4, 40
	for _, c := range []struct {
		batch, tenant         float64
		ofBatch, ofA, ofOther int // how many batch requests get in, and then interactive ones of tenant a and of others
	}{
		{0, 0, 34, 10, 0},      // 4 + 30; a has fewer than 4 + 8 for each that is left, up to the last
		{0.25, 1, 14, 28, 2},   // 4 + 10; a stops at 28, with 2 left
		{1, 1, 44, 0, 0},       // nothing is kept
		{0.1, 0.1, 8, 8, 28},   // 4 + 4 each
		{0.01, 0.01, 5, 5, 34}, // one at least
	} {
		e := New(decodertest.NewHash(slots, 64, 40),
			Options{MaxWaiting: waiting, BatchPlaces: c.batch, TenantPlaces: c.tenant})
		batch := 0
		for i := range 200 {
			if _, err := e.AcquireFor(Claim{Priority: PriorityBatch, Tenant: fmt.Sprint("batch-", i%50)}); err == nil {
				batch++
			}
		}
		a := fillPlaces(t, e, Claim{Priority: PriorityInteractive, Tenant: "a"})
		other := 0
		for i := range 200 {
			if _, err := e.AcquireFor(Claim{Priority: PriorityInteractive, Tenant: fmt.Sprint("other-", i%50)}); err == nil {
				other++
			}
		}
		if batch != c.ofBatch || a != c.ofA || other != c.ofOther || batch+a+other != slots+waiting {
			t.Errorf("batch %v, tenant %v: %d batch requests, %d of a, %d of others; want %d, %d, %d", c.batch, c.tenant,
				batch, a, other, c.ofBatch, c.ofA, c.ofOther)
		}
		if !e.Full() {
			t.Error("every place is taken, and the engine is not full")
		}
	}
}

// However many batch answers run, an interactive call of another tenant has its first token after the steps that it
// would take alone and two more; beside answers of the default class its chunks take turns with their tokens.
func TestInteractiveStepsToFirstToken(t *testing.T) {
	const slots, chunk = 16, 32
	for _, running := range []Priority{PriorityBatch, PriorityDefault} {
		for _, prompt := range []int{1, 31, 32, 33, 200} {
			for after := range 5 { // steps since the last of them began
				h := newHistory(t, decodertest.NewHash(slots, 1024, 40), Options{PrefillChunk: chunk})
				for i := range slots {
					r := request(fmt.Sprint("long", i), 4+i, 500)
					r.Priority, r.Tenant = running, "other"
					h.submit(r)
				}
				for len(h.sched.slots.decoding) < slots {
					h.step(nil)
				}
				late := request("late", 3*chunk, 500) // its prompt waits, or is about to be read
				late.Priority, late.Tenant = running, "other"
				h.submit(late)
				for range after {
					h.step(nil)
				}
				me := request("me", prompt, 3)
				me.Priority, me.Tenant = PriorityInteractive, "me"
				h.submit(me)
				steps := 0
				for ; len(h.got["me"]) == 0; steps++ {
					h.step(nil)
				}
				chunks := (prompt + chunk - 1) / chunk
				most := chunks + 2
				if running != PriorityBatch {
					most = 2*chunks + 2
				}
				if steps > most {
					t.Errorf("beside class %d: the first token of %d comes after %d steps, want at most %d", running, prompt,
						steps, most)
				}
			}
		}
	}
}
