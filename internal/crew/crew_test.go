package crew

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
)

func TestGroup(t *testing.T) {
	g, ctx := New(t.Context())
	var ran atomic.Int32
	wrong := errors.New("wrong")
	g.Go(func() error { ran.Add(1); return wrong })
	g.Go(func() error { ran.Add(1); <-ctx.Done(); return nil })
	if err := g.Wait(); err != wrong || ran.Load() != 2 {
		t.Errorf("%v after %d parts, want the first error after both", err, ran.Load())
	}
}

// A panic ends the other parts, and is one of who waits, also where another part failed before.
func TestPanic(t *testing.T) {
	g, ctx := New(t.Context())
	failed := make(chan struct{})
	g.Go(func() error { defer close(failed); return errors.New("wrong") })
	g.Go(func() error { <-failed; <-ctx.Done(); explode(); return nil })
	defer func() {
		p, ok := recover().(*Panic)
		if !ok || p.Value != "boom" || !strings.Contains(p.Error(), "explode") {
			t.Errorf("recovered %v, want boom and where", p)
		}
	}()
	t.Errorf("Wait gives %v, want a panic", g.Wait())
}

func explode() { panic("boom") }

// A panic that went through a group keeps where it began.
func TestTry(t *testing.T) {
	err := Try(func() error {
		g, _ := New(t.Context())
		g.Go(func() error { explode(); return nil })
		return g.Wait()
	})
	if p := new(Panic); !errors.As(err, &p) || p.Value != "boom" || !strings.Contains(p.Error(), "explode") {
		t.Errorf("%v, want boom and where", err)
	}
	if err := Try(func() error { return nil }); err != nil {
		t.Error(err)
	}
}
