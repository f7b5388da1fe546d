//go:build !amd64 || windows

package decoder

func peaksOf(peaks, x []float32) { peaksScalar(peaks, x) }

func expSums(x []float32, best, scale, least float32) (weight, weighted float64) {
	return expSumsScalar(x, best, scale, least)
}
