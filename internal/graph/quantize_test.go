package graph

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// TestMain starts ONNX Runtime, which the layers run on.
func TestMain(m *testing.M) {
	lib, err := ort.FindLibrary(os.Getenv("MMSERVE_ORT_LIB"))
	if err == nil {
		err = ort.Start(lib)
	}
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// eachLayout runs a test once with mmserve's own operators, where the processor has what they need, and once with ONNX
// Runtime's.
func eachLayout(t *testing.T, f func(t *testing.T)) {
	defer func(had bool) { HasKernels = had }(HasKernels)
	if HasKernels {
		t.Run("own", f)
	}
	HasKernels = false
	t.Run("onnxruntime", func(t *testing.T) {
		if saturates() {
			t.Skip("the integer product of ONNX Runtime is wrong on this processor")
		}
		f(t)
	})
}

// matrix is a weight [out, in] of the test's checkpoint.
type matrix struct {
	name    string
	out, in int
	values  []float32
}

func randomMatrix(name string, out, in int) matrix {
	m := matrix{name: name, out: out, in: in}
	rng := rand.New(rand.NewPCG(uint64(out), uint64(in)))
	for range out * in {
		m.values = append(m.values, float32(rng.NormFloat64()))
	}
	return m
}

// checkpoint has the matrices, and for each a bias.
func checkpoint(t *testing.T, list ...matrix) *Weights {
	t.Helper()
	var tensors []safetensors.Tensor
	for _, m := range list {
		tensors = append(tensors, floats(m.name+".weight", m.values, m.out, m.in),
			floats(m.name+".bias", m.values[:m.out], m.out))
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if err := safetensors.Write(f, tensors); err != nil {
		t.Fatal(err)
	}
	f.Close()
	c, err := safetensors.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	w, err := NewWeights(c)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func floats(name string, values []float32, dims ...int) safetensors.Tensor {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, values)
	return safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: dims, Data: b.Bytes()}
}

// run builds a layer in int8 and runs it over x [rows, in].
func run(t *testing.T, w *Weights, x []float32, in, out int, layer func(b *Builder, x string) string) []float32 {
	t.Helper()
	return runIn(t, INT8, w, x, in, out, layer)
}

func runIn(t *testing.T, p Precision, w *Weights, x []float32, in, out int,
	layer func(b *Builder, x string) string) []float32 {
	t.Helper()
	build := func(w *Weights) (*Builder, error) {
		b := NewBuilder("test", w, p)
		b.Name(layer(b, b.Input("x", onnx.F32, "rows", in)), "y")
		b.Output("y", onnx.F32, "rows", out)
		return b, b.Err()
	}
	if _, err := w.LoadQuantized(t.TempDir(), func(w *Weights) error { _, err := build(w); return err }); err != nil {
		t.Fatal(err)
	}
	b, err := build(w)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ort.NewSession(b, ort.Options{Threads: 2, ExternalDir: Root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rows := len(x) / in
	mem, err := ort.Alloc[float32](rows * (in + out))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Free()
	copy(mem.Slice(), x)
	vx, _ := ort.View(mem.Slice(), rows, in)
	vy, _ := ort.View(mem.Slice()[rows*in:], rows, out)
	defer vx.Destroy()
	defer vy.Destroy()
	if err := s.Run([]ort.Tensor{vx}, []ort.Tensor{vy}); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(mem.Slice()[rows*in:])
}

// product is x·Wᵀ + bias with both sides quantised, as the definition has it.
func product(x []float32, m matrix, bias bool) []float64 {
	quantize := func(row []float32) ([]float64, float64) {
		var most float64
		for _, v := range row {
			most = max(most, math.Abs(float64(v)))
		}
		q := make([]float64, len(row))
		for i, v := range row {
			q[i] = math.RoundToEven(float64(v) * 127 / max(most, 1e-10))
		}
		return q, most / 127
	}
	var y []float64
	for r := 0; r < len(x); r += m.in {
		qx, sx := quantize(x[r : r+m.in])
		for n := range m.out {
			qw, sw := quantize(m.values[n*m.in : (n+1)*m.in])
			var sum float64
			for i := range qx {
				sum += qx[i] * qw[i]
			}
			sum *= sx * sw
			if bias {
				sum += float64(m.values[n])
			}
			y = append(y, sum)
		}
	}
	return y
}

// near compares; the tolerance lets a value that lies between two steps of the quantised x be rounded either way.
func near(t *testing.T, what string, got []float32, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range want {
		if !(math.Abs(float64(got[i])-want[i]) < 0.02+1e-4*math.Abs(want[i])) {
			t.Fatalf("%s: value %d is %g, want %g", what, i, got[i], want[i])
		}
	}
}

func randomRows(rows, in int) []float32 {
	rng := rand.New(rand.NewPCG(uint64(rows), uint64(in)))
	x := make([]float32, rows*in)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

func TestLinearInt8(t *testing.T) {
	eachLayout(t, func(t *testing.T) {
		for _, size := range [][2]int{{64, 64}, {32, 48}, {17, 5}, {1, 16}, {33, 70}, {250, 100}} {
			m := randomMatrix("m", size[0], size[1])
			w := checkpoint(t, m)
			for _, bias := range []bool{false, true} {
				layer := func(b *Builder, x string) string { return b.Linear(x, "m", m.in, m.out, bias) }
				x := randomRows(400, m.in)
				clear(x[3*m.in : 4*m.in]) // a row of zeros
				all := run(t, w, x, m.in, m.out, layer)
				near(t, fmt.Sprint(size, bias), all, product(x, m, bias))
				for _, rows := range []int{1, 2, 3, 5, 8, 11, 12, 13, 16, 23, 24, 25, 193} {
					if got := run(t, w, x[:rows*m.in], m.in, m.out, layer); !slices.Equal(got, all[:rows*m.out]) {
						t.Errorf("%v: %d rows differ from the same among 400", size, rows)
					}
				}
			}
		}
	})
}

func TestJointLinearInt8(t *testing.T) {
	eachLayout(t, func(t *testing.T) {
		q, k := randomMatrix("q", 40, 24), randomMatrix("k", 8, 24)
		w := checkpoint(t, q, k)
		x := randomRows(7, 24)
		got := run(t, w, x, 24, 48, func(b *Builder, x string) string {
			return b.JointLinear(x, 24, true, Out{"q", 40}, Out{"k", 8})[0]
		})
		yq, yk := product(x, q, true), product(x, k, true)
		var want []float64
		for r := range 7 {
			want = append(append(want, yq[r*40:(r+1)*40]...), yk[r*8:(r+1)*8]...)
		}
		near(t, "q and k", got, want)
		if unused := w.Unused(); len(unused) > 0 {
			t.Errorf("unused: %v", unused)
		}
	})
}

func TestGatedInt8(t *testing.T) {
	silu := func(x float64) float64 { return x / (1 + math.Exp(-x)) }
	eachLayout(t, func(t *testing.T) {
		for _, n := range []int{16, 48, 20} { // 20: no whole panels
			gate, up := randomMatrix("gate", n, 32), randomMatrix("up", n, 32)
			slices.Reverse(up.values)
			w := checkpoint(t, gate, up)
			x := randomRows(14, 32)
			got := run(t, w, x, 32, n, func(b *Builder, x string) string {
				return b.Gated(x, 32, false, "silu", Out{"gate", n}, Out{"up", n})
			})
			want := product(x, gate, false)
			for i, u := range product(x, up, false) {
				want[i] = silu(want[i]) * u
			}
			near(t, fmt.Sprint(n, " channels"), got, want)
		}
	})
}

func TestActivatedInt8(t *testing.T) {
	functions := map[string]func(x float64) float64{
		"gelu_pytorch_tanh": func(x float64) float64 {
			return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
		},
		"quick_gelu": func(x float64) float64 { return x / (1 + math.Exp(-1.702*x)) },
		"gelu":       func(x float64) float64 { return x / 2 * (1 + math.Erf(x/math.Sqrt2)) },
	}
	eachLayout(t, func(t *testing.T) {
		for name, f := range functions {
			m := randomMatrix("m", 40, 32)
			w := checkpoint(t, m)
			x := randomRows(9, 32)
			got := run(t, w, x, 32, 40, func(b *Builder, x string) string { return b.Activated(x, "m", 32, 40, true, name) })
			want := product(x, m, true)
			for i := range want {
				want[i] = f(want[i])
			}
			near(t, name, got, want)
		}
	})
}

// TestInt8NotFinite holds that a broken row shows, and in itself only.
func TestInt8NotFinite(t *testing.T) {
	if !HasKernels {
		t.Skip("ONNX Runtime's own operators lose a NaN")
	}
	m := randomMatrix("m", 32, 32)
	w := checkpoint(t, m)
	x := randomRows(3, 32)
	x[40] = float32(math.NaN())
	x[70] = float32(math.Inf(1))
	y := run(t, w, x, 32, 32, func(b *Builder, x string) string { return b.Linear(x, "m", 32, 32, false) })
	for i, v := range y {
		if finite := !math.IsNaN(float64(v)) && !math.IsInf(float64(v), 0); finite != (i < 32) {
			t.Fatalf("row %d has %g", i/32, v)
		}
	}
}

func TestQuantizeRefuses(t *testing.T) {
	m := randomMatrix("m", 4, 4)
	m.values[5] = float32(math.Inf(-1))
	w := checkpoint(t, m)
	_, err := w.LoadQuantized(t.TempDir(), func(w *Weights) error {
		b := NewBuilder("test", w, INT8)
		b.Linear(b.Input("x", onnx.F32, 4), "m", 4, 4, false)
		return b.Err()
	})
	if err == nil || !strings.Contains(err.Error(), "row 1") {
		t.Errorf("an infinite weight: %v", err)
	}
}
