package decoder

import (
	"cmp"
	"math"
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

func TestPeaks(t *testing.T) {
	for _, n := range lengths {
		x := rough(uint64(n), n)
		var p peaked
		p.reset(x)
		if len(p.peaks) != (n+peakLen-1)/peakLen {
			t.Fatalf("%d logits have %d peaks", n, len(p.peaks))
		}
		scalar := make([]float32, len(p.peaks))
		peaksScalar(scalar, x)
		for i, peak := range p.peaks {
			want := negInf
			_, block := p.block(i)
			for _, v := range block {
				if v > want {
					want = v
				}
			}
			if peak != want || scalar[i] != want {
				t.Errorf("peak %d of %d logits is %g, and %g by the scalar loop, want %g", i, n, peak, scalar[i], want)
			}
		}
	}
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

func TestExpSums(t *testing.T) {
	for _, n := range lengths {
		x := rough(uint64(n)+2, n)
		best := float32(0)
		for _, v := range x {
			if v > best {
				best = v
			}
		}
		for i, scale := range []float32{.5, 1, 1.4, 1000} {
			least := []float32{minExp, minExp, -2.5, minExp}[i]
			weight, weighted := 0.0, 0.0
			for _, v := range x {
				if d := (v - best) * scale; d > least {
					weight += math.Exp(float64(d))
					weighted += math.Exp(float64(d)) * float64(d)
				}
			}
			near := func(a, b float64) bool { return math.Abs(a-b) <= 4e-7*math.Abs(b) }
			if a, b := expSums(x, best, scale, least); !near(a, weight) || !near(b, weighted) {
				t.Errorf("%d logits, scale %g: %g and %g, want %g and %g", n, scale, a, b, weight, weighted)
			}
			if a, b := expSumsScalar(x, best, scale, least); !near(a, weight) || !near(b, weighted) {
				t.Errorf("%d logits, scale %g, scalar: %g and %g, want %g and %g", n, scale, a, b, weight, weighted)
			}
		}
	}
}

func TestExp(t *testing.T) {
	if exp(0) != 1 || exp(-81) != 0 || exp(negInf) != 0 || exp(nan) != 0 {
		t.Errorf("exp(0) = %g, exp(-81) = %g, exp(-Inf) = %g, exp(NaN) = %g", exp(0), exp(-81), exp(negInf), exp(nan))
	}
	for x := float32(0); x > -80; x -= 0.00097 {
		want := math.Exp(float64(x))
		if got := float64(exp(x)); math.Abs(got-want) > 3e-7*want {
			t.Fatalf("exp(%g) = %g, want %g", x, got, want)
		}
	}
}

func BenchmarkExpSums(b *testing.B) {
	x := normal(1, 49152)
	for b.Loop() {
		expSums(x, 20, 1, minExp)
	}
}

func BenchmarkPeaks(b *testing.B) {
	var p peaked
	x := normal(1, 49152)
	for b.Loop() {
		p.reset(x)
	}
}
