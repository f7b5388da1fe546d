package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model/export/exporttest"
	"github.com/mmserve/mmserve/model/modeltest"
	"golang.org/x/sys/unix"
)

// The benchmarks of this file run the checkpoint that MMSERVE_BENCH_MODEL names, at MMSERVE_BENCH_PRECISION (int8) and
// with MMSERVE_BENCH_THREADS threads (one per processor), on the execution provider MMSERVE_BENCH_PROVIDER (cpu).
// MMSERVE_BENCH_ROWS lists the numbers of rows that decode together.
func openBench(b *testing.B) (*Model, graph.Precision, ort.Options) {
	dir := os.Getenv("MMSERVE_BENCH_MODEL")
	if dir == "" {
		b.Skip("set MMSERVE_BENCH_MODEL to a model folder")
	}
	p := graph.INT8
	if s := os.Getenv("MMSERVE_BENCH_PRECISION"); s != "" {
		p = graph.Precision(s)
	}
	threads, _ := strconv.Atoi(os.Getenv("MMSERVE_BENCH_THREADS"))
	modeltest.StartLibrary(b)
	m, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	if p != graph.FP32 {
		if _, err := m.LoadQuantized(os.TempDir(), p, p); err != nil {
			b.Fatal(err)
		}
	}
	o := ort.Options{Threads: threads}
	if s := os.Getenv("MMSERVE_BENCH_PROVIDER"); s != "" {
		if o.Provider, err = ort.ParseProvider(s); err != nil {
			b.Fatal(err)
		}
	}
	return m, p, o
}

// BenchmarkTower encodes one tile.
func BenchmarkTower(b *testing.B) {
	m, p, o := openBench(b)
	tower, err := m.OpenTower(p, o)
	if err != nil {
		b.Fatal(err)
	}
	defer tower.Close()
	for b.Loop() {
		if err := tower.Run(b.Context(), 1); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "images/s")
	b.ReportMetric(towerWork(m)/1e9, "GFLOP/op")
}

// towerWork is the number of additions and multiplications that the tower needs for a tile.
func towerWork(m *Model) float64 {
	t, n := m.Tower, float64(m.Tower.Patches())
	h, i := float64(t.Hidden), float64(t.Intermediate)
	return 2*n*h*float64(3*t.PatchSize*t.PatchSize) + float64(t.Layers)*(2*n*(4*h*h+2*h*i)+4*n*n*h)
}

// decoderWeights is the number of weights that a decode step reads.
func decoderWeights(m *Model) float64 {
	d := m.Decoder
	return float64(d.Layers*d.Hidden*(2*(d.Heads+d.KVHeads)*d.HeadDim+3*d.Intermediate) + d.Hidden*d.Vocab)
}

// BenchmarkPrefill runs one whole prompt; BenchmarkDecode one decode step of rows that have 300 positions each.
func BenchmarkPrefill(b *testing.B) {
	r, m := openShortDecoder(b, 1)
	for _, n := range []int{32, 128, 256} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			ids := benchIDs(n)
			for b.Loop() {
				runBench(b, r, modeltest.GreedyRow(0, 0, ids))
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "tokens/s")
			b.ReportMetric(decoderWeights(m)/1e6, "Mweights")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	counts := []int{1, 2, 4, 8, 16}
	if s := os.Getenv("MMSERVE_BENCH_ROWS"); s != "" {
		counts = nil
		for text := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				b.Fatalf("MMSERVE_BENCH_ROWS %q: want numbers from 1 on, as 1,8,32", s)
			}
			counts = append(counts, n)
		}
	}
	most := slices.Max(counts)
	r, m := openShortDecoder(b, most)
	ids := benchIDs(300)
	for slot := range most {
		runBench(b, r, modeltest.GreedyRow(slot, 0, ids))
	}
	for _, n := range counts {
		b.Run(fmt.Sprintf("rows=%d", n), func(b *testing.B) {
			rows := make([]decoder.Row, n)
			for i := range rows {
				rows[i] = modeltest.GreedyRow(i, len(ids), ids[i:i+1])
			}
			for b.Loop() {
				runBench(b, r, rows...)
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "tokens/s")
			b.ReportMetric(decoderWeights(m)/1e6, "Mweights")
			b.ReportMetric(float64(m.KVBytesPerToken())*float64(len(ids))/1e6, "KV-MB/row")
		})
	}
}

