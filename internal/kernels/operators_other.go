//go:build !amd64 || windows

package kernels

import (
	"errors"
	"unsafe"
)

// Available says whether graphs on the cpu provider may use the operators of domain "mmserve": RowLinear8,
// RowLinear4, CachedAttention and SegmentAttention. They need AVX2 with FMA.
func Available() bool { return false }

// HasSelfAttention8 says whether graphs on the cpu provider may use the operator SelfAttention8 of domain "mmserve",
// which needs AVX-512 with VNNI on amd64.
func HasSelfAttention8() bool { return false }

// Register lets a session use the operators. There are none here.
func Register(string, unsafe.Pointer, int) error {
	return errors.New("mmserve's operators need x86-64")
}
