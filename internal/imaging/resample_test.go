package imaging

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

func TestResampleAsPillow(t *testing.T) {
	src, err := Decode(context.Background(), readFile(t, "photos/astronaut.png"), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range readGolden[[]struct {
		Filter, W, H int
		SHA256       string
	}](t, "resample.json") {
		crop := NewRGB(301, 227)
		for y := range crop.H {
			copy(crop.Row(y), src.Row(y)[300:])
		}
		got, err := Filters[c.Filter].Resize(context.Background(), crop, c.W, c.H)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(got.Pix); got.W != c.W || got.H != c.H || hex.EncodeToString(sum[:]) != c.SHA256 {
			t.Errorf("filter %d to %d×%d: other pixels than Pillow", c.Filter, c.W, c.H)
		}
	}
}

// An image on a canvas that is never made gives what the canvas, made, would give.
func TestResizeOnCanvas(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		p := NewRGB(1+rng.IntN(90), 1+rng.IntN(90))
		for i := range p.Pix {
			p.Pix[i] = uint8(rng.IntN(256))
		}
		side := max(p.W, p.H)
		c := Canvas{W: side, H: side, X: (side - p.W) / 2, Y: (side - p.H) / 2}
		c.Color = [3]uint8{122, 255, uint8(rng.IntN(256))}
		made := NewRGB(side, side)
		for y := range side {
			copy(made.Row(y), frameRow(c.Color, side))
		}
		for y := range p.H {
			copy(made.Row(c.Y + y)[3*c.X:], p.Row(y))
		}
		w := 1 + rng.IntN(100)
		if rng.IntN(4) == 0 {
			w = side
		}
		part := [4]int{0, 0, w, w}
		if w > 4 && rng.IntN(2) == 0 {
			part = [4]int{1, 2, w - 3, w - 4}
		}
		f := Filters[1+rng.IntN(3)]
		want, err := Scaling{f, Canvas{W: side, H: side}, [2]int{w, w}, part}.Of(context.Background(), made)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Scaling{f, c, [2]int{w, w}, part}.Of(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		if got.W != want.W || got.H != want.H || !bytes.Equal(got.Pix, want.Pix) {
			t.Fatalf("%d×%d on a square to %d, part %v: other pixels", p.W, p.H, w, part)
		}
	}
}
