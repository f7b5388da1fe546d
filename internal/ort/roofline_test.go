package ort

import (
	"encoding/binary"
	"math"
	"os"
	"strconv"
	"testing"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/x448/float16"
)

// BenchmarkRoofline measures what bounds a model on a provider: how fast its memory is read and written, and how fast
// it multiplies square matrices of a side. MMSERVE_BENCH_PROVIDER, MMSERVE_BENCH_PRECISION (fp32 or fp16) and
// MMSERVE_BENCH_SIDE (1024) choose. A few bytes cross between process and device.
func BenchmarkRoofline(b *testing.B) {
	startLibrary(b)
	var o Options
	var err error
	if s := os.Getenv("MMSERVE_BENCH_PROVIDER"); s != "" {
		if o.Provider, err = ParseProvider(s); err != nil {
			b.Fatal(err)
		}
	}
	side := 1024
	if s := os.Getenv("MMSERVE_BENCH_SIDE"); s != "" {
		if side, err = strconv.Atoi(s); err != nil || side < 1 {
			b.Fatalf("MMSERVE_BENCH_SIDE %q: want a number from 1 on", s)
		}
	}
	t := onnx.F32
	if os.Getenv("MMSERVE_BENCH_PRECISION") == "fp16" {
		t = onnx.F16
	}
	const links = 8
	elements := float64(side) * float64(side)
	for _, c := range []struct {
		name, unit string
		link       func(g *onnx.Graph, x, factor, w string) string
		work       float64 // of one link
	}{
		{"copy", "GB/s", func(g *onnx.Graph, x, factor, _ string) string {
			return g.Op("Mul", nil, x, factor)
		}, 2 * elements * float64(t.Size())},
		{"matmul", "GFLOP/s", func(g *onnx.Graph, x, _, w string) string {
			return g.Op("MatMul", nil, x, w)
		}, 2 * elements * float64(side)},
	} {
		b.Run(c.name, func(b *testing.B) {
			g := onnx.New(c.name)
			factor := g.Input("factor", onnx.F32, 1)
			if t != onnx.F32 {
				factor = g.Op("Cast", onnx.Attrs{"to": int(t)}, factor)
			}
			w := g.Inline("w", t, []int{side, side}, repeated(t, side*side, 1/float32(side)))
			x := g.Op("Mul", nil, w, factor) // the session cannot compute ahead what depends on an input
			for range links {
				x = c.link(g, x, factor, w)
			}
			x = g.Op("Reshape", nil, g.Op("ReduceMax", onnx.Attrs{"keepdims": 0}, x), g.I64s(1))
			if t != onnx.F32 {
				x = g.Op("Cast", onnx.Attrs{"to": int(onnx.F32)}, x)
			}
			g.Node("", "Identity", nil, []string{x}, []string{"y"})
			g.Output("y", onnx.F32, 1)
			s, err := NewSession(g, o)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			mem, err := Alloc[float32](2)
			if err != nil {
				b.Fatal(err)
			}
			defer mem.Free()
			mem.Slice()[0] = 1
			in, err := View(mem.Slice()[:1], 1)
			if err != nil {
				b.Fatal(err)
			}
			defer in.Destroy()
			out, err := View(mem.Slice()[1:], 1)
			if err != nil {
				b.Fatal(err)
			}
			defer out.Destroy()
			run := func() {
				if err := s.Run([]Tensor{in}, []Tensor{out}); err != nil {
					b.Fatal(err)
				}
			}
			run() // kernels are compiled
			for b.Loop() {
				run()
			}
			work := c.work * links
			if c.name == "copy" {
				work += 1.5 * c.work // the product before and the maximum after
			}
			b.ReportMetric(work*float64(b.N)/b.Elapsed().Seconds()/1e9, c.unit)
		})
	}
}

// repeated is n times v, in float16 or float32.
func repeated(t onnx.DType, n int, v float32) []byte {
	m := make([]byte, 0, n*t.Size())
	for range n {
		if t == onnx.F16 {
			m = binary.LittleEndian.AppendUint16(m, float16.Fromfloat32(v).Bits())
		} else {
			m = binary.LittleEndian.AppendUint32(m, math.Float32bits(v))
		}
	}
	return m
}
