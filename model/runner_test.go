package model

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/runnertest"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model/modeltest"
)

// openRunner opens the embedded model's decoder.
func openRunner(t *testing.T, slots int, p graph.Precision) decoder.Runner {
	t.Helper()
	modeltest.StartLibrary(t)
	return openRunnerOn(t, slots, p, ort.Options{})
}

func openRunnerOn(t *testing.T, slots int, p graph.Precision, o ort.Options) decoder.Runner {
	t.Helper()
	m, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	if p.Quantized() {
		_, err := m.LoadQuantized(t.TempDir(), p.Vision(), p)
		if errors.Is(err, graph.ErrSaturates) || errors.Is(err, graph.ErrNoInt4) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := m.OpenDecoder(decoder.OpenOptions{Slots: slots, Precision: p, Session: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// The log-probability of every token must be the same bits alone and in a batch of 2 to 16 rows of other lengths,
// over slots that held something else before.
func TestBatchEqualsAlone(t *testing.T) {
	for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
		t.Run(string(p), func(t *testing.T) { batchEqualsAlone(t, p) })
	}
}

func batchEqualsAlone(t *testing.T, p graph.Precision) {
	const slots, steps = 16, 6
	r := openRunner(t, slots, p)
	rng := rand.New(rand.NewPCG(1, 2))
	prompts := make([][]int32, slots)
	for i := range prompts {
		prompts[i] = modeltest.RandomPrompt(rng, 1+rng.IntN(60))
	}
	alone := make([][]modeltest.Picked, slots)
	for i, p := range prompts {
		slot := rng.IntN(slots)
		tok := modeltest.Run(t, r, modeltest.LoggedRow(slot, 0, p))
		alone[i] = tok
		for s := range steps {
			tok = modeltest.Run(t, r, modeltest.LoggedRow(slot, len(p)+s, []int32{tok[0].ID}))
			alone[i] = append(alone[i], tok[0])
		}
	}
	for n := 2; n <= slots; n++ {
		last := make([]modeltest.Picked, n)
		for i := range n {
			last[i] = modeltest.Run(t, r, modeltest.LoggedRow(i, 0, prompts[i]))[0]
		}
		for s := range steps {
			var rows []decoder.Row
			for i := range n {
				rows = append(rows, modeltest.LoggedRow(i, len(prompts[i])+s, []int32{last[i].ID}))
			}
			last = modeltest.Run(t, r, rows...)
			for i := range n {
				if last[i] != alone[i][s+1] {
					t.Fatalf("row %d of %d, step %d: %+v, alone %+v", i, n, s, last[i], alone[i][s+1])
				}
			}
		}
	}
}

// The decoder that this machine's processor runs keeps the contract that the engine relies on.
func TestHostRunnerConforms(t *testing.T) {
	for _, p := range []graph.Precision{graph.FP32, graph.INT8} {
		t.Run(string(p), func(t *testing.T) { runnertest.Conform(t, openRunner(t, 4, p), 8, 708) })
	}
}

// A moved sequence goes on as if it had never moved.
func TestMove(t *testing.T) {
	r := openRunner(t, 3, graph.FP32)
	rng := rand.New(rand.NewPCG(3, 4))
	p := modeltest.RandomPrompt(rng, 33)
	first := modeltest.Run(t, r, modeltest.LoggedRow(2, 0, p))[0]
	want := modeltest.Run(t, r, modeltest.LoggedRow(2, len(p), []int32{first.ID}))[0]
	modeltest.Run(t, r, modeltest.LoggedRow(0, 0, modeltest.RandomPrompt(rng, 50)))
	modeltest.Run(t, r, modeltest.LoggedRow(2, 0, p))
	out, err := r.Run(t.Context(), &decoder.Batch{
		Moves: []decoder.Move{{From: 2, To: 0, Len: len(p)}},
		Rows:  []decoder.Row{modeltest.LoggedRow(0, len(p), []int32{first.ID})},
	})
	if err != nil || modeltest.Picks(out)[0] != want {
		t.Errorf("after the move %+v %v, want %+v", out, err, want)
	}
}

// What the attention kernel would answer with a crash or with silently wrong numbers is refused before it.
func TestRefusedBatches(t *testing.T) {
	for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
		t.Run(string(p), func(t *testing.T) { refusedBatches(t, openRunner(t, 2, p)) })
	}
}

func refusedBatches(t *testing.T, r decoder.Runner) {
	ids := []int32{9, 9, 9}
	refused := map[string][]decoder.Row{
		"no ids":               {modeltest.LoggedRow(0, 0, nil)},
		"would reach position": {modeltest.LoggedRow(0, r.Capacity().MaxLen-2, ids)},
		"is in slot 2 of 2":    {modeltest.LoggedRow(2, 0, ids)},
		"has no embedding":     {modeltest.LoggedRow(0, 0, []int32{768})},
		"token id -1":          {modeltest.LoggedRow(0, 0, []int32{-1})},
	}
	turned := []decoder.Row{modeltest.LoggedRow(1, 3, ids[:1]), modeltest.LoggedRow(0, 3, ids[:1])}
	if r.Capacity().Mixed {
		refused["in ascending order"] = turned
	} else {
		refused["of a decode step has"] = turned
		refused["has 3 ids"] = []decoder.Row{modeltest.LoggedRow(0, 3, ids), modeltest.LoggedRow(1, 3, ids)}
		refused["past 0"] = []decoder.Row{modeltest.LoggedRow(0, 3, ids[:1]), modeltest.LoggedRow(1, 0, ids[:1])}
	}
	for want, rows := range refused {
		if _, err := r.Run(t.Context(), &decoder.Batch{Rows: rows}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	// After refusals it still works; an empty batch is no crash.
	if out, err := r.Run(t.Context(), &decoder.Batch{}); err != nil || len(out) != 0 {
		t.Errorf("empty batch: %v %v", out, err)
	}
	modeltest.Run(t, r, modeltest.LoggedRow(0, 0, ids))
	if out := modeltest.Run(t, r, decoder.Row{Slot: 1, IDs: ids}); len(out) != 0 {
		t.Errorf("a row without a sampler gave %v", out)
	}
}
