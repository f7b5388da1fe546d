package model

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

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
	quantise(t, w, convDecoder, p)
	list := convRequests(rand.New(rand.NewPCG(8, 9)), 16)
	open := func(slots int) decoder.Runner {
		o := decoder.OpenOptions{Slots: slots, MaxLen: tinyMaxLen, Precision: p, Session: ort.Options{Threads: 1}}
		r, err := decoder.OpenHost(convDecoder, w, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	ways := append(slices.Clone(everyWay), batching.Options{PrefillChunk: 64, Drafts: 64},
		batching.Options{PrefillChunk: 100, KVTokens: 2 * tinyMaxLen})
	for i, stats := range sameInEngine(t, list, open, ways) {
		// A state is kept every 64 positions. Where every draft is right, none was taken back.
		if stats.CachedTokens%64 != 0 || ways[i].Drafts > 0 && stats.RightDrafts == stats.DraftedTokens {
			t.Errorf("%+v: the run did not do what it is for: %+v", ways[i], stats)
		}
	}
}
