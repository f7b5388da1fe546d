package graph

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// sequences runs SequenceAttention over q, k and v [n, heads·dim], one after the other, turned by angles [n, dim/2].
func sequences(t *testing.T, heads, dim int, lengths []int32, qkv, angles []float32, single bool) []float32 {
	t.Helper()
	b := NewBuilder("sequences", &Weights{}, FP32)
	n, width := len(qkv)/(3*heads*dim), heads*dim
	var names []string
	for _, name := range []string{"q", "k", "v"} {
		names = append(names, b.Input(name, onnx.F32, "n", width))
	}
	s := Sequences{Heads: heads, Dim: dim, Single: single, Cos: b.Input("cos", onnx.F32, "n", dim/2),
		Sin: b.Input("sin", onnx.F32, "n", dim/2), Lengths: b.Input("lengths", onnx.I32, "s")}
	b.Name(b.SequenceAttention(names, s), "y")
	b.Output("y", onnx.F32, "n", width)
	session, err := ort.NewSession(b, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	memory := func(v []float32) []float32 {
		m, err := ort.Alloc[float32](len(v))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Free() })
		copy(m.Slice(), v)
		return m.Slice()
	}
	cos, sin := make([]float32, len(angles)), make([]float32, len(angles))
	for i, a := range angles {
		cos[i], sin[i] = float32(math.Cos(float64(a))), float32(math.Sin(float64(a)))
	}
	var in []ort.Tensor
	for _, x := range [][]float32{qkv[:n*width], qkv[n*width : 2*n*width], qkv[2*n*width:], cos, sin} {
		v, err := ort.View(memory(x), n, len(x)/n)
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, v)
	}
	list, err := ort.Alloc[int32](len(lengths))
	if err != nil {
		t.Fatal(err)
	}
	defer list.Free()
	copy(list.Slice(), lengths)
	l, _ := ort.View(list.Slice(), len(lengths))
	y := memory(make([]float32, n*width))
	out, _ := ort.View(y, n, width)
	if err := session.Run(append(in, l), []ort.Tensor{out}); err != nil {
		t.Fatal(err)
	}
	return y
}

// wantSequences is the textbook's.
func wantSequences(heads, dim int, lengths []int32, qkv, angles []float32) []float64 {
	width, half := heads*dim, dim/2
	n := len(qkv) / (3 * width)
	at := func(part, pos, head, i int) float64 {
		x := qkv[part*n*width+pos*width+head*dim:]
		if part == 2 {
			return float64(x[i])
		}
		s, c := math.Sincos(float64(angles[pos*half+i%half]))
		if i < half {
			return float64(x[i])*c - float64(x[i+half])*s
		}
		return float64(x[i])*c + float64(x[i-half])*s
	}
	out := make([]float64, n*width)
	start := 0
	for _, length := range lengths {
		for pos := start; pos < start+int(length); pos++ {
			for head := range heads {
				p, sum := make([]float64, length), 0.0
				for t := range p {
					for i := range dim {
						p[t] += at(0, pos, head, i) * at(1, start+t, head, i) / math.Sqrt(float64(dim))
					}
					p[t] = math.Exp(p[t])
					sum += p[t]
				}
				for t := range p {
					for i := range dim {
						out[pos*width+head*dim+i] += p[t] / sum * at(2, start+t, head, i)
					}
				}
			}
		}
		start += int(length)
	}
	return out
}

// Every form of attention within sequences is the textbook's: mmserve's own operator, and ONNX Runtime's with sequences
// padded to the longest and with one.
func TestSequenceAttention(t *testing.T) {
	lib, err := ort.FindLibrary(os.Getenv("MMSERVE_ORT_LIB"))
	if err == nil {
		err = ort.Start(lib)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		heads, dim int
		lengths    []int32
		own        bool
	}{
		{2, 16, []int32{5, 1, 7}, true}, {2, 16, []int32{5, 1, 7}, false}, {3, 12, []int32{4, 4, 2, 9}, true},
		{2, 20, []int32{11}, true}, {1, 80, []int32{6}, false},
	} {
		t.Run(fmt.Sprintf("%d heads of %d in %v, own %t", c.heads, c.dim, c.lengths, c.own), func(t *testing.T) {
			defer func(own bool) { HasKernels = own }(HasKernels)
			HasKernels = HasKernels && c.own
			n := 0
			for _, l := range c.lengths {
				n += int(l)
			}
			rng := rand.New(rand.NewPCG(uint64(c.dim), uint64(n)))
			qkv, angles := make([]float32, 3*n*c.heads*c.dim), make([]float32, n*c.dim/2)
			for _, list := range [][]float32{qkv, angles} {
				for i := range list {
					list[i] = float32(rng.NormFloat64())
				}
			}
			got := sequences(t, c.heads, c.dim, c.lengths, qkv, angles, len(c.lengths) == 1)
			for i, want := range wantSequences(c.heads, c.dim, c.lengths, qkv, angles) {
				if math.Abs(float64(got[i])-want) > 1e-5 {
					t.Fatalf("value %d is %g, want %g", i, got[i], want)
				}
			}
		})
	}
}
