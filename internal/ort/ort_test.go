package ort

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/onnx"
)

// startLibrary loads the repository's fetched library; without it these tests cannot mean anything.
func startLibrary(t testing.TB) {
	t.Helper()
	lib, err := FindLibrary(os.Getenv("MMSERVE_ORT_LIB"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Start(lib); err != nil {
		t.Fatal(err)
	}
}

// TestMain gives the library a home of its own, so that TestNoTelemetry sees what it leaves there.
func TestMain(m *testing.M) {
	home, err := os.MkdirTemp("", "home")
	if err != nil {
		panic(err)
	}
	os.Setenv("HOME", home)
	os.Setenv("XDG_CACHE_HOME", filepath.Join(home, ".cache"))
	if os.Getenv("MESA_SHADER_CACHE_DIR") == "" { // a Vulkan driver's, where there is one
		os.Setenv("MESA_SHADER_CACHE_DIR", home+"-shaders")
	}
	code := m.Run()
	os.RemoveAll(home + "-shaders")
	os.RemoveAll(home)
	os.Exit(code)
}

func TestNoTelemetry(t *testing.T) {
	startLibrary(t)
	if err := (Provider{}).Probe(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(os.Getenv("HOME"), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("the library left %s", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestStartTwice(t *testing.T) {
	startLibrary(t)
	version, path := Loaded()
	if version != Version {
		t.Errorf("library version %s, want %s", version, Version)
	}
	if err := Start(path); err != nil {
		t.Errorf("second Start with the same path: %v", err)
	}
	if err := Start("/elsewhere.so"); err == nil || !strings.Contains(err.Error(), "already loaded") {
		t.Errorf("second library: %v, want a refusal", err)
	}
}

func TestFindLibrary(t *testing.T) {
	if _, err := FindLibrary(filepath.Join(t.TempDir(), "no.so")); err == nil || errors.Is(err, ErrNoLibrary) {
		t.Errorf("a named file that is missing: %v, want an error about that file", err)
	}
	t.Chdir(t.TempDir())
	if p, err := FindLibrary(""); err == nil {
		t.Skipf("this machine has a system library at %s", p)
	} else if !errors.Is(err, ErrNoLibrary) || !strings.Contains(err.Error(), "make ort") {
		t.Errorf("missing library: %v", err)
	}
}

// A release has the library beside the program, which goes before what the working folder has.
func TestFindLibraryBesideProgram(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		t.Fatal(err)
	}
	name, _ := fileName()
	beside := filepath.Join(filepath.Dir(exe), name)
	f, err := os.OpenFile(beside, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Skipf("the test's program lies where no file can be made: %v", err)
	}
	defer os.Remove(beside)
	defer f.Close()
	if got, err := FindLibrary(""); err != nil || got != beside {
		t.Errorf("%q, %v; want %q", got, err, beside)
	}
}

func TestProbe(t *testing.T) {
	startLibrary(t)
	if err := (Provider{}).Probe(); err != nil {
		t.Error(err)
	}
}

// A graph with an error in it must come back as a Go error with ONNX Runtime's words.
func TestBadGraph(t *testing.T) {
	startLibrary(t)
	g := onnx.New("g")
	g.Input("x", onnx.F32, 1)
	g.Node("", "NoSuchOperator", nil, []string{"x"}, []string{"y"})
	g.Output("y", onnx.F32, 1)
	if _, err := NewSession(g, Options{}); err == nil || !strings.Contains(err.Error(), "NoSuchOperator") {
		t.Errorf("bad graph: %v", err)
	}
}

// Inline and external initializers, attributes, optional inputs and zero-sized tensors, seen through a real run.
func TestGraphFeatures(t *testing.T) {
	startLibrary(t)
	dir := t.TempDir()
	// 3 bytes before the data: external offsets need no alignment.
	if err := os.WriteFile(filepath.Join(dir, "w.bin"), []byte{9, 9, 9, 0, 0, 0, 64, 0, 0, 64, 64}, 0o600); err != nil {
		t.Fatal(err)
	}
	g := onnx.New("g")
	g.Input("x", onnx.F32, "n", 2)
	w := g.External("w", onnx.F32, []int{1, 2}, "w.bin", 3, 8) // [2, 3]
	y := g.ContribOp("FusedMatMul", onnx.Attrs{"transB": 1, "alpha": float32(10)}, "x", w)
	y = g.Op("Clip", nil, y, "", g.F32(100))
	g.Node("", "Reshape", nil, []string{y, g.I64s(-1)}, []string{"y"})
	g.Output("y", onnx.F32, "n")
	s, err := NewSession(g, Options{ExternalDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mem, err := Alloc[float32](16)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Free()
	copy(mem.Slice(), []float32{1, 1, 2, 2})
	for _, n := range []int{2, 0} {
		x, err := View(mem.Slice(), n, 2)
		if err != nil {
			t.Fatal(err)
		}
		out, err := View(mem.Slice()[8:], n)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run([]Tensor{x}, []Tensor{out}); err != nil {
			t.Fatal(err)
		}
		x.Destroy()
		out.Destroy()
	}
	if got := mem.Slice()[8:10]; got[0] != 50 || got[1] != 100 {
		t.Errorf("got %v, want [50 100]", got)
	}
	if _, err := View(mem.Slice(), 5, 5); err == nil {
		t.Error("a view larger than its memory was allowed")
	}
}

// A run ends with its context, long before the graph is done, and the session goes on.
func TestRunContext(t *testing.T) {
	startLibrary(t)
	const side, nodes = 512, 4000 // a second at least, on any processor
	g := onnx.New("g")
	g.Input("x", onnx.F32, side, side)
	last := "x"
	for range nodes {
		last = g.Op("MatMul", nil, last, "x")
	}
	g.Node("", "Identity", nil, []string{last}, []string{"y"})
	g.Output("y", onnx.F32, side, side)
	s, err := NewSession(g, Options{Threads: 1, Background: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mem, err := Alloc[float32](2 * side * side)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Free()
	x, err := View(mem.Slice(), side, side)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Destroy()
	out, err := View(mem.Slice()[side*side:], side, side)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Destroy()
	why := errors.New("nobody waits")
	for _, wait := range []time.Duration{0, 20 * time.Millisecond} {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(wait, func() { cancel(why) })
		if err := s.RunContext(ctx, []Tensor{x}, []Tensor{out}); !errors.Is(err, why) {
			t.Errorf("a run that was ended after %v: %v", wait, err)
		}
	}
}
