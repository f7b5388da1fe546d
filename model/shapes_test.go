package model

import (
	"os"
	"testing"

	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/model/modeltest"
)

// The shape that scripts/gpu-check.sh measures is one of a supported model with some two billion weights.
func TestGPUCheckShape(t *testing.T) {
	raw, err := os.ReadFile(modeltest.Path("scripts", "gpu-check", "2b.json"))
	if err != nil {
		t.Fatal(err)
	}
	family, s, err := families.Read(raw)
	if err != nil || family != "idefics3" {
		t.Fatal(family, err)
	}
	m := &Model{Spec: s}
	if n := decoderWeights(m); n < 1.5e9 || n > 2e9 {
		t.Errorf("%g weights in a decode step", n)
	}
	if f := towerWork(m); f < 0.5e12 || f > 1e12 {
		t.Errorf("%g operations a tile", f)
	}
}
