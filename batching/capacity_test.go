package batching

import (
	"testing"

	"github.com/mmserve/mmserve/decoder"
)

// What a runner cannot take is not planned, whatever the options say.
func TestSchedulerKeepsToCapacity(t *testing.T) {
	c := decoder.Capacity{Slots: 2, MaxLen: 512, Exact: true, PrefixStep: 64, MaxDrafts: 60}
	s := newScheduler(c, Options{Drafts: 64})
	if s.drafts != 60 {
		t.Errorf("%d drafts, want 60", s.drafts)
	}
	q := &sequence{}
	for n, want := range map[int]int{0: 0, 1: 0, 63: 0, 64: 64, 127: 64, 128: 128, 500: 448} {
		if got := s.whole(q, n); got != want {
			t.Errorf("a prompt goes on at %d, %d positions are shared, want %d", got, n, want)
		}
	}
	c.Exact = false // chunks end where they end for all
	s = newScheduler(c, Options{Drafts: 64, PrefillChunk: 96})
	for n, want := range map[int]int{96: 0, 191: 0, 192: 192, 300: 192, 400: 384} {
		if got := s.whole(q, n); got != want {
			t.Errorf("a prompt goes on at %d, %d positions are shared, want %d", got, n, want)
		}
	}
	if s.drafts != 0 {
		t.Errorf("%d drafts of a runner that is not exact", s.drafts)
	}
}
