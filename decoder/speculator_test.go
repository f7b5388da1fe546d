package decoder_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
)

// answer decodes a sequence in slot 0 of r, with up to most drafts a step, and says how many steps that took and how
// many drafts were right.
func answer(t *testing.T, r decoder.Stepper, in fusion.Input, s decoder.Sampling, n, most int) (ids []int32,
	steps, right int) {
	t.Helper()
	sampler := decoder.NewSampler(s)
	sampler.Prompt(in.IDs)
	all := slices.Clone(in.IDs)
	row := decoder.Row{IDs: in.IDs, Spans: in.Spans, Sampler: sampler}
	for len(ids) < n {
		b := decoder.Batch{Rows: []decoder.Row{row}}
		tokens, err := r.Run(t.Context(), &b)
		if err != nil {
			t.Fatal(err)
		}
		steps++
		right += b.Rows[0].Right(tokens)
		for _, token := range tokens {
			all, ids = append(all, token.ID), append(ids, token.ID)
		}
		past := len(all) - 1
		row = decoder.Row{Past: past, IDs: all[past:], Spans: in.Spans, Sampler: sampler}
		if most > 0 {
			row.Propose = &decoder.Proposal{Most: most, Known: all[:past]}
		}
	}
	return ids[:n], steps, right
}

// What a sequence gives does not depend on the draft model, and the more they agree, the fewer steps it takes: greedy,
// drawn with the same random numbers, with penalties, over images that the draft sees and that it does not.
func TestSpeculatorIsExact(t *testing.T) {
	const n, vocab = 60, 200
	prompt := []int32{5, 9, 2, 77, 31, 8, 4, 4, 19, 3}
	for _, s := range []decoder.Sampling{
		{}, {Temperature: 1, Seed: 3}, {Temperature: 0.7, TopK: 20, Seed: 4}, {Temperature: 0.9, TopP: 0.8, Seed: 5},
		{RepetitionPenalty: 1.3, FrequencyPenalty: 0.2, PresencePenalty: 0.1, Temperature: 0.8, Seed: 6},
	} {
		for _, in := range []fusion.Input{
			{IDs: prompt}, {IDs: prompt, Spans: []fusion.Span{
				{Start: 2, Len: 3, Digest: [32]byte{1}}, {Start: 6, Len: 1, Digest: [32]byte{2}},
			}},
		} {
			plain := decodertest.NewHash(1, 128, vocab)
			want, _, _ := answer(t, plain, in, s, n, 0)
			for _, differs := range []int{0, 4, 1} {
				for _, patches := range []bool{true, false} {
					name := fmt.Sprintf("temperature=%v/images=%d/differs=%d/patches=%t", s.Temperature, len(in.Spans), differs,
						patches)
					t.Run(name, func(t *testing.T) {
						draft := decodertest.NewHash(1, 128, vocab)
						draft.Mixed, draft.Differs = true, differs
						r, err := decoder.NewSpeculator(decodertest.NewHash(1, 128, vocab), draft, vocab, patches)
						if err != nil {
							t.Fatal(err)
						}
						got, steps, right := answer(t, r, in, s, n, 4)
						if !slices.Equal(got, want) {
							t.Errorf("with a draft model %v, without %v", got, want)
						}
						same := differs == 0 && (patches || len(in.Spans) == 0)
						if same && steps > 1+(n+4)/5 || differs == 4 && patches && (right == 0 || steps < n/5+2) {
							t.Errorf("%d steps, %d right drafts", steps, right)
						}
					})
				}
			}
		}
	}
}

// failing is a draft model that cannot run rows.
type failing struct {
	*decodertest.Hash
	err error
}

func (f failing) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	if len(b.Rows) > 0 {
		return nil, f.err
	}
	return f.Hash.Run(ctx, b)
}

// A draft model that fails costs drafts, and nothing else, unless its device is lost.
func TestSpeculatorWithoutItsDraft(t *testing.T) {
	in := fusion.Input{IDs: []int32{1, 2, 3}}
	want, _, _ := answer(t, decodertest.NewHash(1, 64, 50), in, decoder.Sampling{}, 9, 0)
	draft := decodertest.NewHash(1, 64, 50)
	draft.Mixed = true
	r, err := decoder.NewSpeculator(decodertest.NewHash(1, 64, 50), failing{draft, errors.New("out of order")}, 50, false)
	if err != nil {
		t.Fatal(err)
	}
	got, steps, _ := answer(t, r, in, decoder.Sampling{}, 9, 4)
	if !slices.Equal(got, want) || steps != 9 {
		t.Errorf("%v in %d steps, want %v", got, steps, want)
	}
	lost, err := decoder.NewSpeculator(decodertest.NewHash(1, 64, 50), failing{draft, decoder.ErrDevice}, 50, false)
	if err != nil {
		t.Fatal(err)
	}
	row := decoder.Row{IDs: []int32{1}, Sampler: decoder.NewSampler(decoder.Sampling{})}
	row.Propose = &decoder.Proposal{Most: 2}
	_, err = lost.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{row}})
	if !errors.Is(err, decoder.ErrDevice) {
		t.Errorf("a lost device is %v", err)
	}
}

// Models that cannot check drafts, or make them, are refused.
func TestSpeculatorRefuses(t *testing.T) {
	good, mixed := decodertest.NewHash(2, 64, 50), decodertest.NewHash(2, 64, 50)
	mixed.Mixed = true
	inexact, few := decodertest.NewHash(2, 64, 50), decodertest.NewHash(1, 64, 50)
	inexact.Chunk, few.Mixed = 8, true
	for want, pair := range map[string][2]decoder.Stepper{
		"checks no drafts": {inexact, mixed}, "different lengths": {good, good}, "1 slots": {good, few},
	} {
		if _, err := decoder.NewSpeculator(pair[0], pair[1], 50, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
