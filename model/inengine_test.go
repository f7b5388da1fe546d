package model

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/model/modeltest"
)

// everyWay are chunks of any length, with and without prefixes of others, drafts and preemptions.
var everyWay = []batching.Options{
	{PrefillChunk: 1}, {PrefillChunk: 5, NoPrefixCache: true}, {PrefillChunk: 13, Drafts: 3},
	{PrefillChunk: tinyMaxLen, NoPrefixCache: true}, {PrefillChunk: 7, KVTokens: tinyMaxLen, Drafts: 5},
}

// quantise makes the weights of a precision, or skips the test where there is none of it.
func quantise(t *testing.T, w *graph.Weights, c decoder.Config, p graph.Precision) {
	t.Helper()
	if !p.Quantized() {
		return
	}
	_, err := w.LoadQuantized(t.TempDir(), func(w *graph.Weights) error {
		_, err := c.Graph(w, p)
		return err
	})
	if errors.Is(err, graph.ErrSaturates) || errors.Is(err, graph.ErrNoInt4) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sameInEngine holds that requests get the same bits alone, and all at once in each of the ways. It gives what the
// engine counted in each.
func sameInEngine(t *testing.T, list []batching.Request, open func(slots int) decoder.Runner,
	ways []batching.Options) (counted []batching.Stats) {
	t.Helper()
	alone := open(1)
	if !alone.Capacity().Exact {
		t.Skip("without own kernels nothing is promised of chunks of other lengths")
	}
	want := make([][]modeltest.Picked, len(list))
	e, stop := runEngine(t, alone, batching.Options{NoPrefixCache: true, PrefillChunk: tinyMaxLen, MaxWaiting: 1})
	for i, r := range list {
		want[i] = receive(t, submit(t, e, r))
	}
	stop()
	many := open(6)
	for _, o := range ways {
		o.MaxWaiting = len(list)
		still := time.Now()
		o.Clock = func() time.Time { return still }
		e, stop := runEngine(t, many, o)
		streams := make([]*batching.Stream, len(list))
		for i, r := range list {
			streams[i] = submit(t, e, r)
		}
		for i, s := range streams {
			if got := receive(t, s); !slices.Equal(got, want[i]) {
				t.Errorf("chunks of %d: request %d gives\n%v, alone\n%v", o.PrefillChunk, i, got, want[i])
			}
		}
		stats := e.Stats()
		stop()
		if o.KVTokens == tinyMaxLen && stats.Preemptions == 0 || !o.NoPrefixCache && stats.CachedTokens == 0 {
			t.Errorf("chunks of %d: the run did not do what it is for: %+v", o.PrefillChunk, stats)
		}
		counted = append(counted, stats)
	}
	return counted
}