// BenchmarkDecodeWhileEncoding runs decode steps of 8 rows while the tower encodes one tile after the other: how long
// they take, as multiples of the median of steps with nothing else to do, and how long a tile takes meanwhile.
func BenchmarkDecodeWhileEncoding(b *testing.B) {
	m, p, o := openBench(b)
	tower, err := m.OpenTower(p, o)
	if err != nil {
		b.Fatal(err)
	}
	defer tower.Close()
	r := openBenchDecoder(b, 8)
	ids := benchIDs(300)
	rows := make([]decoder.Row, 8)
	for i := range rows {
		runBench(b, r, modeltest.GreedyRow(i, 0, ids))
		rows[i] = modeltest.GreedyRow(i, len(ids), ids[i:i+1])
	}
	step := func() time.Duration {
		began := time.Now()
		runBench(b, r, rows...)
		return time.Since(began)
	}
	idle := make([]time.Duration, 300)
	for i := range idle {
		idle[i] = step()
	}
	slices.Sort(idle)
	tiles, stop, done := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if err := tower.Run(b.Context(), 1); err != nil {
					b.Error(err)
					return
				}
				tiles++
			}
		}
	}()
	var busy []time.Duration
	for b.Loop() {
		busy = append(busy, step())
	}
	close(stop)
	<-done
	slices.Sort(busy)
	median := float64(idle[len(idle)/2])
	b.ReportMetric(median/1e6, "ms/idle-p50")
	b.ReportMetric(float64(busy[len(busy)/2])/median, "busy-p50/idle-p50")
	b.ReportMetric(float64(idle[len(idle)*99/100])/median, "idle-p99/idle-p50")
	b.ReportMetric(float64(busy[len(busy)*99/100])/float64(idle[len(idle)*99/100]), "busy-p99/idle-p99")
	b.ReportMetric(b.Elapsed().Seconds()*1000/max(float64(tiles), 1), "ms/tile")
}

func openBenchDecoder(b *testing.B, slots int) decoder.Runner {
	r, _ := openSlots(b, slots, 0)
	return r
}

// openShortDecoder has slots of 512 positions: a device's memory holds many of those.
func openShortDecoder(b *testing.B, slots int) (decoder.Runner, *Model) {
	return openSlots(b, slots, 512)
}

func openSlots(b *testing.B, slots, maxLen int) (decoder.Runner, *Model) {
	m, p, o := openBench(b)
	r, err := m.OpenDecoder(decoder.OpenOptions{Slots: slots, MaxLen: maxLen, Precision: p, Session: o})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r, m
}

func benchIDs(n int) []int32 {
	rng := rand.New(rand.NewPCG(1, 0))
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(rng.IntN(40_000))
	}
	return ids
}

func runBench(b *testing.B, r decoder.Runner, rows ...decoder.Row) {
	if _, err := r.Run(b.Context(), &decoder.Batch{Rows: rows}); err != nil {
		b.Fatal(err)
	}
}

// openExported opens an export of a model.
func openExported(b *testing.B, m *Model) *Model {
	b.Helper()
	s := exporttest.Source{Tower: m.Tower, Connector: m.Connector, Decoder: m.Decoder, Weights: m.Weights}
	e, err := Open(exporttest.Folder(b, m.files, m.Type, s, exporttest.Options{KeepLogits: true, External: true}))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	return e
}

