package ort

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/mmserve/mmserve/internal/onnx"
	ort "github.com/yalue/onnxruntime_go"
	"golang.org/x/sys/unix"
)

// Element is a type that a tensor can hold.
type Element interface {
	~float32 | ~int64 | ~int32 | ~uint8 | ~int8 | ~uint16
}

// Memory is an anonymous mapping outside the Go heap: ONNX Runtime keeps pointers into it between calls, which
// cgo forbids for Go memory. The kernel backs it with pages as they are first written.
type Memory[T Element] struct {
	raw []byte
	s   []T
}

// Alloc reserves room for n elements. They read as zero.
func Alloc[T Element](n int) (*Memory[T], error) {
	var z T
	size := max(n, 1) * int(unsafe.Sizeof(z))
	raw, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	// A huge page would be taken for a few positions of a KV cache. A kernel without them says no, which is as good.
	_ = unix.Madvise(raw, unix.MADV_NOHUGEPAGE)
	return &Memory[T]{raw: raw, s: unsafe.Slice((*T)(unsafe.Pointer(&raw[0])), n)}, nil
}

// Slice is the memory itself. It must not be used after Free.
func (m *Memory[T]) Slice() []T { return m.s }

// Discard gives the whole pages within elements [from, to) back to the system. They read as zero from then on, and get
// pages again when they are written.
func (m *Memory[T]) Discard(from, to int) error {
	var z T
	size, page := int(unsafe.Sizeof(z)), os.Getpagesize()
	from, to = (from*size+page-1)/page*page, to*size/page*page // mappings start at a page
	if from >= to {
		return nil
	}
	return unix.Madvise(m.raw[from:to], unix.MADV_DONTNEED)
}

// Wipe puts zeros over elements [from, to); whole pages of them go back to the system.
func (m *Memory[T]) Wipe(from, to int) error {
	var z T
	perPage := os.Getpagesize() / int(unsafe.Sizeof(z))
	first, last := (from+perPage-1)/perPage*perPage, to/perPage*perPage
	if first >= last {
		clear(m.s[from:to])
		return nil
	}
	clear(m.s[from:first])
	clear(m.s[last:to])
	if err := m.Discard(first, last); err != nil { // locked memory is not given back
		clear(m.s[first:last])
	}
	return nil
}

// WipeAll is Wipe of all elements.
func (m *Memory[T]) WipeAll() error { return m.Wipe(0, len(m.s)) }

// Free returns the memory to the system. No tensor over it may be used any more.
func (m *Memory[T]) Free() error {
	if m == nil || m.raw == nil {
		return nil
	}
	raw := m.raw
	m.raw, m.s = nil, nil
	return unix.Munmap(raw)
}

// Tensor is a shaped view of memory that a session reads or writes.
type Tensor struct{ v ort.Value }

// View shapes the start of data, which must lie in a Memory. Destroy frees the view, not the memory.
func View[T Element](data []T, dims ...int) (Tensor, error) {
	shape := make(ort.Shape, len(dims))
	n := 1
	for i, d := range dims {
		shape[i] = int64(d)
		n *= d
	}
	if n > len(data) {
		return Tensor{}, fmt.Errorf("a tensor of shape %v needs %d elements, the memory has %d", dims, n, len(data))
	}
	v, err := ort.NewTensor(shape, data[:n])
	if err != nil {
		return Tensor{}, err
	}
	return Tensor{v}, nil
}

// ViewAs shapes the start of data as values of type t. data must lie in a Memory; a tensor without values needs some,
// too.
func ViewAs(data []byte, t onnx.DType, dims ...int) (Tensor, error) {
	shape := make(ort.Shape, len(dims))
	n := t.Size()
	for i, d := range dims {
		shape[i] = int64(d)
		n *= d
	}
	if n > len(data) || len(data) == 0 {
		return Tensor{}, fmt.Errorf("a tensor of %s of shape %v needs %d bytes, the memory has %d", t, dims, n, len(data))
	}
	v, err := ort.NewCustomDataTensor(shape, data[:max(n, 1)], ort.TensorElementDataType(t)) // the numbers are the same
	if err != nil {
		return Tensor{}, err
	}
	return Tensor{v}, nil
}

// Scalar is a tensor without dimensions.
func Scalar(v int64) (Tensor, error) {
	s, err := ort.NewScalar(v)
	if err != nil {
		return Tensor{}, err
	}
	return Tensor{s}, nil
}

// Destroy frees the view.
func (t Tensor) Destroy() {
	if t.v != nil {
		t.v.Destroy()
	}
}
