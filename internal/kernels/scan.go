package kernels

import "math"

// PeakLen is the number of values that share a peak; scan_amd64.c and scan_arm64.c know it too.
const PeakLen = 64

// MinExp is where an exponential counts as nothing: it stands for a probability under 1e-34.
const MinExp = -80

// peaksScalar writes the largest of each PeakLen of x to peaks.
func peaksScalar(peaks, x []float32) {
	for i := range peaks {
		peak := float32(math.Inf(-1))
		for _, v := range x[i*PeakLen : min((i+1)*PeakLen, len(x))] {
			if v > peak {
				peak = v
			}
		}
		peaks[i] = peak
	}
}

// expSumsScalar is ExpSums in Go.
func expSumsScalar(x []float32, best, scale, least float32) (weight, weighted float64) {
	for _, v := range x {
		if d := (v - best) * scale; d > least {
			w := float64(expNear(d))
			weight += w
			weighted += w * float64(d)
		}
	}
	return weight, weighted
}

// Exp is e^x for x ≤ 0, to 3e-7 of its value; 0 below MinExp and for NaN.
func Exp(x float32) float32 {
	if x > MinExp {
		return expNear(x)
	}
	return 0
}

// expNear is e^x for MinExp < x ≤ 0. A whole vocabulary goes through it for each token: it is
// small enough for the compiler to inline, and math.Exp takes several times as long.
// Cody and Waite's reduction x = n·ln 2 + r, |r| ≤ ln 2 / 2, with ln 2 in two parts; Taylor's polynomial for e^r up to
// r⁶; n added to the exponent bits.
func expNear(x float32) float32 {
	const round = 3 << 22 // a float32 this large has no fraction bits: adding it rounds to the nearest integer
	t := x*math.Log2E + round
	r := x - (t-round)*0.693359375 + (t-round)*2.12194440e-4
	p := 1 + r*(1+r*(1./2+r*(1./6+r*(1./24+r*(1./120+r*(1./720))))))
	return math.Float32frombits(math.Float32bits(p) + math.Float32bits(t)<<23)
}
