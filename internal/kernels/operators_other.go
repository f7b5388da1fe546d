//go:build (!amd64 || windows) && (!arm64 || !linux)

package kernels

import (
	"errors"
	"unsafe"
)

// Available says whether graphs on the cpu provider may use the operators of domain "mmserve": RowLinear8,
// RowLinear4, CachedAttention and SegmentAttention. There are none here.
func Available() bool { return false }

// HasSelfAttention8 says whether graphs on the cpu provider may use the operators SelfAttention8 and SegmentAttention8
// of domain "mmserve".
func HasSelfAttention8() bool { return false }

// Instructions names those that the kernels in use are made of.
func Instructions() string { return "none" }

// Register lets a session use the operators. There are none here.
func Register(string, unsafe.Pointer, int) error {
	return errors.New("mmserve's operators need x86-64, or ARM64 on Linux")
}
