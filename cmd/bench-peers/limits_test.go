package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/safetensors"
)

// The share of a limit is what a step reads, or a prompt multiplies, by what the machine can.
func TestShares(t *testing.T) {
	at := limits{read: 20e9, peak8: 400e9}
	got := at.shares([]value{
		{"decode, streams: 1, tokens/s", "a", own, 100}, {"decode, streams: 4, tokens/s", "a", own, 300},
		{"prefill of 256, tokens/s", "a", own, 1000},
	}, weights{bytes: 150e6, layers: 100e6})
	want := []value{{shareRead, "a", own, 75}, {sharePeak, "a", own, 25}}
	if !slices.EqualFunc(got, want, func(a, b value) bool {
		return a.Metric == b.Metric && a.Peer == b.Peer && math.Abs(a.Value-b.Value) < 1e-9
	}) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := (limits{}).shares(want, weights{}); len(got) != 0 {
		t.Errorf("of no known limit: %v", got)
	}
}

// A step reads the matrices of the decoder's layers and of its head, whether that is the embeddings' or its own; no norm
// and no part of the tower.
func TestWeights(t *testing.T) {
	dir := t.TempDir()
	hf := filepath.Join(dir, "models", "hf")
	if err := os.MkdirAll(hf, 0o777); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(hf, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []safetensors.Tensor
	for name, shape := range map[string][]int{
		"model.text_model.layers.0.mlp.up_proj.weight": {8, 4}, "model.text_model.layers.0.norm.weight": {4},
		"model.text_model.embed_tokens.weight": {10, 4}, "model.vision_model.layers.0.fc1.weight": {4, 4},
	} {
		n := 4
		for _, d := range shape {
			n *= d
		}
		list = append(list, safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: shape, Data: make([]byte, n)})
	}
	if err := safetensors.Write(f, list); err != nil {
		t.Fatal(err)
	}
	m := &mmserve{config: config{folder: dir, precision: "int4"}}
	if got, want := m.weights(), (weights{bytes: 32*4.5/8 + 40, layers: 32}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestLimitsAreMeasured(t *testing.T) {
	if testing.Short() || bandwidth(1) == 0 {
		t.Skip("not measured here")
	}
	if peak := peak8(1); peak != 0 && (peak < 1e9 || peak > 1e13) {
		t.Errorf("%g products of 8 bits a second", peak)
	}
}
