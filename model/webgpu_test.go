package model

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/runnertest"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/model/modeltest"
)

// An engine over the device gives what one over the processor does, for texts and images, greedy and sampled, beside
// others that come and go, from cached prefixes, after preemption.
func TestWebGPUEngine(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	const requests = 24
	rng := rand.New(rand.NewPCG(7, 8))
	list := make([]batching.Request, requests)
	for i := range list {
		list[i] = mixedRequest(rng, i, list[:i])
	}
	alone := openRunner(t, 1, graph.FP32)
	want := make([][]modeltest.Picked, requests)
	e, stop := runEngine(t, alone, batching.Options{NoPrefixCache: true, PrefillChunk: 64, MaxWaiting: 1})
	for i, r := range list {
		want[i] = receive(t, submit(t, e, r))
	}
	stop()

	many := openRunnerOn(t, 8, graph.FP32, o)
	for name, o := range map[string]batching.Options{
		"chunks of 7": {PrefillChunk: 7, NoPrefixCache: true},
		"prefixes":    {PrefillChunk: 64},
		"preemption":  {PrefillChunk: 64, KVTokens: many.Capacity().MaxLen},
	} {
		t.Run(name, func(t *testing.T) {
			o.MaxWaiting = requests
			e, stop := runEngine(t, many, o)
			streams := make([]*batching.Stream, requests)
			for i, r := range list {
				streams[i] = submit(t, e, r)
			}
			for i, s := range streams {
				got := receive(t, s)
				same := slices.EqualFunc(got, want[i], func(a, b modeltest.Picked) bool {
					return a.ID == b.ID && math.Abs(float64(a.Logprob-b.Logprob)) < 1e-3
				})
				if !same {
					t.Errorf("request %d gives\n%v, on the processor\n%v", i, got, want[i])
				}
			}
			if s := e.Stats(); o.KVTokens > 0 && s.Preemptions == 0 {
				t.Errorf("%+v, want preemptions", s)
			}
			stop()
		})
	}
}

// Every way in which a sequence can be moved, while it is staged and while it is not, leaves it and the other as they
// were.
func TestWebGPUMoves(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	cpu, device := openRunner(t, 4, graph.FP32), openRunnerOn(t, 4, graph.FP32, o)
	rng := rand.New(rand.NewPCG(9, 10))
	// more and less than a block of positions, and none a multiple
	a, b := modeltest.RandomPrompt(rng, 150), modeltest.RandomPrompt(rng, 70)
	for _, m := range []struct {
		name         string
		first, later int // the slots of a, and of b that is run after it and so is staged
		move         decoder.Move
	}{
		{"a staged one into a gap", 1, 3, decoder.Move{From: 3, To: 0, Len: len(b)}},
		{"one that is not staged into a gap", 3, 1, decoder.Move{From: 3, To: 0, Len: len(a)}},
		{"an exchange from a staged one", 1, 2, decoder.Move{From: 2, To: 1, Len: len(b), Back: len(a)}},
		{"an exchange to a staged one", 2, 1, decoder.Move{From: 2, To: 1, Len: len(a), Back: len(b)}},
		{"a copy over a staged one", 2, 1, decoder.Move{From: 2, To: 1, Len: len(a)}},
		{"an exchange of two that are not staged", 0, 3, decoder.Move{From: 3, To: 0, Len: len(b), Back: len(a)}},
	} {
		t.Run(m.name, func(t *testing.T) {
			var got [2][]modeltest.Picked
			for i, r := range []decoder.Runner{cpu, device} {
				modeltest.Run(t, r, modeltest.LoggedRow(m.first, 0, a))
				modeltest.Run(t, r, modeltest.LoggedRow(m.later, 0, b))
				if m.name == "an exchange of two that are not staged" {
					modeltest.Run(t, r, modeltest.LoggedRow(1, 0, modeltest.RandomPrompt(rand.New(rand.NewPCG(1, 1)), 20)))
				}
				if _, err := r.Run(t.Context(), &decoder.Batch{Moves: []decoder.Move{m.move}}); err != nil {
					t.Fatal(err)
				}
				held := map[int]int{m.first: len(a), m.later: len(b)}
				from := held[m.move.From]
				if m.move.Back > 0 {
					held[m.move.From] = held[m.move.To]
				}
				held[m.move.To] = from
				for _, slot := range slices.Sorted(maps.Keys(held)) {
					got[i] = append(got[i], modeltest.Run(t, r, modeltest.LoggedRow(slot, held[slot], []int32{9, 10, 11}))...)
				}
				if n := held[0]; n > 0 { // decode steps read the cache itself
					got[i] = append(got[i], modeltest.Run(t, r, modeltest.LoggedRow(0, n+3, []int32{12}))...)
				}
			}
			for i, p := range got[1] {
				if p.ID != got[0][i].ID || math.Abs(float64(p.Logprob-got[0][i].Logprob)) > 1e-3 {
					t.Errorf("%v, on the processor %v", got[1], got[0])
					break
				}
			}
		})
	}
}

// The decoder whose KV cache lies on a device keeps the contract that the engine relies on.
func TestWebGPUConforms(t *testing.T) {
	runnertest.Conform(t, openRunnerOn(t, 4, graph.FP32, modeltest.OnWebGPU(t)), 8, 708)
}

