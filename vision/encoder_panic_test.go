package vision

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/crew"
)

// panickingTower panics in one of its methods, as long as at says which.
type panickingTower struct {
	countingTower
	at string
}

func (p *panickingTower) panicAt(method string) {
	if p.at == method {
		panic("a fault of the tower")
	}
}

func (p *panickingTower) Load(place int, img *Image, i int, normalize Normalizer) error {
	p.panicAt("Load")
	return p.countingTower.Load(place, img, i, normalize)
}

func (p *panickingTower) Run(ctx context.Context, n int) error {
	p.panicAt("Run")
	return p.countingTower.Run(ctx, n)
}

func (p *panickingTower) Patches(place int) []float32 {
	p.panicAt("Patches")
	return p.countingTower.Patches(place)
}

func (p *panickingTower) Pack(g Grid, patches []float32) []float32 {
	p.panicAt("Pack")
	return p.countingTower.Pack(g, patches)
}

// A panic under an image is that image's error: the process and the worker live on, and the image can be asked for
// again.
func TestTowerPanics(t *testing.T) {
	for _, method := range []string{"Load", "Run", "Patches", "Pack"} {
		tower := &panickingTower{countingTower: countingTower{in: make([]float32, 4)}, at: method}
		e := NewEncoder(tower, widen, 1<<20)
		img := imageOf(1, 2)
		if _, _, err := e.Encode(t.Context(), img); !errors.As(err, new(*crew.Panic)) {
			t.Errorf("%s: %v, want the panic", method, err)
		}
		tower.at = ""
		if got, _, err := e.Encode(t.Context(), img); err != nil || !slices.Equal(got, patchesOf(img)) {
			t.Errorf("%s, once it is over: %v, %v", method, got, err)
		}
		e.Close()
	}
}
