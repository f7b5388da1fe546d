//go:build (!amd64 || windows) && (!arm64 || !linux)

package kernels

// Peaks writes the largest of each PeakLen of x to peaks, [⌈len(x)/PeakLen⌉]; -Inf where there is none. NaN counts as
// -Inf.
func Peaks(peaks, x []float32) { peaksScalar(peaks, x) }

// ExpSums returns Σ w and Σ w·d over d = (x - best)·scale that are above least, which is MinExp or more; w = exp(d). No
// x is above best.
func ExpSums(x []float32, best, scale, least float32) (weight, weighted float64) {
	return expSumsScalar(x, best, scale, least)
}
