package batching

import (
	"fmt"
	"testing"
	"time"

	"github.com/mmserve/mmserve/decoder/decodertest"
)

// ask submits a request whose prompt is like no other's.
func (h *history) ask(id, tenant string, p Priority, prompt, tokens int) {
	r := Request{ID: id, Tenant: tenant, Priority: p, MaxTokens: tokens}
	for i := range prompt {
		r.Input.IDs = append(r.Input.IDs, int32((len(h.order)*7+i*3+1)%40))
	}
	h.submit(r)
}

// busyEngine is an engine of 16 slots, where a step of the prompt takes 1 ms a token and one of decoding 20 ms.
func busyEngine(t *testing.T) *history {
	h := newHistory(t, decodertest.NewHash(16, 900, 40), Options{PrefillChunk: 256, NoPrefixCache: true})
	h.token, h.decode = time.Millisecond, 20*time.Millisecond
	return h
}

// first is how many steps it takes until id has its first token, and how long.
func (h *history) first(id string) (steps int, took time.Duration) {
	for began := h.now; len(h.got[id]) == 0; took = h.now.Sub(began) {
		h.step(nil)
		if steps++; steps > 1000 {
			h.t.Fatalf("%s has no token after %d steps", id, steps)
		}
	}
	return steps, took
}

// TestInteractiveAmongAnswers holds that an interactive request of another tenant, which comes while 16 answers of 500
// tokens run, has its first token after two steps more than alone, or three times as many.
func TestInteractiveAmongAnswers(t *testing.T) {
	for _, prompt := range []int{1, 5, 20, 100, 400} {
		alone := busyEngine(t)
		alone.ask("b", "b", PriorityInteractive, prompt, 8)
		want, wantTime := alone.first("b")
		for _, class := range []Priority{PriorityBatch, PriorityDefault} {
			t.Run(fmt.Sprintf("%d tokens among class %d", prompt, class), func(t *testing.T) {
				h := busyEngine(t)
				for i := range 16 {
					h.ask(fmt.Sprint("a", i), "a", class, 20, 500)
				}
				for len(h.sched.slots.prefilling) > 0 || len(h.sched.slots.decoding) < 16 {
					h.step(nil)
				}
				for range 40 {
					h.step(nil)
				}
				h.ask("b", "b", PriorityInteractive, prompt, 8)
				got, took := h.first("b")
				t.Logf("%d steps, %v; alone %d, %v", got, took, want, wantTime)
				if took > max(3*wantTime, wantTime+2*h.decode) {
					t.Errorf("the first token comes after %d steps, %v; alone after %d, %v", got, took, want, wantTime)
				}
				if h.ended["a0"] != Running {
					t.Error("an answer was ended for it")
				}
			})
		}
	}
}

// TestFloodAmongTenants holds that a tenant who always has 48 requests waiting costs another one, whose load is below
// its half, at most a tenth of the answers that it has alone.
func TestFloodAmongTenants(t *testing.T) {
	// The other tenant asks for 60 tokens at every 14th step of 16 rows: 54 % of its half.
	const steps, every = 1200, 14
	answers := func(flood bool) (good int) {
		h := busyEngine(t)
		floods := 0
		for step := range steps {
			for ; flood && floods < 64+len(h.finished("flood")); floods++ {
				h.ask(fmt.Sprint("flood", floods), "flood", PriorityDefault, 30, 300)
			}
			if step%every == 0 {
				h.ask(fmt.Sprint("other", step), "other", PriorityDefault, 30, 60)
			}
			h.step(nil)
		}
		for _, id := range h.finished("other") {
			if q := h.seqs[id]; q.timing.FirstToken.Sub(q.timing.Submitted) < 2*time.Second {
				good++
			}
		}
		return good
	}
	alone := answers(false)
	beside := answers(true)
	t.Logf("%d answers alone, %d beside a flood", alone, beside)
	if alone < 50 || float64(beside) < 0.9*float64(alone) {
		t.Errorf("%d answers beside a flood, %d alone: want nine tenths", beside, alone)
	}
}

// finished are the requests of a tenant that have been answered.
func (h *history) finished(tenant string) (ids []string) {
	for _, id := range h.order {
		if h.reqs[id].Tenant == tenant && h.ended[id] == Length {
			ids = append(ids, id)
		}
	}
	return ids
}
