package model

import (
	"math/rand/v2"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/model/modeltest"
)

// What Capacity promises: where it says exact, a prompt gives the same bits however it is cut. Everywhere it may be
// exchanged with another in between.
func TestChunksAreExact(t *testing.T) {
	for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
		t.Run(string(p), func(t *testing.T) { chunksAreExact(t, p) })
	}
	t.Run("without own kernels", func(t *testing.T) {
		if !graph.HasKernels {
			t.Skip("there are none")
		}
		graph.HasKernels = false
		defer func() { graph.HasKernels = true }()
		chunksAreExact(t, graph.FP32)
	})
}

func chunksAreExact(t *testing.T, p graph.Precision) {
	r := openRunner(t, 2, p)
	exact := r.Capacity().Exact
	if exact != graph.HasKernels {
		t.Errorf("exact is %v, own kernels %v", exact, graph.HasKernels)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for trial := range 6 {
		ids := modeltest.RandomPrompt(rng, 40+rng.IntN(160))
		// probe runs the prompt in chunks, and in between exchanges it with what the other slot holds.
		probe := func(chunk func() int) float32 {
			slot, other := 0, modeltest.RandomPrompt(rng, 1+rng.IntN(100))
			if _, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{{Slot: 1, IDs: other}}}); err != nil {
				t.Fatal(err)
			}
			for at := 0; ; {
				n := min(chunk(), len(ids)-at)
				row := decoder.Row{Slot: slot, Past: at, IDs: ids[at : at+n]}
				b := decoder.Batch{Rows: []decoder.Row{row}}
				if at > 0 {
					b.Rows[0].Slot = 1 - slot
					b.Moves = []decoder.Move{{From: slot, To: 1 - slot, Len: at, Back: len(other)}}
					slot = 1 - slot
				}
				if at+n == len(ids) {
					b.Rows[0].Sampler = decoder.NewSampler(decoder.Sampling{Logprobs: true})
				}
				out, err := r.Run(t.Context(), &b)
				if err != nil {
					t.Fatal(err)
				}
				if at += n; at == len(ids) {
					return out[0].Logprobs.Picked
				}
			}
		}
		cuts := []func() int{func() int { return 64 }} // where it is not exact, prompts are cut alike
		if exact {
			cuts = append(cuts, func() int { return 1 }, func() int { return len(ids) }, func() int { return 1 + rng.IntN(40) })
		}
		want := probe(cuts[0])
		for i, cut := range cuts {
			if got := probe(cut); got != want {
				t.Errorf("trial %d, cut %d: %v, want %v", trial, i, got, want)
			}
		}
	}
}
