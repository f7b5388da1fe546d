package synth

import (
	"slices"
	"testing"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
)

// BenchmarkSharedRuns is the time of rows in one run over that of each by itself, in turns: eight prompts of 30
// tokens, and a step of eight rows with a chunk of 64.
func BenchmarkSharedRuns(b *testing.B) {
	r := openShape(b, 9)
	prompt := func(n int) []int32 {
		ids := make([]int32, n)
		for i := range ids {
			ids[i] = int32(1000 + i*31)
		}
		return ids
	}
	run := func(rows ...decoder.Row) time.Duration {
		began := time.Now()
		if _, err := r.Run(b.Context(), &decoder.Batch{Rows: rows}); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	var short, steps []decoder.Row
	for i := range 8 {
		run(modeltest.GreedyRow(i, 0, prompt(100)))
		steps = append(steps, modeltest.GreedyRow(i, 100, []int32{int32(i)}))
		short = append(short, modeltest.GreedyRow(i, 0, prompt(30)))
	}
	chunk := modeltest.GreedyRow(8, 0, prompt(64))
	for _, c := range []struct {
		name  string
		apart [][]decoder.Row
	}{
		{"eight prompts of 30", slices.Collect(slices.Chunk(short, 1))},
		{"eight rows and a chunk of 64", [][]decoder.Row{steps, {chunk}}},
		{"one row and a chunk of 64", [][]decoder.Row{steps[:1], {chunk}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var ratios []float64
			for b.Loop() {
				var apart time.Duration
				for _, rows := range c.apart {
					apart += run(rows...)
				}
				ratios = append(ratios, run(slices.Concat(c.apart...)...).Seconds()/apart.Seconds())
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "of-the-time")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// openShape opens the larger model of writePair in int8.
func openShape(b *testing.B, slots int) decoder.Runner {
	b.Helper()
	modeltest.StartLibrary(b)
	dir, _ := writePair(b, 1)
	m, err := model.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	if _, err := m.LoadQuantized("", "int8", "int8"); err != nil {
		b.Skip(err)
	}
	r, err := m.OpenDecoder(decoder.OpenOptions{Slots: slots, MaxLen: 1024, Precision: "int8"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	if !r.Capacity().Mixed {
		b.Skip("rows of a run have to be of one length here")
	}
	return r
}
