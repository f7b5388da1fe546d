package verify

import (
	"context"
	"math"
	"slices"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
)

// greedy continues a prompt by n tokens, or up to an id of stop.
func (v *Verifier) greedy(in fusion.Input, n int, stop ...int32) ([]int32, error) {
	steps, err := v.steps(in, n, stop...)
	got := make([]int32, len(steps))
	for i, s := range steps {
		got[i] = s.id
	}
	return got, err
}

// step is a token of a greedy answer, the log of its probability, and how far that of the next likely is below it.
type step struct {
	id              int32
	logprob, margin float64
}

// steps is greedy with the probabilities.
func (v *Verifier) steps(in fusion.Input, n int, stop ...int32) ([]step, error) {
	row := decoder.Row{IDs: in.IDs, Spans: in.Spans,
		Sampler: decoder.NewSampler(decoder.Sampling{Logprobs: true, TopLogprobs: 2})}
	var got []step
	for len(got) < n {
		out, err := v.Runner.Run(context.Background(), &decoder.Batch{Rows: []decoder.Row{row}})
		if err != nil {
			return got, err
		}
		s := step{id: out[0].ID, logprob: float64(out[0].Logprobs.Picked), margin: math.Inf(1)}
		if top := out[0].Logprobs.Top; len(top) > 1 {
			s.margin = float64(top[0].Logprob - top[1].Logprob)
		}
		got = append(got, s)
		if slices.Contains(stop, s.id) {
			break
		}
		row.Past += len(row.IDs)
		row.IDs = []int32{s.id}
	}
	return got, nil
}
