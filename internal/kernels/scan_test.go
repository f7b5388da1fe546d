package kernels

import (
	"math"
	"math/rand/v2"
	"testing"
)

var negInf, nan = float32(math.Inf(-1)), float32(math.NaN())

// lengths are those at which blocks, vectors and sums end or do not.
var lengths = []int{0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 200, 1024, 1031, 5000}

// normal is n values as logits are spread.
func normal(seed uint64, n int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	l := make([]float32, n)
	for i := range l {
		l[i] = float32(2.5 * rng.NormFloat64())
	}
	for range min(20, n) {
		l[rng.IntN(n)] += float32(6 + 3*rng.Float64())
	}
	return l
}

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
		peaks, scalar := make([]float32, (n+PeakLen-1)/PeakLen), make([]float32, (n+PeakLen-1)/PeakLen)
		Peaks(peaks, x)
		peaksScalar(scalar, x)
		for i, peak := range peaks {
			want := negInf
			for _, v := range x[i*PeakLen : min((i+1)*PeakLen, n)] {
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

// Peaks without room for them are refused before C writes.
func TestPeaksHaveRoom(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("65 values had room in one peak")
		}
	}()
	Peaks(make([]float32, 1), make([]float32, PeakLen+1))
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
			least := []float32{MinExp, MinExp, -2.5, MinExp}[i]
			weight, weighted := 0.0, 0.0
			for _, v := range x {
				if d := (v - best) * scale; d > least {
					weight += math.Exp(float64(d))
					weighted += math.Exp(float64(d)) * float64(d)
				}
			}
			near := func(a, b float64) bool { return math.Abs(a-b) <= 4e-7*math.Abs(b) }
			if a, b := ExpSums(x, best, scale, least); !near(a, weight) || !near(b, weighted) {
				t.Errorf("%d logits, scale %g: %g and %g, want %g and %g", n, scale, a, b, weight, weighted)
			}
			if a, b := expSumsScalar(x, best, scale, least); !near(a, weight) || !near(b, weighted) {
				t.Errorf("%d logits, scale %g, scalar: %g and %g, want %g and %g", n, scale, a, b, weight, weighted)
			}
		}
	}
}

func TestExp(t *testing.T) {
	if Exp(0) != 1 || Exp(-81) != 0 || Exp(negInf) != 0 || Exp(nan) != 0 {
		t.Errorf("exp(0) = %g, exp(-81) = %g, exp(-Inf) = %g, exp(NaN) = %g", Exp(0), Exp(-81), Exp(negInf), Exp(nan))
	}
	for x := float32(0); x > -80; x -= 0.00097 {
		want := math.Exp(float64(x))
		if got := float64(Exp(x)); math.Abs(got-want) > 3e-7*want {
			t.Fatalf("exp(%g) = %g, want %g", x, got, want)
		}
	}
}

func BenchmarkExpSums(b *testing.B) {
	x := normal(1, 49152)
	for b.Loop() {
		ExpSums(x, 20, 1, MinExp)
	}
}

func BenchmarkPeaks(b *testing.B) {
	x, peaks := normal(1, 49152), make([]float32, 49152/PeakLen)
	for b.Loop() {
		Peaks(peaks, x)
	}
}
