package decoder

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// lengths are those at which blocks, vectors and sums end or do not.
var lengths = []int{0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 200, 1024, 1031, 5000}

// rough is normal with NaN, infinities and ties among it.
func rough(seed uint64, n int) []float32 {
	l := normal(seed, n)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := range l {
		switch rng.IntN(8) {
		case 0:
			l[i] = nan
		case 1:
			l[i] = negInf
		case 2:
			l[i] = 3
		}
	}
	return l
}

func TestArgmax(t *testing.T) {
	for _, n := range lengths {
		for seed := range uint64(20) {
			x := rough(seed, n)
			for i := range x {
				if seed%2 == 1 && x[i] > 3 {
					x[i] = 3 // the largest many times
				}
			}
			want := -1
			for i, v := range x {
				if v > negInf && (want < 0 || v > x[want]) {
					want = i
				}
			}
			var p peaked
			p.reset(x)
			if got, err := p.argmax(); want >= 0 && got != want || (err == nil) != (want >= 0) {
				t.Errorf("of %d logits, seed %d: %d %v, want %d", n, seed, got, err, want)
			}
		}
	}
}

func TestKthLargest(t *testing.T) {
	for _, n := range lengths {
		x := rough(uint64(n)+1, n)
		var p peaked
		p.reset(x)
		sorted := slices.DeleteFunc(slices.Clone(x), func(v float32) bool { return v != v })
		slices.SortFunc(sorted, func(a, b float32) int { return cmp.Compare(b, a) })
		for _, k := range []int{1, 2, 3, 10, 50, 77, 1000} {
			want := negInf
			if k <= len(sorted) {
				want = sorted[k-1]
			}
			if got := p.kthLargest(make([]float32, k)); got != want {
				t.Errorf("%d-th largest of %d: %g, want %g", k, n, got, want)
			}
		}
	}
}
