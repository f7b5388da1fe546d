package model

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/modeltest"
)

// convDecoder is that of testdata/tiny-hf/lfm2_vl, as its config.json says.
var convDecoder = decoder.Config{
	Layers: 4, Hidden: 64, Intermediate: 64, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 100, MaxLen: 512,
	Rope: decoder.Rope{Theta: 1e6}, Eps: 1e-5, Activation: "silu", QKNorm: true, Tied: true,
	ShortConv: &decoder.ShortConv{Taps: 3, Layers: []bool{true, true, false, true}},
}

func openConvDecoder(t *testing.T) *graph.Weights {
	t.Helper()
	modeltest.StartLibrary(t)
	weights, err := safetensors.Open(modeltest.TinyDir("lfm2_vl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { weights.Close() })
	w, err := graph.NewWeights(weights, []graph.Prefix{
		{From: "model.language_model.embedding_norm.", To: "text.norm."},
		{From: "model.language_model.", To: "text.", Parts: []graph.Part{
			{From: ".operator_norm.", To: ".input_layernorm."}, {From: ".ffn_norm.", To: ".post_attention_layernorm."},
			{From: ".self_attn.out_proj.", To: ".self_attn.o_proj."},
			{From: ".self_attn.q_layernorm.", To: ".self_attn.q_norm."},
			{From: ".self_attn.k_layernorm.", To: ".self_attn.k_norm."},
			{From: ".feed_forward.w1.", To: ".mlp.gate_proj."}, {From: ".feed_forward.w3.", To: ".mlp.up_proj."},
			{From: ".feed_forward.w2.", To: ".mlp.down_proj."},
		}},
	}...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// convRequests are prompts that begin alike up to any position, and end otherwise.
func convRequests(rng *rand.Rand, n int) []batching.Request {
	ids := func(n int) []int32 {
		list := make([]int32, n)
		for i := range list {
			list[i] = int32(3 + rng.IntN(12)) // few, so that drafts are right at times
		}
		return list
	}
	begun := [][]int32{ids(150), ids(130), ids(64)}
	list := make([]batching.Request, n)
	for i := range list {
		b := begun[rng.IntN(len(begun))]
		list[i] = batching.Request{ID: fmt.Sprint(i), MaxTokens: 4 + rng.IntN(60)}
		list[i].Input.IDs = slices.Concat(b[:rng.IntN(len(b)+1)], ids(1+rng.IntN(30)))
		list[i].Sampling = decoder.Sampling{Logprobs: true, Seed: uint64(i)}
	}
	return list
}

// A decoder with short convolutions gives each sequence the same bits alone and beside others, in chunks of any length,
// after a prefix of another's, after preemptions and with drafts.
func TestShortConvInEngine(t *testing.T) {
	for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
		t.Run(string(p), func(t *testing.T) { shortConvInEngine(t, openConvDecoder(t), p) })
	}
}

func shortConvInEngine(t *testing.T, w *graph.Weights, p graph.Precision) {
	const requests = 16
	if p.Quantized() {
		_, err := w.LoadQuantized(t.TempDir(), func(w *graph.Weights) error {
			_, err := convDecoder.Graph(w, p)
			return err
		})
		if errors.Is(err, graph.ErrSaturates) || errors.Is(err, graph.ErrNoInt4) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func(slots int) *decoder.HostRunner {
		o := decoder.OpenOptions{Slots: slots, MaxLen: tinyMaxLen, Precision: p, Session: ort.Options{Threads: 1}}
		r, err := decoder.OpenHost(convDecoder, w, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	list := convRequests(rand.New(rand.NewPCG(8, 9)), requests)
	alone := open(1)
	if !alone.Capacity().Exact {
		t.Skip("without own kernels nothing is promised of chunks of other lengths")
	}
	want := make([][]modeltest.Picked, requests)
	e, stop := runEngine(t, alone, batching.Options{NoPrefixCache: true, PrefillChunk: tinyMaxLen, MaxWaiting: 1})
	for i, r := range list {
		want[i] = receive(t, submit(t, e, r))
	}
	stop()
	many := open(6)
	for _, o := range []batching.Options{
		{PrefillChunk: 1}, {PrefillChunk: 5, NoPrefixCache: true}, {PrefillChunk: 13, Drafts: 3},
		{PrefillChunk: tinyMaxLen, NoPrefixCache: true}, {PrefillChunk: 7, KVTokens: tinyMaxLen, Drafts: 5},
		{PrefillChunk: 64, Drafts: 64}, {PrefillChunk: 100, KVTokens: 2 * tinyMaxLen},
	} {
		o.MaxWaiting = requests
		still := time.Now()
		o.Clock = func() time.Time { return still }
		e, stop := runEngine(t, many, o)
		streams := make([]*batching.Stream, requests)
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
		if o.KVTokens == tinyMaxLen && stats.Preemptions == 0 || !o.NoPrefixCache && stats.CachedTokens == 0 ||
			stats.CachedTokens%64 != 0 || o.Drafts > 0 && stats.RightDrafts == stats.DraftedTokens {
			t.Errorf("chunks of %d: the run did not do what it is for: %+v", o.PrefillChunk, stats)
		}
	}
}
