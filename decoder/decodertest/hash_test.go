package decodertest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
)

func run(t *testing.T, h *Hash, b decoder.Batch) []decoder.Token {
	t.Helper()
	tokens, err := h.Run(context.Background(), &b)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(tokens)
}

// Prefill in chunks, a move, a decode step beside another sequence: the tokens are those of Alone.
func TestHashStepsLikeAlone(t *testing.T) {
	span := []fusion.Span{{Start: 1, Len: 3, Offset: 2, Digest: [32]byte{7}}}
	in := fusion.Input{IDs: []int32{1, 2, 3, 4, 5}, Spans: span}
	sampling := decoder.Sampling{Temperature: 1, Seed: 5}
	h := NewHash(3, 20, 1000)
	want, err := h.Alone(in, sampling, 3)
	if err != nil || len(want) != 3 {
		t.Fatal(want, err)
	}
	s := decoder.NewSampler(sampling)
	run(t, h, decoder.Batch{Rows: []decoder.Row{{Slot: 0, IDs: []int32{9},
		Sampler: decoder.NewSampler(decoder.Sampling{})}}})
	run(t, h, decoder.Batch{Rows: []decoder.Row{{Slot: 2, IDs: in.IDs[:3], Spans: span}}})
	got := run(t, h, decoder.Batch{Rows: []decoder.Row{{Slot: 2, Past: 3, IDs: in.IDs[3:], Spans: span, Sampler: s}}})
	got = append(got, run(t, h, decoder.Batch{
		Moves: []decoder.Move{{From: 2, To: 1, Len: 5}},
		Rows: []decoder.Row{
			{Slot: 0, Past: 1, IDs: []int32{8}},
			{Slot: 1, Past: 5, IDs: []int32{got[0].ID}, Spans: span, Sampler: s},
		},
	})...)
	got = append(got, run(t, h, decoder.Batch{Rows: []decoder.Row{
		{Slot: 0, Past: 2, IDs: []int32{8}},
		{Slot: 1, Past: 6, IDs: []int32{got[1].ID}, Spans: span, Sampler: s},
	}})...)
	if !slices.Equal(got, want) {
		t.Errorf("in steps %v, alone %v", got, want)
	}
}

// What a wrong scheduler would do changes the tokens.
func TestHashTellsContentsApart(t *testing.T) {
	const vocab = 1 << 16 // so that two hashes hardly ever agree
	base := fusion.Input{IDs: []int32{1, 2, 3, 4}, Spans: []fusion.Span{{Start: 1, Len: 2, Digest: [32]byte{7}}}}
	h := NewHash(1, 9, vocab)
	want, _ := h.Alone(base, decoder.Sampling{}, 1)
	for name, in := range map[string]fusion.Input{
		"id":           {IDs: []int32{1, 2, 3, 5}, Spans: base.Spans},
		"order":        {IDs: []int32{4, 2, 3, 1}, Spans: base.Spans},
		"length":       {IDs: []int32{1, 2, 3}, Spans: base.Spans},
		"image":        {IDs: base.IDs, Spans: []fusion.Span{{Start: 1, Len: 2, Digest: [32]byte{8}}}},
		"patch offset": {IDs: base.IDs, Spans: []fusion.Span{{Start: 1, Len: 2, Offset: 2, Digest: [32]byte{7}}}},
		"no image":     {IDs: base.IDs},
	} {
		if got, _ := h.Alone(in, decoder.Sampling{}, 1); got[0].ID == want[0].ID {
			t.Errorf("another %s gives the same token", name)
		}
	}
}

func TestHashRefuses(t *testing.T) {
	row := func(slot, past, ids int) decoder.Row {
		return decoder.Row{Slot: slot, Past: past, IDs: make([]int32, ids)}
	}
	rows := func(r ...decoder.Row) decoder.Batch { return decoder.Batch{Rows: r} }
	for name, b := range map[string]decoder.Batch{
		"no such slot":                 rows(row(3, 0, 1)),
		"no ids":                       rows(row(0, 4, 0)),
		"more past than written":       rows(row(0, 5, 1)),
		"past the end":                 rows(row(0, 4, 5)),
		"a hole in a decode step":      rows(row(0, 4, 1), row(2, 4, 1)),
		"a chunk in a decode step":     rows(row(0, 4, 1), row(1, 4, 2)),
		"a new one in a decode step":   rows(row(0, 4, 1), row(1, 0, 1)),
		"a move of more than is there": {Moves: []decoder.Move{{From: 0, To: 1, Len: 5}}},
		"a move of nothing":            {Moves: []decoder.Move{{From: 0, To: 1}}},
		"a move to itself":             {Moves: []decoder.Move{{From: 1, To: 1, Len: 2}}},
		"a move out of range":          {Moves: []decoder.Move{{From: 0, To: 3, Len: 2}}},
	} {
		h := NewHash(3, 8, 10)
		for slot := range 3 {
			run(t, h, rows(row(slot, 0, 4)))
		}
		if _, err := h.Run(context.Background(), &b); !errors.Is(err, decoder.ErrDevice) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
