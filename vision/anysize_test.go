package vision

import (
	"math"
	"strings"
	"testing"
)

// anySize is a small tower.
func anySize() AnySize {
	return AnySize{
		NativeResolution: NativeResolution{PatchSize: 4, MergeSize: 2, Width: 24}, Frames: 2,
		Hidden: 32, Intermediate: 48, Layers: 3, Heads: 2, Norm: Norm{Eps: 1e-6}, Activation: "silu",
		Rope: AxisRope{Theta: 10000}, Merger: BlockMerger{},
	}
}

// Every patch runs once, those of a block side by side, and a window is what lies in one square of the image.
func TestRunOrder(t *testing.T) {
	for _, c := range []struct{ merge, window, rows, cols int }{
		{2, 0, 6, 10}, {2, 8, 16, 16}, {2, 8, 18, 6}, {2, 6, 20, 14}, {1, 0, 3, 5}, {1, 4, 7, 9}, {3, 9, 12, 21},
		{2, 2, 4, 4},
	} {
		a := anySize()
		a.MergeSize, a.Window = c.merge, c.window
		o := a.order(c.rows, c.cols)
		n, block := c.rows*c.cols, c.merge*c.merge
		if len(o.row) != n || len(o.col) != n || len(o.source) != n || len(o.token) != n/block {
			t.Fatalf("%+v: %d rows, %d tokens", c, len(o.row), len(o.token))
		}
		seen, tokens := make([]bool, n), make([]bool, n/block)
		for i := range n {
			row, col := int(o.row[i]), int(o.col[i])
			first := i / block * block
			if row/c.merge != int(o.row[first])/c.merge || col/c.merge != int(o.col[first])/c.merge || seen[row*c.cols+col] {
				t.Fatalf("%+v: patch %d is that of row %d and column %d", c, i, row, col)
			}
			seen[row*c.cols+col] = true
			number := row/c.merge*(c.cols/c.merge) + col/c.merge
			if want := number*block + row%c.merge*c.merge + col%c.merge; int(o.source[i]) != want {
				t.Fatalf("%+v: patch %d comes from %d, want %d", c, i, o.source[i], want)
			}
			if i == first {
				if int(o.token[i/block]) != number || tokens[number] {
					t.Fatalf("%+v: token %d has number %d, want %d", c, i/block, o.token[i/block], number)
				}
				tokens[number] = true
			}
		}
		at, squares := 0, map[[2]int]bool{}
		for _, length := range o.windows {
			side := max(c.window, 1<<20*(1-min(c.window, 1)))
			square := [2]int{int(o.row[at]) / side, int(o.col[at]) / side}
			if length < 1 || squares[square] {
				t.Fatalf("%+v: a window of %d patches in square %v, which had one: %t", c, length, square, squares[square])
			}
			squares[square] = true
			for i := at; i < at+int(length); i++ {
				if [2]int{int(o.row[i]) / side, int(o.col[i]) / side} != square {
					t.Fatalf("%+v: patch %d is in another window", c, i)
				}
			}
			at += int(length)
		}
		if at != n {
			t.Errorf("%+v: windows of %d patches, want %d", c, at, n)
		}
	}
}

