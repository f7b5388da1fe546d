//go:build !windows

package ort

// In C11's own mode compilers leave products and sums as they are written. Otherwise GCC joins some of them, not the same in
// each kernel, and the bits would depend on the processor.

// #cgo CFLAGS: -O3 -std=c11 -D_GNU_SOURCE
// #cgo linux LDFLAGS: -ldl -lpthread
// #include <stdlib.h>
// #include "kernels_amd64.h"
// #include "team_amd64.h"
// char *customop_add(const char *library, void *session_options);
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"unsafe"

	ort "github.com/yalue/onnxruntime_go"
)

// HasKernels says whether graphs on the cpu provider may use the operators of domain "mmserve": RowLinear8,
// RowLinear4 and CachedAttention. They need AVX2 with FMA, and are faster with AVX-512 and VNNI.
func HasKernels() bool { return C.kernels() != C.KERNELS_NONE }

// HasSelfAttention8 says whether graphs on the cpu provider may use the operator SelfAttention8 of domain "mmserve", which needs
// AVX-512 with VNNI.
func HasSelfAttention8() bool { return C.kernels() == C.KERNELS_AVX512 }

// limitKernels has the AVX2 operators used where better ones are there too, for tests; it tells whether there are.
func limitKernels(on bool) (better bool) {
	C.kernels_limit(C.KERNELS_AVX512)
	better = C.kernels() == C.KERNELS_AVX512
	if on {
		C.kernels_limit(C.KERNELS_AVX2)
	}
	return better
}

var addCustomOps sync.Mutex

// configureCustomOps lets a session use mmserve's own operators, on as many threads as the session that asked for most.
func configureCustomOps(so *ort.SessionOptions, threads int) error {
	if !HasKernels() {
		return nil
	}
	addCustomOps.Lock()
	defer addCustomOps.Unlock()
	C.team_grow(C.int(threads - 1))
	_, library := Loaded()
	path := C.CString(library)
	defer C.free(unsafe.Pointer(path))
	// The binding keeps the C pointer in a field of its own; reflect reads it without assuming a layout.
	options := reflect.ValueOf(so).Elem().FieldByName("o")
	if options.Kind() != reflect.Pointer {
		return errors.New("the ONNX Runtime binding is not the version that go.mod pins")
	}
	if text := C.customop_add(path, options.UnsafePointer()); text != nil {
		defer C.free(unsafe.Pointer(text))
		return fmt.Errorf("register mmserve's operators: %s", C.GoString(text))
	}
	return nil
}
