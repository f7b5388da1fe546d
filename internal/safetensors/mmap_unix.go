//go:build unix

package safetensors

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/folder"
)

// mapFile maps a whole file read-only. The mapping is shared: pages come from and go back to the page cache.
func mapFile(path string) ([]byte, digest.Stamp, error) {
	f, err := folder.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	return mapHandle(f)
}

func mapHandle(f *os.File) ([]byte, digest.Stamp, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, "", err
	}
	if !st.Mode().IsRegular() {
		return nil, "", fmt.Errorf("%s is not a regular file", f.Name())
	}
	stamp := digest.Of(f)
	if st.Size() == 0 {
		return nil, stamp, nil
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, "", fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return b, stamp, nil
}

func unmap(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return unix.Munmap(b)
}

// forget drops the whole pages inside b from memory. It is a hint: an error changes nothing.
func forget(b []byte) {
	page := uintptr(os.Getpagesize())
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	skip := (page - start%page) % page
	if n := uintptr(len(b)); n > skip {
		whole := (n - skip) / page * page
		_ = unix.Madvise(b[skip:skip+whole], unix.MADV_DONTNEED)
	}
}
