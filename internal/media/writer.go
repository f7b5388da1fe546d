package media

import (
	"crypto/sha256"
	"fmt"
	"hash"
)

// firstBuffer is what a file on its way takes first, in bytes. It grows by doubling, so that who declares much and
// sends little takes little.
const firstBuffer = 64 << 10

// Writer receives one file. One goroutine has it, and ends it with Keep, Use or Abort.
type Writer struct {
	store  *Store
	tenant string
	most   int64 // bytes, of the file
	data   []byte
	held   int64 // bytes that are reserved
	hash   hash.Hash
	ended  bool
}

// Create begins a tenant's file of at most size bytes. Its error is ErrTooLarge, or ErrFull.
func (s *Store) Create(tenant string, size int64) (*Writer, error) {
	if most := s.Largest(); size > most {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are kept for one caller", ErrTooLarge, size, most)
	}
	if err := s.reserve(tenant, Overhead); err != nil {
		return nil, err
	}
	return &Writer{store: s, tenant: tenant, most: size, held: Overhead, hash: sha256.New()}, nil
}

// Size is the number of bytes that came.
func (w *Writer) Size() int64 { return int64(len(w.data)) }

// Data are the bytes that came, until the next call.
func (w *Writer) Data() []byte { return w.data }

// Write adds bytes, all or none. Its error is ErrFull, or ErrTooLarge beyond the size that Create was told.
func (w *Writer) Write(p []byte) (int, error) {
	need := int64(len(w.data)) + int64(len(p))
	if need > w.most {
		return 0, fmt.Errorf("%w: over %d bytes", ErrTooLarge, w.most)
	}
	if need > int64(cap(w.data)) {
		if err := w.grow(min(w.most, max(need, 2*int64(cap(w.data)), firstBuffer))); err != nil {
			return 0, err
		}
	}
	w.data = append(w.data, p...)
	w.hash.Write(p)
	return len(p), nil
}

// grow moves the bytes to a buffer of n.
func (w *Writer) grow(n int64) error {
	more := n - int64(cap(w.data))
	if err := w.store.reserve(w.tenant, more); err != nil {
		return err
	}
	w.held += more
	w.move(n)
	return nil
}

func (w *Writer) move(n int64) {
	old := w.data
	w.data = append(make([]byte, 0, n), old...)
	overwrite(old)
}

// Digest is that of the bytes that came.
func (w *Writer) Digest() (d Digest) {
	w.hash.Sum(d[:0])
	return d
}

// Keep has the store keep the file. It ends the writer.
func (w *Writer) Keep() (Info, error) {
	if n := int64(len(w.data)); n < int64(cap(w.data)) {
		w.store.release(w.tenant, int64(cap(w.data))-n)
		w.held -= int64(cap(w.data)) - n
		w.move(n)
	}
	f := w.file()
	info, fresh, err := w.store.keep(f)
	if err != nil || !fresh {
		w.Abort()
	}
	w.ended = true
	return info, err
}

// Use gives the file for use, without keeping it: no other finds it, and its bytes are overwritten on Close. It ends
// the writer.
func (w *Writer) Use() *File {
	w.ended = true
	f := w.file()
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	return w.store.use(f)
}

func (w *Writer) file() *file {
	return &file{key: key{w.tenant, w.Digest()}, data: w.data, counted: w.held}
}

// Abort lets go of the bytes that came. After another end it does nothing.
func (w *Writer) Abort() {
	if w.ended {
		return
	}
	w.ended = true
	overwrite(w.data)
	w.store.release(w.tenant, w.held)
}
