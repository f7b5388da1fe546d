package vision

import (
	"math"
	"testing"
)

// What PyTorch's interpolate with antialias weighs cells by, and where there are more places than cells, what it weighs
// them by without.
func TestAreaPositions(t *testing.T) {
	p := PositionTable{Side: 6, Sampling: Area}
	for i, want := range []struct {
		from   int
		shares []float64
	}{
		{0, []float64{0.625, 0.375}}, {1, []float64{1. / 3, 5. / 9, 1. / 9}}, {2, []float64{1. / 9, 5. / 9, 1. / 3}},
		{4, []float64{0.375, 0.625}},
	} {
		got := p.taps(4)[i]
		if len(got) != len(want.shares) {
			t.Fatalf("place %d: %v, want %v", i, got, want)
		}
		for k, tap := range got {
			if tap.at != want.from+k || math.Abs(float64(tap.share)-want.shares[k]) > 1e-6 {
				t.Errorf("place %d: %v, want %v", i, got, want)
			}
		}
	}
	shares := func(p PositionTable, n, i int) map[int]float64 {
		m := map[int]float64{}
		for _, tap := range p.taps(n)[i] {
			if tap.share > 1e-6 {
				m[tap.at] += float64(tap.share)
			}
		}
		return m
	}
	for _, n := range []int{6, 7, 10, 64} {
		for i := range n {
			got, want := shares(p, n, i), shares(PositionTable{Side: 6, Sampling: Centres}, n, i)
			for at, share := range want {
				if math.Abs(got[at]-share) > 1e-5 || len(got) != len(want) {
					t.Errorf("place %d of %d: %v, want %v", i, n, got, want)
				}
			}
		}
	}
}
