package batching

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
)

func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := decodertest.NewHash(2, 100, 40)
		failure := errors.New("odd")
		var steps []string
		e := New(decodertest.NewPaced(h, time.Millisecond, 10*time.Millisecond),
			Options{PrefillChunk: 8, Observe: func(s Step) {
				line := fmt.Sprintf("%v prefill=%v", s.Ended.Sub(s.Began), s.Prefill)
				for _, r := range s.Rows {
					line += fmt.Sprintf(" %v@%d[%d,%d)", r.Tag, r.Slot, r.Past, r.Past+r.Tokens)
				}
				if s.Err != nil {
					line += " " + s.Err.Error()
				}
				steps = append(steps, line)
			}})
		stop := start(e)
		a, b := request("a", 10, 3), request("b", 4, 2)
		a.Tag, b.Tag = "A", 2
		first := mustSubmit(t, t.Context(), e, a)
		second := mustSubmit(t, t.Context(), e, b)
		read(t, first)
		read(t, second)
		h.Fail = func(*decoder.Batch) error { return failure }
		read(t, mustSubmit(t, t.Context(), e, request("c", 4, 2)))
		want := []string{
			"8ms prefill=true A@0[0,8)",
			"2ms prefill=true A@0[8,10)",
			"10ms prefill=false A@0[10,11)",
			"4ms prefill=true 2@1[0,4)",
			"10ms prefill=false A@0[11,12) 2@1[4,5)",
			"4ms prefill=true <nil>@0[0,4) odd",
		}
		if fmt.Sprint(steps) != fmt.Sprint(want) {
			t.Errorf("steps\n%q, want\n%q", steps, want)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// hung is a runner whose steps take as long as they are told.
type hung struct {
	*decodertest.Hash
	wait time.Duration
}

func (h *hung) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	select {
	case <-time.After(h.wait):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return h.Hash.Run(ctx, b)
}

func TestStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hung{decodertest.NewHash(2, 100, 40), time.Minute}
		e := New(h, Options{})
		stop := start(e)
		defer stop()
		time.Sleep(time.Hour)
		if d := e.Stalled(); d != 0 {
			t.Errorf("idle: %v", d)
		}
		s := mustSubmit(t, t.Context(), e, request("a", 4, 3))
		time.Sleep(50 * time.Second)
		if d := e.Stalled(); d != 50*time.Second {
			t.Errorf("50 s into the first step: %v", d)
		}
		time.Sleep(50 * time.Second)
		if d := e.Stalled(); d != 40*time.Second {
			t.Errorf("40 s into the second step: %v", d)
		}
		mustSubmit(t, t.Context(), e, request("b", 4, 3)).Cancel() // what arrives and leaves is no step
		time.Sleep(15 * time.Second)
		if d := e.Stalled(); d != 55*time.Second {
			t.Errorf("55 s into the second step: %v", d)
		}
		read(t, s)
		if d := e.Stalled(); d != 0 {
			t.Errorf("idle again: %v", d)
		}
	})
}
