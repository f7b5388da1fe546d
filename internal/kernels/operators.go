//go:build (amd64 && !windows) || (arm64 && linux)

package kernels

// In C11's own mode compilers leave products and sums as they are written. Otherwise GCC joins some of them, not the
// same in each kernel, and the bits would depend on the processor.

// #cgo CFLAGS: -O3 -std=c11 -D_GNU_SOURCE
// #cgo linux LDFLAGS: -ldl -lpthread
// #include <stdlib.h>
// #include "kernels.h"
// #include "selfattention.h"
// #include "team.h"
// char *operators_add(const char *library, void *session_options);
import "C"

import (
	"fmt"
	"sync"
	"unsafe"
)

// Available says whether graphs on the cpu provider may use the operators of domain "mmserve": RowLinear8,
// RowLinear4, CachedAttention and SegmentAttention. On x86 they need AVX2 with FMA, and are faster with AVX-512 and
// VNNI; on ARM64 they are faster with dotprod and i8mm.
func Available() bool { return C.kernels() != C.KERNELS_NONE }

// HasSelfAttention8 says whether graphs on the cpu provider may use the operators SelfAttention8 and SegmentAttention8
// of domain "mmserve", which need AVX-512 with VNNI, or dotprod on ARM64.
func HasSelfAttention8() bool { return C.selfattention_here() != 0 }

// Instructions names those that the kernels in use are made of.
func Instructions() string { return C.GoString(C.kernels_name()) }

// limit has the kernels of the least instructions used where better ones are there too, for tests; it tells whether
// there are.
func limit(on bool) (better bool) {
	C.kernels_limit(C.KERNELS_BEST)
	better = C.kernels() > C.KERNELS_LEAST
	if on {
		C.kernels_limit(C.KERNELS_LEAST)
	}
	return better
}

var registering sync.Mutex

// Register lets the session that an OrtSessionOptions opens use the operators. library is the path that ONNX Runtime
// was loaded from. The operators of all sessions share the threads of the one that asked for most.
func Register(library string, options unsafe.Pointer, threads int) error {
	registering.Lock()
	defer registering.Unlock()
	C.team_grow(C.int(threads - 1))
	path := C.CString(library)
	defer C.free(unsafe.Pointer(path))
	if text := C.operators_add(path, options); text != nil {
		defer C.free(unsafe.Pointer(text))
		return fmt.Errorf("register mmserve's operators: %s", C.GoString(text))
	}
	return nil
}
