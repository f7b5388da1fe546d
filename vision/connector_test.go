package vision

import (
	"math"
	"testing"
)

// anyRes is LLaVA-OneVision in small: tiles of 4×4 patches, one value each.
var (
	anyResTower = ViT{ImageSize: 32, PatchSize: 8}
	anyRes      = AnyRes{MLP: MLP{TextHidden: 1}, MaxTiles: 2,
		Pinpoints: Pinpoints{{1, 1}, {1, 2}, {2, 1}, {2, 2}, {2, 3}}}
)

// mapOf gives patches whose value is f of their place in the map that the tiles make; the whole image's are -1.
func mapOf(g Grid, f func(y, x int) float32) []float32 {
	const side = 4
	patches := make([]float32, 0, g.Tiles()*side*side)
	for range side * side {
		patches = append(patches, -1)
	}
	for tile := range g.Rows * g.Cols {
		for i := range side * side {
			patches = append(patches, f(tile/g.Cols*side+i/side, tile%g.Cols*side+i%side))
		}
	}
	return patches
}

const newline = 1e6

func TestPack(t *testing.T) {
	place := func(y, x int) float32 { return float32(100*y + x) }
	for _, c := range []struct {
		w, h                             int // of the image
		gridRows, gridCols               int
		top, left, rows, cols, positions int
	}{
		{32, 32, 1, 1, 0, 0, 4, 4, 16 + 4*5},
		{64, 32, 1, 2, 0, 0, 4, 8, 16 + 4*9},
		{64, 20, 1, 2, 1, 0, 2, 8, 16 + 2*9}, // int(20·8/64) = 2 rows of 4: one above and one below are padding
		{20, 64, 2, 1, 0, 1, 8, 2, 16 + 8*3},
		{64, 25, 1, 2, 0, 0, 4, 8, 16 + 4*9}, // 3 rows: half of the one that is left over is none
	} {
		g := anyRes.Pinpoints.Grid(c.w, c.h, 32)
		if g != (Grid{Rows: c.gridRows, Cols: c.gridCols, Width: c.w, Height: c.h}) {
			t.Errorf("%d×%d: grid %+v", c.w, c.h, g)
			continue
		}
		got := anyRes.pack(anyResTower, g, mapOf(g, place), [][]float32{{newline}})
		if len(got) != c.positions || ImageTokens(anyRes, anyResTower, g) != c.positions {
			t.Errorf("%d×%d: %d positions, foretold %d, want %d", c.w, c.h, len(got), ImageTokens(anyRes, anyResTower, g), c.positions)
			continue
		}
		for i, x := range got[:16] {
			if x != -1 {
				t.Errorf("%d×%d: position %d is not of the whole image", c.w, c.h, i)
			}
		}
		for y := range c.rows {
			row := got[16+y*(c.cols+1):][:c.cols+1]
			for x := range c.cols {
				if row[x] != place(y+c.top, x+c.left) {
					t.Errorf("%d×%d: row %d is %v", c.w, c.h, y, row)
				}
			}
			if row[c.cols] != newline {
				t.Errorf("%d×%d: row %d does not end with the vector", c.w, c.h, y)
			}
		}
	}
	if got := anyRes.pack(anyResTower, Grid{}, mapOf(Grid{}, place), [][]float32{{newline}}); len(got) != 17 ||
		got[16] != newline {
		t.Errorf("one tile: %v", got)
	}
}

// A map of far more than MaxTiles tiles is made smaller: linear interpolation keeps a slope a slope.
func TestPackShrinks(t *testing.T) {
	g := anyRes.Pinpoints.Grid(96, 64, 32)
	if g.Rows != 2 || g.Cols != 3 {
		t.Fatalf("grid %+v", g)
	}
	// 8×12 patches for 2 tiles of 16: ratio √3, so 4 rows of 6.
	got := anyRes.pack(anyResTower, g, mapOf(g, func(y, x int) float32 { return float32(100*y + x) }),
		[][]float32{{newline}})
	if want := 16 + 4*7; len(got) != want || ImageTokens(anyRes, anyResTower, g) != want {
		t.Fatalf("%d positions, foretold %d, want %d", len(got), ImageTokens(anyRes, anyResTower, g), want)
	}
	for y := range 4 {
		for x := range 6 {
			// The middle of sample (y, x) in the larger map.
			want := 100*((float64(y)+0.5)*2-0.5) + (float64(x)+0.5)*2 - 0.5
			if v := float64(got[16+7*y+x]); math.Abs(v-want) > 1e-3 {
				t.Errorf("%d,%d is %g, want %g", y, x, v, want)
			}
		}
	}
}

// What Locate and Expand are told must be what pack gives, for every shape of image.
func FuzzPackedTokens(f *testing.F) {
	f.Add(uint16(640), uint16(480))
	f.Add(uint16(1), uint16(9999))
	f.Fuzz(func(t *testing.T, w, h uint16) {
		g := anyRes.Pinpoints.Grid(max(1, int(w)), max(1, int(h)), 32)
		got := anyRes.pack(anyResTower, g, mapOf(g, func(int, int) float32 { return 0 }), [][]float32{{newline}})
		if want := ImageTokens(anyRes, anyResTower, g); len(got) != want {
			t.Errorf("%d×%d: packed %d, foretold %d", w, h, len(got), want)
		}
	})
}
