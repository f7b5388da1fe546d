package model

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model/modeltest"
)

// Three prompts of other lengths give the same tokens alone and stepping together, in every family.
func TestFamiliesInBatch(t *testing.T) {
	modeltest.StartLibrary(t)
	for name := range modeltest.TinyCheckpoints {
		t.Run(name, func(t *testing.T) {
			m, err := Open(modeltest.TinyDir(name))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			const slots, steps = 3, 5
			r, err := m.OpenDecoder(decoder.OpenOptions{Slots: slots, Session: ort.Options{Threads: 1}})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			rng := rand.New(rand.NewPCG(7, 7))
			rows := make([]decoder.Row, slots)
			for i := range rows {
				rows[i] = modeltest.LoggedRow(i, 0, nil)
				for range m.Decoder.ShortestPrompt() + 3*i {
					rows[i].IDs = append(rows[i].IDs, int32(rng.IntN(80)))
				}
				if n := m.Decoder.EncoderStates; n > 0 {
					states := make([]float32, n*m.Decoder.Hidden)
					for j := range states {
						states[j] = float32(rng.NormFloat64())
					}
					rows[i].Spans = []fusion.Span{{Len: n, Patches: states}}
				}
			}
			next := func(row decoder.Row, tok modeltest.Picked) decoder.Row {
				row.Past, row.IDs = row.Past+len(row.IDs), []int32{tok.ID}
				return row
			}
			var alone [slots][]modeltest.Picked
			for i, row := range rows {
				row.Slot = (i + 1) % slots
				for range steps {
					tok := modeltest.Run(t, r, row)[0]
					alone[i] = append(alone[i], tok)
					row = next(row, tok)
				}
			}
			for i := range rows {
				rows[i] = next(rows[i], modeltest.Run(t, r, rows[i])[0])
			}
			for s := range steps - 1 {
				for i, tok := range modeltest.Run(t, r, rows...) {
					if want := alone[i][s+1]; tok.ID != want.ID || math.Abs(float64(tok.Logprob-want.Logprob)) > 1e-5 {
						t.Fatalf("row %d, step %d: %+v, alone %+v", i, s+1, tok, want)
					}
					rows[i] = next(rows[i], tok)
				}
			}
			if m.Decoder.WholePrompt {
				if _, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{modeltest.LoggedRow(0, 40,
					[]int32{1, 2})}}); err == nil {
					t.Error("a second chunk of a prompt was taken")
				}
			}
			if m.Decoder.EncoderStates > 0 {
				if _, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{modeltest.LoggedRow(0, 0,
					[]int32{1, 2})}}); err == nil {
					t.Error("a prompt without its image was taken")
				}
			}
		})
	}
}
