//go:build !windows

package decoder

// #cgo CFLAGS: -O3
// #cgo noescape scan_peaks
// #cgo nocallback scan_peaks
// #cgo noescape scan_exp
// #cgo nocallback scan_exp
// #include "scan_amd64.h"
import "C"

import "unsafe"

// vectorized says that the processor has AVX2 and FMA.
var vectorized = C.scan_supported() != 0

func peaksOf(peaks, x []float32) {
	if !vectorized || len(x) == 0 {
		peaksScalar(peaks, x)
		return
	}
	C.scan_peaks((*C.float)(unsafe.SliceData(peaks)), (*C.float)(unsafe.SliceData(x)), C.int64_t(len(x)))
}

func expSums(x []float32, best, scale, least float32) (weight, weighted float64) {
	if !vectorized || len(x) == 0 {
		return expSumsScalar(x, best, scale, least)
	}
	s := C.scan_exp((*C.float)(unsafe.SliceData(x)), C.int64_t(len(x)), C.float(best), C.float(scale), C.float(least))
	return float64(s.weight), float64(s.weighted)
}
