package model

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/model/modeltest"
)

// On a device the positions of images follow their maps, and features for later layers are added, as on the processor:
// whole, in chunks, and in steps beside others.
func TestWebGPUImagePositions(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	d := openTiny(t, "qwen3_vl")
	open := decoder.OpenOptions{Slots: 3, MaxLen: tinyMaxLen, Session: o}
	r, err := decoder.OpenDevice(d.config, d.weights, open)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if off := d.farthest(t, r, d.input); !(off <= 1e-4) {
		t.Errorf("logits are off by %.2g of the largest", off)
	}
	first := d.input.Spans[0]
	prompts := []fusion.Input{d.input, {IDs: d.input.IDs[:7+first.Start+first.Len], Spans: d.input.Spans[:1]},
		{IDs: modeltest.RandomPrompt(rand.New(rand.NewPCG(1, 2)), 9)}}
	for i := range prompts[2].IDs {
		prompts[2].IDs[i] %= 80
	}
	alone, together := modeltest.Continuations(t, r, prompts, len(d.ids))
	for i, id := range d.ids {
		if alone[0][i].ID != id || together[0][i].ID != id {
			t.Fatalf("greedy token %d is %d alone and %d together, want %d", i, alone[0][i].ID, together[0][i].ID, id)
		}
	}
	for i := range prompts {
		if err := modeltest.SamePicks(together[i], alone[i], 1e-3); err != nil {
			t.Errorf("prompt %d together: %v", i, err)
		}
	}
	for _, chunk := range []int{1, 5, 16} {
		row, at := modeltest.GreedyRow(0, 0, nil), 0
		row.Spans = d.input.Spans
		var ids []int32
		for ids == nil {
			row.Past, row.IDs = at, d.input.IDs[at:min(at+chunk, len(d.input.IDs))]
			if at += len(row.IDs); at == len(d.input.IDs) {
				ids = append(ids, modeltest.Greedy(t, r, row))
				continue
			}
			more := row
			more.Sampler = nil
			if _, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{more}}); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(ids, d.ids[:1]) {
			t.Errorf("chunks of %d: %v, want %v", chunk, ids, d.ids[:1])
		}
	}
}