// What the attention kernel would answer with a crash or with silently wrong numbers is refused before it.
func TestWebGPURefusedBatches(t *testing.T) {
	refusedBatches(t, openRunnerOn(t, 2, graph.FP32, modeltest.OnWebGPU(t)))
}

// A decode step sends each row's id, length and place and gets a token and its logit back, however long the context is.
// Top-k brings the most likely tokens; a request that needs all logits brings those of the step.
func TestWebGPUBytes(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	const slots = 4
	const in, out = 4 + 4 + 8, 4 + 8 // input_ids, seqlens_k, sample_rows; best_logits, best_ids
	r := openRunnerOn(t, slots, graph.FP32, o)
	d := r.(*decoder.DeviceRunner).Device()
	vocab := int64(768)
	for _, context := range []int{10, 400} {
		for i := range slots {
			modeltest.Run(t, r, modeltest.LoggedRow(i, 0, modeltest.RandomPrompt(rand.New(rand.NewPCG(3, uint64(i))), context)))
		}
		for name, c := range map[string]struct {
			decoder.Sampling
			in, out int64
		}{
			"greedy":   {decoder.Sampling{}, in, out},
			"top-k":    {decoder.Sampling{Temperature: 0.5, TopK: 5}, in, out + 64*(4+8)},
			"logprobs": {decoder.Sampling{Logprobs: true}, in, out + 4*vocab},
		} {
			rows := make([]decoder.Row, slots)
			for i := range rows {
				rows[i] = decoder.Row{Slot: i, Past: context, IDs: []int32{9}, Sampler: decoder.NewSampler(c.Sampling)}
			}
			for range 2 { // the first brings what was staged to its slot
				before := d.Stats()
				if _, err := r.Run(t.Context(), &decoder.Batch{Rows: rows}); err != nil {
					t.Fatal(err)
				}
				s := d.Stats()
				s.ToDevice, s.ToHost = s.ToDevice-before.ToDevice, s.ToHost-before.ToHost
				if s.ToHost != slots*c.out {
					t.Errorf("%s, context %d: %d bytes from the device, want %d for each of %d rows", name, context, s.ToHost, c.out, slots)
				}
				if s.ToDevice == slots*c.in {
					break
				}
				t.Logf("%s, context %d: %d bytes to the device", name, context, s.ToDevice)
			}
			before := d.Stats()
			if _, err := r.Run(t.Context(), &decoder.Batch{Rows: rows}); err != nil {
				t.Fatal(err)
			}
			if got := d.Stats().ToDevice - before.ToDevice; got != slots*c.in {
				t.Errorf("%s, context %d: %d bytes to the device, want %d for each of %d rows", name, context, got, c.in, slots)
			}
		}
	}
}

// Sixteen callers, each with one request after the other, some with images and some that leave, for as long as
// MMSERVE_TEST_STREAMS says.
func TestWebGPUStreams(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	last := 20 * time.Second
	if text := os.Getenv("MMSERVE_TEST_STREAMS"); text != "" {
		var err error
		if last, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	const callers = 16
	r := openRunnerOn(t, callers, graph.FP32, o)
	e, _ := runEngine(t, r, batching.Options{PrefillChunk: 64, MaxWaiting: callers})
	end := time.Now().Add(last)
	var work sync.WaitGroup
	var tokens atomic.Int64
	for i := range callers {
		work.Go(func() {
			rng := rand.New(rand.NewPCG(11, uint64(i)))
			for n := 0; time.Now().Before(end); n++ {
				request := mixedRequest(rng, 1000*i+n, nil)
				request.Sampling.Logprobs = n%3 == 0
				ctx, leave := context.WithCancel(t.Context())
				ticket, err := e.Acquire()
				if err != nil {
					t.Error(err)
					leave()
					return
				}
				s, err := e.Submit(ctx, ticket, request)
				for err == nil {
					var event batching.Event
					if event, err = s.Next(ctx); err == nil {
						err = event.Err
					}
					if event.HasToken {
						tokens.Add(1)
					}
					if event.Finish != batching.Running || rng.IntN(200) == 0 {
						break
					}
				}
				leave()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	t.Logf("%d tokens in %v", tokens.Load(), last)
	if tokens.Load() < callers {
		t.Error("hardly a token")
	}
}

// What the memory plan says of the KV cache is what the device holds for it.
func TestWebGPUMemoryPlan(t *testing.T) {
	o := modeltest.OnWebGPU(t)
	m, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const slots, maxLen = 3, 500
	for _, p := range []graph.Precision{graph.FP32, graph.FP16} {
		r, err := m.OpenDecoder(decoder.OpenOptions{Slots: slots, MaxLen: maxLen, Precision: p, Session: o})
		if err != nil {
			t.Fatal(err)
		}
		d := r.(*decoder.DeviceRunner).Device()
		l := m.MemoryPlan(p, slots, maxLen, 64)
		held := d.Stats().Held
		if kv := (slots + 1) * l.Slot; held < kv || held > kv+l.Decoder {
			t.Errorf("%s: the device holds %d bytes, want %d for keys and values and no more than %d beside them", p, held, kv, l.Decoder)
		}
		if err := r.Close(); err != nil || d.Stats().Held != 0 {
			t.Errorf("%s: the device holds %d bytes after Close, %v", p, d.Stats().Held, err)
		}
	}
}