// Shares are what each way of sampling says, and a table of an image's own size is itself.
func TestPositionTaps(t *testing.T) {
	at := func(s Sampling, side, n, i int) map[int]float64 {
		sum := map[int]float64{}
		for _, k := range (PositionTable{side, s}).taps(n)[i] {
			sum[k.at] += float64(k.share)
		}
		return sum
	}
	same := func(got, want map[int]float64) bool {
		for _, m := range []map[int]float64{got, want} {
			for k := range m {
				if math.Abs(got[k]-want[k]) > 1e-6 {
					return false
				}
			}
		}
		return true
	}
	for _, c := range []struct {
		sampling   Sampling
		side, n, i int
		want       map[int]float64
	}{
		{Corners, 6, 11, 3, map[int]float64{1: 0.5, 2: 0.5}}, {Corners, 6, 4, 3, map[int]float64{5: 1}},
		{Corners, 6, 1, 0, map[int]float64{0: 1}}, {Corners, 6, 4, 1, map[int]float64{1: 1. / 3, 2: 2. / 3}},
		{Centres, 6, 12, 0, map[int]float64{0: 1}}, {Centres, 6, 12, 1, map[int]float64{0: 0.75, 1: 0.25}},
		{Centres, 6, 12, 11, map[int]float64{5: 1}}, {Centres, 6, 3, 1, map[int]float64{2: 0.5, 3: 0.5}},
		{Cubic, 6, 3, 1, map[int]float64{1: -0.09375, 2: 0.59375, 3: 0.59375, 4: -0.09375}},
		{Cubic, 6, 12, 0, map[int]float64{0: 1.10546875, 1: -0.10546875}},
		{Cubic, 2, 1, 0, map[int]float64{0: 0.5, 1: 0.5}},
	} {
		if got := at(c.sampling, c.side, c.n, c.i); !same(got, c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
	for _, s := range []Sampling{Corners, Centres, Cubic} {
		for _, side := range []int{1, 2, 7, 48} {
			for i := range side {
				if got := at(s, side, side, i); !same(got, map[int]float64{i: 1}) {
					t.Errorf("sampling %d of %d: place %d is %v", s, side, i, got)
				}
			}
			for n := range 40 {
				for i := range n {
					sum := 0.0
					for k, share := range at(s, side, n, i) {
						if sum += share; k < 0 || k >= side {
							t.Errorf("sampling %d of %d: place %d of %d reads %d", s, side, i, n, k)
						}
					}
					if math.Abs(sum-1) > 1e-5 {
						t.Errorf("sampling %d of %d: shares of place %d of %d add up to %g", s, side, i, n, sum)
					}
				}
			}
		}
	}
}

// The memory of a run grows with patches, and never beyond what was asked for.
func TestAnySizeBudget(t *testing.T) {
	a := anySize()
	a.Hidden, a.Intermediate, a.Heads, a.Width, a.PatchSize = 1280, 3420, 16, 2048, 14
	a.GatedMLP = true
	if least, most := int64(4*5*1280), int64(4*40*1280); a.RunBytes(1) < least || a.RunBytes(1) > most {
		t.Errorf("a patch takes %d bytes, want %d to %d", a.RunBytes(1), least, most)
	}
	if n := a.MostPatches(1<<40, false); n != mostAnySize {
		t.Errorf("of any size: %d patches", n)
	}
	for _, scores := range []bool{false, true} {
		before := 0
		for _, bytes := range []int64{0, 1 << 20, 64 << 20, 1 << 30, 4 << 30} {
			n := a.MostPatches(bytes, scores)
			takes := a.RunBytes(n)
			if scores {
				takes += a.scoreBytes(n)
			}
			if n < before || n > 4 && takes > bytes || n < mostAnySize && n > 4 && 2*takes < bytes {
				t.Errorf("%d bytes, scores %t: %d patches, which take %d", bytes, scores, n, takes)
			}
			before = n
		}
	}
}

// What no graph can be built from is refused by name.
func TestAnySizeValidate(t *testing.T) {
	if err := anySize().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*AnySize){
		"hidden_size is 0":      func(a *AnySize) { a.Hidden = 0 },
		"heads over a width":    func(a *AnySize) { a.Heads = 3 },
		"heads of 4 to 1024":    func(a *AnySize) { a.Hidden, a.Heads = 40, 4 },
		"multiples of 4":        func(a *AnySize) { a.Hidden, a.Heads = 2056, 2 },
		"patch_size is 65":      func(a *AnySize) { a.PatchSize = 65 },
		"spatial_merge_size":    func(a *AnySize) { a.MergeSize = 9 },
		"temporal_patch_size":   func(a *AnySize) { a.Frames = 9 },
		"windows of 3":          func(a *AnySize) { a.Window = 3 },
		"layers [3]":            func(a *AnySize) { a.Whole = []int{3} },
		"layers [1 0]":          func(a *AnySize) { a.Deepstack = []int{1, 0} },
		"24 values in 5 parts":  func(a *AnySize) { a.Deepstack, a.Layers = []int{0, 1, 2, 3}, 4 },
		"rope_theta is NaN":     func(a *AnySize) { a.Rope.Theta = math.NaN() },
		"rope_theta is 0.5":     func(a *AnySize) { a.Rope.Theta = 0.5 },
		"rope_theta is 0":       func(a *AnySize) { a.Rope.Theta = 0 },
		"a position table":      func(a *AnySize) { a.Positions.Side = 1 << 11 },
		"table of 0×0":          func(a *AnySize) { a.Positions = PositionTable{Sampling: Cubic} },
		`hidden_act "sin"`:      func(a *AnySize) { a.Activation = "sin" },
		"blocks of several":     func(a *AnySize) { a.Merger = MLPMerger{Activation: "gelu"} },
		"projector_hidden_act":  func(a *AnySize) { a.Merger = UnfoldMerger{} },
		"inner layer":           func(a *AnySize) { a.Merger = DownsampleMerger{Activation: "silu"} },
		"intermediate_size is ": func(a *AnySize) { a.Intermediate = 1 << 21 },
	} {
		a := anySize()
		change(&a)
		if err := a.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
}

// An image whose patches are repeated otherwise than the tower takes them is refused: normalising would write beyond
// it.
func TestFramesOfImage(t *testing.T) {
	p := NativeResolution{PatchSize: 2, MergeSize: 1}
	for frames, fits := range []bool{true, false, true, false} { // 0 where nobody says
		img := &Image{Size: 2, Frames: frames, Grid: Grid{Width: 4, Height: 2}, Pixels: make([]uint8, 3*4*2)}
		if err := p.check(img, 2*3*2*2); (err == nil) != fits {
			t.Errorf("%d frames of 2: %v", frames, err)
		}
	}
}
