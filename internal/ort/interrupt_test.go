package ort

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/onnx"
)

func TestInterruptEndsTheRunUnderWay(t *testing.T) {
	startLibrary(t)
	const side = 512
	g := onnx.New("g")
	g.Input("x", onnx.F32, "n", "n")
	y := "x"
	for range 3000 { // seconds of work
		y = g.Op("Clip", nil, g.Op("MatMul", nil, y, "x"), "", g.F32(1))
	}
	g.Node("", "Identity", nil, []string{y}, []string{"y"})
	g.Output("y", onnx.F32, "n", "n")
	s, err := NewSession(g, Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mem, err := Alloc[float32](2 * side * side)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Free()
	run := func(n int) error {
		x, err := View(mem.Slice(), n, n)
		if err != nil {
			t.Fatal(err)
		}
		defer x.Destroy()
		out, err := View(mem.Slice()[side*side:], n, n)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Destroy()
		return s.Run([]Tensor{x}, []Tensor{out})
	}
	if err := s.Interrupt(); err != nil {
		t.Errorf("nothing under way: %v", err)
	}
	ran := make(chan error)
	go func() { ran <- run(side) }()
	for done := false; !done; {
		select {
		case err := <-ran:
			if done = true; err == nil || !strings.Contains(err.Error(), "terminate") {
				t.Errorf("interrupted run: %v", err)
			}
		default:
			if err := s.Interrupt(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := run(1); err != nil {
		t.Errorf("the next run: %v", err)
	}
}
