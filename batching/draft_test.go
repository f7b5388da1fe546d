package batching

import (
	"slices"
	"testing"
	"time"

	"github.com/mmserve/mmserve/decoder"
)

func TestRecurrence(t *testing.T) {
	for _, c := range []struct {
		ids  []int32
		want int
	}{
		{nil, 0},
		{[]int32{1}, 0},
		{[]int32{1, 2, 3, 4}, 0},
		{[]int32{1, 2, 9, 2}, 0},                               // one token alone is no hint
		{[]int32{1, 2, 9, 1, 2}, 2},                            // goes on with 9
		{[]int32{1, 2, 8, 1, 2, 9, 1, 2}, 5},                   // the last place counts
		{[]int32{5, 1, 2, 8, 1, 2, 9, 5, 1, 2}, 3},             // unless another matches longer
		{[]int32{4, 5, 1, 2, 8, 4, 5, 1, 2, 9, 4, 5, 1, 2}, 9}, // four are as long as it gets
		{[]int32{7, 7, 7}, 2},                                  // a run goes on
	} {
		if got := recurrence(c.ids, shortestMatch); got != c.want {
			t.Errorf("recurrence(%v) = %d, want %d", c.ids, got, c.want)
		}
	}
}

// Drafts that cost more than they bring are left out for longer each time, and come back when they pay.
func TestDraftsPay(t *testing.T) {
	var p latencyModel
	offs := []int{}
	for range 8 {
		p.recordDrafts(4, false, 4*time.Millisecond)
		p.recordDrafts(5, true, 9*time.Millisecond) // 1.8 ms a token where 1 would do
		n := 0
		for !p.draftsPay() {
			n++
		}
		offs = append(offs, n)
	}
	if want := []int{16, 32, 64, 128, 256, 512, 512, 512}; !slices.Equal(offs, want) {
		t.Errorf("left out for %v steps, want %v", offs, want)
	}
	p.recordDrafts(12, true, 9*time.Millisecond)
	if !p.draftsPay() || p.wait != 0 {
		t.Errorf("after a step that pays: %+v", p)
	}
	p.recordDrafts(0, true, time.Millisecond)
	if !p.draftsPay() {
		t.Error("a step without tokens counts")
	}
}

// A step during which the process stood still says little of what a token costs: it counts as a few usual ones.
func TestDraftsOfAStall(t *testing.T) {
	var p latencyModel
	now := time.Unix(0, 0)
	for range 9 {
		p.recordDecode(4*time.Millisecond, 4*time.Millisecond, 4, 4, now)
		p.recordDrafts(4, false, 4*time.Millisecond)
	}
	p.recordDrafts(4, false, time.Hour)
	if most := stallFactor * 0.001; p.plain <= 0.001 || p.plain > most {
		t.Errorf("a token takes %v s after a stall, want more than before, up to %v", p.plain, most)
	}
}

// What a decode step took comes to be known as that of one with or without drafts, by its width.
func TestStepsAreMeasuredByDrafts(t *testing.T) {
	s := newScheduler(decoder.Capacity{Slots: 2, MaxLen: 50, Exact: true}, Options{Drafts: 4})
	q := &sequence{id: "q", phase: decoding}
	s.began = time.Unix(5, 0)
	p := plan{decodes: 1, seqs: []*sequence{q}, batch: &decoder.Batch{Rows: []decoder.Row{{IDs: []int32{1},
		Sampler: &decoder.Sampler{}}}}}
	s.measure(p, make([]decoder.Token, 1), time.Unix(7, 0))
	if s.latency.plain != 2 || s.latency.drafted != 0 {
		t.Errorf("after a step without drafts: %v s a token without, %v with", s.latency.plain, s.latency.drafted)
	}
	s.began = time.Unix(7, 0)
	p.batch.Rows[0] = decoder.Row{IDs: []int32{1, 2}, Drafts: 1, Sampler: &decoder.Sampler{}}
	s.measure(p, make([]decoder.Token, 1), time.Unix(8, 0))
	if s.latency.plain != 2 || s.latency.drafted != 1 {
		t.Errorf("after one with drafts: %v s a token without, %v with", s.latency.plain, s.latency.drafted)
	}
}

func TestDraftStops(t *testing.T) {
	q := &sequence{ids: []int32{1, 2, 3, 4, 5, 1, 2}, stop: []int32{4}}
	if got := q.draft(9, shortestMatch); len(got) != 1 || got[0] != 3 {
		t.Errorf("before a stop id %v, want [3]", got)
	}
	q.lookup.record(1, 0, 0)
	for range 2 {
		if got := q.draft(9, shortestMatch); got != nil {
			t.Errorf("after a wrong draft %v", got)
		}
	}
	if got := q.draft(9, shortestMatch); len(got) != 1 {
		t.Errorf("after the pause %v, want a draft", got)
	}
	q.lookup.record(1, 0, 0)
	if q.lookup.pause != 4 {
		t.Errorf("the second pause is %d, want 4", q.lookup.pause)
	}
	q.lookup.record(1, 1, 0)
	if q.lookup.misses != 0 {
		t.Error("a right draft does not make good")
	}
}
