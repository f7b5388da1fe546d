package ort

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/onnx"
	ort "github.com/yalue/onnxruntime_go"
)

// provider is one way to run graphs. Its file registers it in init.
type provider interface {
	name() string
	// configure adds the provider to a session's options after checking its own. threads is what the session was given.
	configure(so *ort.SessionOptions, threads int, options map[string]string) error
}

var providers = map[string]provider{}

func register(p provider) { providers[p.name()] = p }

// Providers lists the execution providers this build knows, sorted. That one is known does not mean that it
// works here: see Probe.
func Providers() []string { return slices.Sorted(maps.Keys(providers)) }

func lookup(name string) (provider, error) {
	if name == "" {
		name = "cpu"
	}
	p, ok := providers[name]
	if !ok {
		return nil, fmt.Errorf("unknown execution provider %q; known are %s", name, strings.Join(Providers(), ", "))
	}
	return p, nil
}

// Probe runs a small graph on a provider. Only this shows that the provider works: being compiled into the
// library is not enough.
func Probe(name string) error {
	g := onnx.New("probe")
	g.Input("x", onnx.F32, 4)
	g.Node("", "Add", nil, []string{"x", g.F32s("one", []int{4}, []float32{1, 1, 1, 1})}, []string{"y"})
	g.Output("y", onnx.F32, 4)
	s, err := NewSession(g, Options{Provider: name, Threads: 1})
	if err != nil {
		return err
	}
	defer s.Close()
	mem, err := Alloc[float32](8)
	if err != nil {
		return err
	}
	defer mem.Free()
	copy(mem.Slice(), []float32{1, 2, 3, 4})
	x, err := View(mem.Slice()[:4], 4)
	if err != nil {
		return err
	}
	defer x.Destroy()
	y, err := View(mem.Slice()[4:], 4)
	if err != nil {
		return err
	}
	defer y.Destroy()
	if err := s.Run([]Tensor{x}, []Tensor{y}); err != nil {
		return err
	}
	if got := mem.Slice()[4:]; !slices.Equal(got, []float32{2, 3, 4, 5}) {
		return fmt.Errorf("execution provider %s computed %v for [1 2 3 4] + 1", name, got)
	}
	return nil
}
