//go:build (amd64 && !windows) || (arm64 && linux)

package kernels

// #cgo noescape scan_peaks
// #cgo nocallback scan_peaks
// #cgo noescape scan_exp
// #cgo nocallback scan_exp
// #include "kernels.h"
// #include "scan.h"
import "C"

import "unsafe"

// vectorized says that the processor has AVX2 and FMA, or NEON.
var vectorized = C.kernels() != C.KERNELS_NONE

// Peaks writes the largest of each PeakLen of x to peaks, [⌈len(x)/PeakLen⌉]; -Inf where there is none. NaN counts as
// -Inf.
func Peaks(peaks, x []float32) {
	if !vectorized || len(x) == 0 {
		peaksScalar(peaks, x)
		return
	}
	_ = peaks[(len(x)+PeakLen-1)/PeakLen-1]
	C.scan_peaks((*C.float)(unsafe.SliceData(peaks)), (*C.float)(unsafe.SliceData(x)), C.int64_t(len(x)))
}

// ExpSums returns Σ w and Σ w·d over d = (x - best)·scale that are above least, which is MinExp or more; w = exp(d). No
// x is above best.
func ExpSums(x []float32, best, scale, least float32) (weight, weighted float64) {
	if !vectorized || len(x) == 0 {
		return expSumsScalar(x, best, scale, least)
	}
	s := C.scan_exp((*C.float)(unsafe.SliceData(x)), C.int64_t(len(x)), C.float(best), C.float(scale), C.float(least))
	return float64(s.weight), float64(s.weighted)
}