// BenchmarkExportDecode runs decode steps from 300 positions on: of the checkpoint, and of an export of it, of rows
// that go on, which take the step before as it is, and of rows whose past has to be gathered.
func BenchmarkExportDecode(b *testing.B) {
	m, p, o := openBench(b)
	open := func(m *Model, p graph.Precision) decoder.Runner {
		r, err := m.OpenDecoder(decoder.OpenOptions{Slots: 16, MaxLen: 512, Precision: p, Session: o})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { r.Close() })
		return r
	}
	ids := benchIDs(300)
	own, exported := open(m, p), open(openExported(b, m), "")
	for slot := range 16 {
		runBench(b, own, modeltest.GreedyRow(slot, 0, ids))
		runBench(b, exported, modeltest.GreedyRow(slot, 0, ids))
	}
	for _, n := range []int{1, 4, 8, 16} {
		for _, k := range []struct {
			name string
			r    decoder.Runner
			step int
		}{{"checkpoint", own, 1}, {"going on", exported, 1}, {"gathered", exported, 0}} {
			b.Run(fmt.Sprintf("rows=%d/%s", n, k.name), func(b *testing.B) {
				rows := make([]decoder.Row, n)
				for i := range rows {
					rows[i] = modeltest.GreedyRow(i, len(ids), ids[i:i+1])
				}
				before := processTime(b)
				for b.Loop() {
					runBench(b, k.r, rows...)
					for i := range rows {
						if rows[i].Past += k.step; rows[i].Past == len(ids)+64 {
							rows[i].Past = len(ids)
						}
					}
				}
				b.ReportMetric(float64((processTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// processTime is what the process has had of the processors.
func processTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPrecision reports what a precision does to the distributions of next tokens: the mean Kullback-Leibler
// divergence from fp32's, in nats, and the share of positions whose likeliest token is the same. The prompts are
// random ids.
func BenchmarkPrecision(b *testing.B) {
	m, _, o := openBench(b)
	const prompts, length = 4, 64
	logits := func(p graph.Precision) (list [][]float32) {
		if _, err := m.LoadQuantized(os.TempDir(), p, p); err != nil {
			b.Fatal(err)
		}
		r, err := m.OpenDecoder(decoder.OpenOptions{Slots: 1, MaxLen: 2 * length, Precision: p, Session: o})
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		rng := rand.New(rand.NewPCG(1, 1))
		for range prompts {
			ids := make([]int32, length)
			for i := range ids {
				ids[i] = int32(rng.IntN(m.Decoder.Vocab))
			}
			l, err := r.Logits(fusion.Input{IDs: ids})
			if err != nil {
				b.Fatal(err)
			}
			for at := 0; at < len(l); at += m.Decoder.Vocab {
				list = append(list, slices.Clone(l[at:at+m.Decoder.Vocab]))
			}
		}
		return list
	}
	want := logits(graph.FP32)
	for _, p := range []graph.Precision{graph.INT8, graph.INT4} {
		b.Run(string(p), func(b *testing.B) {
			var nats, same float64
			for b.Loop() {
				nats, same = 0, 0
				for i, got := range logits(p) {
					nats += divergence(want[i], got)
					if slices.Index(want[i], slices.Max(want[i])) == slices.Index(got, slices.Max(got)) {
						same++
					}
				}
			}
			b.ReportMetric(nats/float64(len(want)), "nats")
			b.ReportMetric(100*same/float64(len(want)), "%same")
		})
	}
}

// divergence is Σ p·ln(p/q) of the softmax p of want and q of got.
func divergence(want, got []float32) (nats float64) {
	logSum := func(x []float32) float64 {
		top, sum := slices.Max(x), 0.0
		for _, v := range x {
			sum += math.Exp(float64(v - top))
		}
		return float64(top) + math.Log(sum)
	}
	p, q := logSum(want), logSum(got)
	for i, v := range want {
		nats += math.Exp(float64(v)-p) * (float64(v) - p - float64(got[i]) + q)
	}
	return nats
}
