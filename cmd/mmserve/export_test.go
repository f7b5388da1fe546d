package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/export/exporttest"
)

// exportFolder is a copy of the embedded model's folder with ready-made graphs instead of weights.
func exportFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", "model", "tiny-vlm"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "model.safetensors")); err != nil {
		t.Fatal(err)
	}
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s := exporttest.Source{Tower: m.Tower, Connector: m.Connector, Decoder: m.Decoder, Weights: m.Weights}
	if err := exporttest.Write(dir, s, exporttest.Options{Tiles: true, KeepLogits: true, External: true}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The commands take a folder of ready-made graphs as they take a checkpoint, and say so.
func TestExportFolder(t *testing.T) {
	dir := exportFolder(t)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"caption", "--model", dir, filepath.Join(dir, "samples", "sample0.png")}, 0, "sample0.png: A large orange star in the center on a beige background.\n"},
		{[]string{"model", "inspect", dir}, 0, "ready-made ONNX graphs: the folder has no safetensors\n"},
		{[]string{"model", "inspect", dir}, 0, "decoder_model_merged.onnx, "},
		{[]string{"model", "verify", dir, "--gold", filepath.Join("..", "..", "testdata", "tiny-vlm-gold", "gold.jsonl")}, 0,
			"87 cases, 0 missed"},
		{[]string{"caption", "--model", dir, "--precision", "int8", filepath.Join(dir, "samples", "sample0.png")}, 1,
			"--onnx-dtype"},
		{[]string{"caption", "--model", dir, "--onnx-dtype", "q4", filepath.Join(dir, "samples", "sample0.png")}, 1,
			"onnx/ has no vision_encoder as q4; it has fp32"},
		{[]string{"caption", "--onnx-dtype", "q4"}, 1, "the embedded model has no ready-made graphs"},
	} {
		code, out, errs := mmserve(t, c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%v: status %d, %s%s; want %d, %q", c.args, code, out, errs, c.code, c.want)
		}
	}
	// With a checkpoint beside them the graphs have to be asked for.
	weights, err := os.ReadFile(filepath.Join("..", "..", "model", "tiny-vlm", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), weights, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"straight from safetensors, which goes before": {"model", "inspect", dir},
		"ready-made ONNX graphs: --onnx-dtype":         {"model", "inspect", dir, "--onnx-dtype", "fp32"},
	} {
		if code, out, errs := mmserve(t, args...); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%v: status %d, %s%s; want %q", args, code, out, errs, want)
		}
	}
}
