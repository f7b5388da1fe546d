package model

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/model/modeltest"
)

// benchStreams has an engine generate n answers that do not end, each after a prompt of 64 tokens.
func benchStreams(b *testing.B, e *batching.Engine, n int) []*batching.Stream {
	streams := make([]*batching.Stream, n)
	for i := range streams {
		ids := benchIDs(64)
		ids[0] = int32(i)
		streams[i] = submit(b, e, batching.Request{Input: fusion.Input{IDs: ids}, MaxTokens: 1 << 20})
	}
	for _, s := range streams {
		benchToken(b, s)
	}
	return streams
}

func benchToken(b *testing.B, s *batching.Stream) {
	b.Helper()
	if e, err := s.Next(b.Context()); err != nil || !e.HasToken {
		b.Error(e, err)
	}
}

func benchEngine(b *testing.B, r batching.Runner, o batching.Options) *batching.Engine {
	e, _ := runEngine(b, r, o)
	return e
}

// stamped notes when each decode step of so many rows ended.
type stamped struct {
	batching.Runner
	rows int

	mu   sync.Mutex
	ends []time.Time
}

func (s *stamped) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	tokens, err := s.Runner.Run(ctx, b)
	if len(b.Rows) == s.rows {
		s.mu.Lock()
		s.ends = append(s.ends, time.Now())
		s.mu.Unlock()
	}
	return tokens, err
}

// gaps are the times between the steps so far, in ascending order; the next call begins anew.
func (s *stamped) gaps() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []time.Duration
	for i := 1; i < len(s.ends); i++ {
		list = append(list, s.ends[i].Sub(s.ends[i-1]))
	}
	s.ends = nil
	slices.Sort(list)
	return list
}

// BenchmarkLongPromptArrives takes the gaps between tokens of 8 running streams, with nothing else to do and while a
// prompt of 2,000 tokens is read in: the 99th percentile of these over the median of those, by the share of the time
// that prompts get.
func BenchmarkLongPromptArrives(b *testing.B) {
	for _, share := range []float64{0.33, 0.5, 0.67} {
		b.Run(fmt.Sprintf("share=%.2f", share), func(b *testing.B) {
			r := &stamped{Runner: openBenchDecoder(b, 9), rows: 8}
			e := benchEngine(b, r, batching.Options{NoPrefixCache: true, PrefillShare: share})
			streams := benchStreams(b, e, 8)
			var idle, busy []time.Duration
			var ttft time.Duration
			for b.Loop() {
				r.gaps()
				time.Sleep(3 * time.Second)
				idle = append(idle, r.gaps()...)
				began := time.Now()
				s := submit(b, e, batching.Request{Input: fusion.Input{IDs: benchIDs(2000)}, MaxTokens: 1})
				benchToken(b, s)
				ttft += time.Since(began)
				busy = append(busy, r.gaps()...)
			}
			slices.Sort(idle)
			slices.Sort(busy)
			median := idle[len(idle)/2]
			b.ReportMetric(float64(median.Microseconds())/1000, "ms/idle-p50")
			b.ReportMetric(float64(idle[len(idle)*99/100])/float64(median), "idle-p99/idle-p50")
			b.ReportMetric(float64(busy[len(busy)/2])/float64(median), "busy-p50/idle-p50")
			b.ReportMetric(float64(busy[len(busy)*99/100])/float64(median), "busy-p99/idle-p50")
			b.ReportMetric(ttft.Seconds()/float64(b.N), "s/TTFT")
			for _, s := range streams {
				s.Cancel()
			}
		})
	}
}

// BenchmarkSecondTurn is the time to the first token of another question about the same image, in a prompt of 900
// tokens, with the prefix cache and without.
func BenchmarkSecondTurn(b *testing.B) {
	r := openBenchDecoder(b, 2)
	in := fusion.Input{IDs: benchIDs(880)}
	span := fusion.Span{Start: 10, Len: 832, Digest: [32]byte{1}, Patches: make([]float32, 832*576)}
	in.Spans = []fusion.Span{span}
	var took [2]time.Duration
	for i, cached := range []bool{false, true} {
		b.Run(map[bool]string{false: "cold", true: "cached"}[cached], func(b *testing.B) {
			e := benchEngine(b, r, batching.Options{NoPrefixCache: !cached})
			ask := func(turn int) {
				ids := append(slices.Clone(in.IDs), benchIDs(20 + turn%7)[turn%7:]...)
				benchToken(b, submit(b, e, batching.Request{Input: fusion.Input{IDs: ids, Spans: in.Spans}, MaxTokens: 1}))
			}
			ask(0)
			turn := 1
			for b.Loop() {
				ask(turn)
				turn++
			}
			took[i] = b.Elapsed() / time.Duration(b.N)
			if cached && took[0] > 0 {
				b.ReportMetric(float64(took[1])/float64(took[0]), "of-cold")
			}
		})
	}
}

// BenchmarkOutsideRun is the part of a decode step of 8 rows that is not spent within ONNX Runtime.
func BenchmarkOutsideRun(b *testing.B) {
	run, ok := openBenchDecoder(b, 8).(*decoder.HostRunner)
	if !ok {
		b.Skip("the folder's graphs are run as they are")
	}
	e := benchEngine(b, run, batching.Options{NoPrefixCache: true})
	streams := benchStreams(b, e, 8)
	steps, busy := e.Stats().Steps, run.Busy()
	began := time.Now()
	for b.Loop() {
		for _, s := range streams {
			benchToken(b, s)
		}
	}
	took := time.Since(began)
	b.ReportMetric(100*float64(took-(run.Busy()-busy))/float64(took), "%-outside")
	b.ReportMetric(float64(took.Microseconds())/1000/float64(e.Stats().Steps-steps), "ms/step")
	for _, s := range streams {
		s.Cancel()
	}
}

// BenchmarkDraftWidth is what more positions a row cost: a decode step of so many rows and drafts, all of them right
// or not.
func BenchmarkDraftWidth(b *testing.B) {
	r := openBenchDecoder(b, 8)
	if !r.Capacity().Exact {
		b.Skip("no drafts without own kernels")
	}
	ids := benchIDs(300)
	for slot := range 8 {
		runBench(b, r, modeltest.GreedyRow(slot, 0, ids))
	}
	for _, c := range []struct{ rows, drafts int }{{1, 0}, {1, 2}, {1, 4}, {1, 7}, {2, 0}, {2, 4}, {4, 0}, {4, 3}} {
		b.Run(fmt.Sprintf("rows=%d/drafts=%d", c.rows, c.drafts), func(b *testing.B) {
			rows := make([]decoder.Row, c.rows)
			for i := range rows {
				rows[i] = modeltest.GreedyRow(i, len(ids), ids[:1+c.drafts])
				rows[i].Drafts = c.drafts
			}
			for b.Loop() {
				runBench(b, r, rows...)
			}
		})
	}
}
