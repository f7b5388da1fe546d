package modeltest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
)

// RandomPrompt has n ids without image tokens.
func RandomPrompt(rng *rand.Rand, n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(8 + rng.IntN(700))
	}
	return ids
}

// GreedyRow is a row that picks the most likely token.
func GreedyRow(slot, past int, ids []int32) decoder.Row {
	return decoder.Row{Slot: slot, Past: past, IDs: ids, Sampler: decoder.NewSampler(decoder.Sampling{})}
}

// LoggedRow is for Run, which compares probabilities.
func LoggedRow(slot, past int, ids []int32) decoder.Row {
	return decoder.Row{Slot: slot, Past: past, IDs: ids, Sampler: decoder.NewSampler(decoder.Sampling{Logprobs: true})}
}

// Picked is a token and the log of its probability.
type Picked struct {
	ID      int32
	Logprob float32
}

// Picks takes tokens with their log-probabilities.
func Picks(tokens []decoder.Token) []Picked {
	list := make([]Picked, len(tokens))
	for i, t := range tokens {
		list[i] = Picked{t.ID, t.Logprobs.Picked}
	}
	return list
}

// Run does one step and gives its tokens.
func Run(t testing.TB, r decoder.Runner, rows ...decoder.Row) []Picked {
	t.Helper()
	out, err := r.Run(t.Context(), &decoder.Batch{Rows: rows})
	if err != nil {
		t.Fatal(err)
	}
	return Picks(out)
}

// Greedy does one step of a row and gives its token's id.
func Greedy(t testing.TB, r decoder.Runner, row decoder.Row) int32 {
	t.Helper()
	out, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{row}})
	if err != nil {
		t.Fatal(err)
	}
	return out[0].ID
}

// Continuations runs greedy steps of prompts, one after the other and then all in each step.
func Continuations(t testing.TB, r decoder.Runner, prompts []fusion.Input, steps int) (alone, together [][]Picked) {
	t.Helper()
	alone, together = make([][]Picked, len(prompts)), make([][]Picked, len(prompts))
	next := func(row decoder.Row, tok Picked) decoder.Row {
		row.Past, row.IDs = row.Past+len(row.IDs), []int32{tok.ID}
		return row
	}
	rows := make([]decoder.Row, len(prompts))
	for i, p := range prompts {
		row := LoggedRow((i+1)%len(prompts), 0, p.IDs)
		row.Spans = p.Spans
		for range steps {
			tok := Run(t, r, row)[0]
			alone[i] = append(alone[i], tok)
			row = next(row, tok)
		}
		rows[i] = LoggedRow(i, 0, p.IDs)
		rows[i].Spans = p.Spans
	}
	for i := range rows {
		together[i] = Run(t, r, rows[i])
		rows[i] = next(rows[i], together[i][0])
	}
	for range steps - 1 {
		for i, tok := range Run(t, r, rows...) {
			together[i] = append(together[i], tok)
			rows[i] = next(rows[i], tok)
		}
	}
	return alone, together
}

// SamePicks compares answers step by step.
func SamePicks(got, want []Picked, tolerance float64) error {
	for i, w := range want {
		if got[i].ID != w.ID || !(math.Abs(float64(got[i].Logprob-w.Logprob)) <= tolerance) {
			return fmt.Errorf("step %d: %+v, want %+v", i, got[i], w)
		}
	}
	return nil
}
