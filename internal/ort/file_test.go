//go:build unix

package ort

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
)

// writeGraph writes a graph as a file and reads its head.
func writeGraph(t *testing.T, path string, g *onnx.Graph) File {
	t.Helper()
	if err := os.WriteFile(path, g.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestModelFilesHaveNoOwnOperators holds both that a file with them is refused by name and that its session would not
// know them.
func TestModelFilesHaveNoOwnOperators(t *testing.T) {
	startLibrary(t)
	if !kernels.Available() {
		t.Skip("this processor lacks AVX2: mmserve's own operators are not used on it")
	}
	g := onnx.New("own")
	g.Input("x", onnx.F32, "R", 16)
	w := g.Inline("w", onnx.I8, []int{1, 4, 16, 4}, make([]byte, 256))
	scale := g.F32s("scale", []int{16}, make([]float32, 16))
	start := g.Inline("start", onnx.I32, []int{16}, make([]byte, 64))
	attrs := onnx.Attrs{"k": 16, "n": 16, "activation": 0}
	g.Node(onnx.Own, "RowLinear8", attrs, []string{"x", w, scale, start}, []string{"y"})
	g.Output("y", onnx.F32, "R", 16)
	f := writeGraph(t, filepath.Join(t.TempDir(), "own.onnx"), g)
	_, err := OpenFile(f, []string{"y"}, Options{})
	if err == nil || !strings.Contains(err.Error(), `operators of domain "mmserve"`) {
		t.Errorf("got %v, want a refusal that names the domain", err)
	}
	f.Domains = nil
	if s, err := OpenFile(f, []string{"y"}, Options{}); err == nil {
		s.Close()
		t.Error("the domain is registered for a model file")
	} else if !strings.Contains(err.Error(), "RowLinear8") {
		t.Errorf("got %v, want ONNX Runtime not to know the operator", err)
	}
}

func TestExternalDataStaysInTheFolder(t *testing.T) {
	startLibrary(t)
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, blobs := filepath.Join(root, "model"), filepath.Join(root, "blobs")
	must(os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	must(os.Mkdir(blobs, 0o755))
	secret, data := filepath.Join(root, "secret"), filepath.Join(dir, "data")
	for _, p := range []string{secret, data, filepath.Join(dir, "sub", "data"), filepath.Join(blobs, "b")} {
		must(os.WriteFile(p, make([]byte, 16), 0o644))
	}
	must(os.WriteFile(filepath.Join(dir, "short"), make([]byte, 15), 0o644))
	must(os.Symlink("../secret", filepath.Join(dir, "link")))
	must(os.Symlink("..", filepath.Join(dir, "up")))
	must(os.Symlink("data", filepath.Join(dir, "near")))
	must(os.Symlink("../blobs/b", filepath.Join(dir, "hub")))
	must(syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	open := func(path, location string) error {
		g := onnx.New("far")
		g.Input("x", onnx.F32, 4)
		g.External("w", onnx.F32, []int{4}, location, 0, 16)
		g.Node("", "Add", nil, []string{"x", "w"}, []string{"y"})
		g.Output("y", onnx.F32, 4)
		real := path
		if to, err := os.Readlink(path); err == nil {
			real = filepath.Join(filepath.Dir(path), to)
		}
		must(os.WriteFile(real, g.Bytes(), 0o644))
		f, err := ReadFile(path)
		must(err)
		s, err := OpenFile(f, []string{"y"}, Options{})
		if err == nil {
			s.Close()
		}
		return err
	}
	for _, good := range []string{"data", "sub/data", "near"} {
		if err := open(filepath.Join(dir, "m.onnx"), good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		secret, data, "../secret", "sub/../../secret", "link", "up/secret", "pipe", "short", "gone", "", ".", "sub",
		`..\secret`, "hub",
	} {
		if err := open(filepath.Join(dir, "m.onnx"), bad); err == nil || !strings.Contains(err.Error(), "external data") {
			t.Errorf("%q: got %v, want a refusal", bad, err)
		}
	}
	// In the hub's cache both the model and its data are links into one folder.
	must(os.Symlink("../blobs/m", filepath.Join(dir, "hub.onnx")))
	if err := open(filepath.Join(dir, "hub.onnx"), "hub"); err != nil {
		t.Errorf("links as in the hub's cache: %v", err)
	}
	if _, err := ReadFile(filepath.Join(dir, "pipe")); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a pipe: %v", err)
	}
}
