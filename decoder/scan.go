package decoder

import (
	"math"
	"slices"

	"github.com/mmserve/mmserve/internal/kernels"
)

// peakLen is the number of logits that share a peak.
const peakLen = kernels.PeakLen

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
	kernels.Peaks(p.peaks, logits)
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

// kthLargest returns the len(heap)-th largest logit, -Inf if there are fewer. heap is scratch, a min-heap of the
// largest met so far.
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
