package model

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

// MemoryPlan is what a model takes of a device's memory, in bytes. Providers do not say when a device has no more, so
// it is planned before anything is opened.
type MemoryPlan struct {
	// Weights are those of the tower and the decoder; Tower is the most that a run of the tower takes beside them,
	// Decoder the most of a step.
	Weights, Tower, Decoder int64
	// Slot is the KV cache of one sequence; there is one more than sequences, in which prompts run.
	Slot int64
}

// MemoryPlan plans for sequences of maxLen positions, of which slots decode at once and prompts run in chunks of chunk.
func (m *Model) MemoryPlan(p graph.Precision, slots, maxLen, chunk int) MemoryPlan {
	l := MemoryPlan{Weights: p.WeightBytes(m.WeightBytes()), Slot: m.Decoder.SlotBytes(maxLen, p)}
	l.Decoder = m.Decoder.StepBytes(max(slots, min(chunk, maxLen)), slots, maxLen)
	l.Tower = m.Tower.RunBytes()
	if m.AnySize != nil {
		l.Tower = vision.ScoredRunBytes
	}
	return l
}

// Slots is the number of sequences that fit into so many bytes, 0 if there is room for none.
func (l MemoryPlan) Slots(bytes int64) int {
	return max(0, int((bytes-l.Weights-l.Tower-l.Decoder)/l.Slot)-1)
}

// Total is what so many slots take with all the rest.
func (l MemoryPlan) Total(slots int) int64 {
	return l.Weights + l.Tower + l.Decoder + int64(slots+1)*l.Slot
}

// String lists the entries in MiB.
func (l MemoryPlan) String() string {
	mib := func(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
	return fmt.Sprintf("weights %s, vision tower %s, decoder %s, and for each sequence and one more %s", mib(l.Weights), mib(l.Tower), mib(l.Decoder), mib(l.Slot))
}
