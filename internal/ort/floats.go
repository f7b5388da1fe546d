package ort

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/x448/float16"
)

// Floats is memory that is float32 for Go, and for a graph whichever of float32 and float16 it takes or gives.
type Floats struct {
	t    onnx.DType
	wide *Memory[float32]
	half *Memory[uint16] // nil for float32
}

// AllocFloats reserves room for n values of a graph's type t. They read as zero.
func AllocFloats(t onnx.DType, n int) (*Floats, error) {
	f := &Floats{t: t}
	var err error
	switch t {
	case onnx.F16:
		if f.half, err = Alloc[uint16](n); err != nil {
			return nil, err
		}
	case onnx.F32:
	default:
		return nil, fmt.Errorf("values are %s, want float32 or float16", t)
	}
	if f.wide, err = Alloc[float32](n); err != nil {
		f.Free()
		return nil, err
	}
	return f, nil
}

// Grow makes room for n values. What was there is lost.
func (f *Floats) Grow(n int) error {
	if n <= len(f.wide.Slice()) {
		return nil
	}
	bigger, err := AllocFloats(f.t, n)
	if err != nil {
		return err
	}
	f.Free()
	*f = *bigger
	return nil
}

// Wipe puts zeros over all values.
func (f *Floats) Wipe() error {
	if f == nil {
		return nil
	}
	err := f.wide.WipeAll()
	if f.half != nil {
		err = errors.Join(err, f.half.WipeAll())
	}
	return err
}

// Slice is the memory as Go sees it.
func (f *Floats) Slice() []float32 { return f.wide.Slice() }

// View shapes the start of the memory as the graph sees it.
func (f *Floats) View(dims ...int) (Tensor, error) {
	if f.half == nil {
		return View(f.wide.Slice(), dims...)
	}
	return ViewAs(raw(f.half), onnx.F16, dims...)
}

// Store makes the first n values that Go wrote those that a graph reads.
func (f *Floats) Store(n int) {
	if f.half == nil {
		return
	}
	half := f.half.Slice()
	for i, v := range f.wide.Slice()[:n] {
		half[i] = float16.Fromfloat32(v).Bits()
	}
}

// Load makes values [from, to) that a graph wrote those that Go reads, and gives them.
func (f *Floats) Load(from, to int) []float32 {
	wide := f.wide.Slice()[from:to]
	if f.half != nil {
		for i, h := range f.half.Slice()[from:to] {
			wide[i] = float16.Frombits(h).Float32()
		}
	}
	return wide
}

// Free returns the memory to the system.
func (f *Floats) Free() error {
	if f == nil {
		return nil
	}
	f.half.Free()
	return f.wide.Free()
}

// raw is a memory's bytes.
func raw[T Element](m *Memory[T]) []byte { return m.raw }
