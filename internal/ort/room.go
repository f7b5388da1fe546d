package ort

// Room is memory of a size that changes between runs. The zero value has none.
type Room[T Element] struct{ m *Memory[T] }

// roomKept is how many elements are kept for later runs that need fewer.
const roomKept = 4 << 20

// Fit makes room for n elements. What was there is lost, unless n is what there is room for or a little less: memory
// that one large run took is not held through many small ones.
func (r *Room[T]) Fit(n int) error {
	if r.m != nil && n <= len(r.m.s) && len(r.m.s) <= max(2*n, roomKept) {
		return nil
	}
	if err := r.Free(); err != nil {
		return err
	}
	m, err := Alloc[T](n)
	if err != nil {
		return err
	}
	r.m = m
	return nil
}

// Slice is the memory itself, nil without.
func (r *Room[T]) Slice() []T {
	if r.m == nil {
		return nil
	}
	return r.m.s
}

// Wipe puts zeros over it.
func (r *Room[T]) Wipe() error {
	if r.m == nil {
		return nil
	}
	return r.m.WipeAll()
}

// Free returns the memory to the system. No tensor over it may be used any more.
func (r *Room[T]) Free() error {
	m := r.m
	r.m = nil
	return m.Free()
}
