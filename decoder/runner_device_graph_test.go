package decoder

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// randomWeights are all that a decoder needs.
func randomWeights(t *testing.T, c Config) *graph.Weights {
	t.Helper()
	needs, err := graph.Needs(func(w *graph.Weights) error {
		_, err := c.Graph(w, graph.FP32)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(4, 5))
	var list []safetensors.Tensor
	for _, n := range append(needs, graph.Shape{Name: "text.embed_tokens.weight", Dims: []int{c.Vocab, c.Hidden}}) {
		size := 1
		for _, d := range n.Dims {
			size *= d
		}
		var data []byte
		for range size {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(rng.NormFloat64()/4)))
		}
		list = append(list, safetensors.Tensor{Name: n.Name, DType: safetensors.F32, Shape: n.Dims, Data: data})
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "model.safetensors"))
	if err == nil {
		err = safetensors.Write(f, list)
	}
	if err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	ckpt, err := safetensors.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ckpt.Close() })
	w, err := graph.NewWeights(ckpt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// The graph for devices, run on the cpu provider, gives the logits of the host's, prompt and next token.
func TestDeviceGraphAsHost(t *testing.T) {
	lib, err := ort.FindLibrary(os.Getenv("MMSERVE_ORT_LIB"))
	if err == nil {
		err = ort.Start(lib)
	}
	if err != nil {
		t.Fatal(err)
	}
	base := Config{Layers: 2, Hidden: 32, Intermediate: 48, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 40, MaxLen: 64,
		Rope: Rope{Theta: 100}, Eps: 1e-5, Activation: "silu"}
	for name, change := range map[string]func(*Config){
		"plain":         func(*Config) {},
		"norms":         func(c *Config) { c.QKNorm, c.UnitNorms, c.SandwichNorms = true, true, true },
		"pairs":         func(c *Config) { c.RopePairs, c.RotaryDim, c.GateUp, c.QKVBias = true, 8, true, true },
		"multipliers":   func(c *Config) { c.InputScale, c.ResidualScale, c.AttentionScale = 3, 0.6, 0.1 },
		"query scaling": func(c *Config) { c.QueryScaling = &QueryScaling{Beta: 0.4, Every: 3} },
	} {
		t.Run(name, func(t *testing.T) {
			c := base
			change(&c)
			deviceAsHost(t, c)
		})
	}
}

func deviceAsHost(t *testing.T, c Config) {
	w := randomWeights(t, c)
	host, err := OpenHost(c, w, OpenOptions{Slots: 1, Session: ort.Options{Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	ids := []int32{3, 1, 4, 1, 5, 9, 2, 6}
	want, err := host.Logits(fusion.Input{IDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.deviceGraph(w, graph.FP32, graph.Target{Device: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := ort.NewSession(b, ort.Options{Threads: 1, ExternalDir: graph.Root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	kv, err := newKVCache(c, 1, c.MaxLen)
	if err != nil {
		t.Fatal(err)
	}
	defer kv.close()
	cache, err := kv.view(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	for past, n := 0, len(ids)-1; past < len(ids); past, n = past+n, 1 {
		var views viewList
		logits := memory[float32](t, n*c.Vocab)
		sample := memory[int64](t, n)
		for i := range n {
			sample[i] = int64(i)
		}
		in := []ort.Tensor{
			view(&views, memory(t, n, ids[past:past+n]...), n), view(&views, memory[float32](t, c.Hidden), 1, c.Hidden),
			view(&views, memory(t, 3, 1, int64(n), -1), 3), view(&views, memory(t, 1, int32(past+n-1)), 1),
			view(&views, memory(t, 1, int32(past+n)), 1), view(&views, sample, n),
		}
		out := []ort.Tensor{view(&views, logits, n, c.Vocab), view(&views, memory[float32](t, n), n),
			view(&views, memory[int64](t, n), n)}
		if err := s.Run(append(in, cache...), append(out, cache...)); err != nil {
			t.Fatal(err)
		}
		views.destroy()
		for i, got := range logits {
			if math.Abs(float64(got-want[past*c.Vocab+i])) > 1e-4 {
				t.Fatalf("position %d, logit %d: %g, the host's %g", past+i/c.Vocab, i%c.Vocab, got, want[past*c.Vocab+i])
			}
		}
	}
}

// memory holds n values, the given ones first.
func memory[T ort.Element](t *testing.T, n int, values ...T) []T {
	t.Helper()
	m, err := ort.Alloc[T](n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Free() })
	copy(m.Slice(), values)
	return m.Slice()
}
