package decoder

import (
	"math"
	"slices"
)

// peakLen is the number of logits that share a peak; scan_amd64.c knows it too.
const peakLen = 64

// peaked is logits and the largest of each peakLen of them, by which most need not be looked at again. NaN counts as
// -Inf.
type peaked struct {
	logits []float32
	peaks  []float32 // [⌈len(logits)/peakLen⌉]
}

// reset takes other logits; it keeps the memory of peaks.
func (p *peaked) reset(logits []float32) {
	n := (len(logits) + peakLen - 1) / peakLen
	if cap(p.peaks) < n {
		p.peaks = make([]float32, n)
	}
	p.logits, p.peaks = logits, p.peaks[:n]
	peaksOf(p.peaks, logits)
}

// block returns the index of the first logit of block i, and its logits.
func (p *peaked) block(i int) (int, []float32) {
	return i * peakLen, p.logits[i*peakLen : min((i+1)*peakLen, len(p.logits))]
}

// argmax returns the lowest index of the largest logit. It is an error if there is none above -Inf, or it is +Inf.
func (p *peaked) argmax() (int, error) {
	best, at := float32(math.Inf(-1)), 0
	for i, peak := range p.peaks {
		if peak > best {
			best, at = peak, i
		}
	}
	if math.IsInf(float64(best), 0) {
		return 0, errLogits
	}
	first, block := p.block(at)
	return first + slices.Index(block, best), nil
}

// kthLargest returns the len(heap)-th largest logit, -Inf if there are fewer. heap is scratch, a min-heap of the largest
// met so far.
func (p *peaked) kthLargest(heap []float32) float32 {
	empty := func() {
		for i := range heap {
			heap[i] = float32(math.Inf(-1))
		}
	}
	empty()
	for _, peak := range p.peaks {
		offer(heap, peak)
	}
	floor := heap[0] // peaks are logits, so there are enough that are no smaller
	empty()
	for i, peak := range p.peaks {
		if !(peak >= floor) {
			continue
		}
		_, block := p.block(i)
		for _, l := range block {
			if l >= floor {
				offer(heap, l)
			}
		}
	}
	return heap[0]
}

// offer puts x in the place of the smallest element of a min-heap if x is larger.
func offer(heap []float32, x float32) {
	if !(x > heap[0]) {
		return
	}
	at := 0
	for {
		child := 2*at + 1
		if child >= len(heap) {
			break
		}
		if child+1 < len(heap) && heap[child+1] < heap[child] {
			child++
		}
		if heap[child] >= x {
			break
		}
		heap[at] = heap[child]
		at = child
	}
	heap[at] = x
}

// peaksScalar writes the largest of each peakLen of x to peaks.
func peaksScalar(peaks, x []float32) {
	for i := range peaks {
		peak := float32(math.Inf(-1))
		for _, v := range x[i*peakLen : min((i+1)*peakLen, len(x))] {
			if v > peak {
				peak = v
			}
		}
		peaks[i] = peak
	}
}

// expSumsScalar returns Σ w and Σ w·d over d = (x - best)·scale that are above least, which is minExp or more; w = exp(d).
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

// minExp is where an exponential counts as nothing: it stands for a probability under 1e-34.
const minExp = -80

// exp is e^x for x ≤ 0; 0 below minExp and for NaN.
func exp(x float32) float32 {
	if x > minExp {
		return expNear(x)
	}
	return 0
}

// expNear is e^x for minExp < x ≤ 0, to 3e-7 of its value. A whole vocabulary goes through it for each token: it is
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
