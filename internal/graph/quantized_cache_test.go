//go:build unix

package graph

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mmserve/mmserve/internal/onnx"
)

// loadMatrix quantises the matrix "m" of w in p.
func loadMatrix(w *Weights, dir string, p Precision) (Quantized, error) {
	return w.LoadQuantized(dir, func(w *Weights) error {
		b := NewBuilder("test", w, p)
		b.Linear(b.Input("x", onnx.F32, "rows", 64), "m", 64, 32, false)
		return b.Err()
	})
}

// values are the bytes of all tensors that a graph would take.
func values(w *Weights) []byte {
	var all [][]byte
	for _, name := range w.quantized.Names() {
		t, _ := w.quantized.Tensor(name)
		all = append(all, []byte(name), t.Data)
	}
	return bytes.Join(all, nil)
}

// TestCacheServesNothingElse damages and swaps the file in every way: it is made again, which is said, and what is used
// is right.
func TestCacheServesNothingElse(t *testing.T) {
	dir := t.TempDir()
	w, other := checkpoint(t, randomMatrix("m", 64, 32)), checkpoint(t, randomMatrix("m", 64, 32),
		randomMatrix("other", 4, 4))
	if native().panels {
		if _, err := loadMatrix(other, dir, INT4); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := loadMatrix(other, dir, INT8); err != nil {
		t.Fatal(err)
	}
	foreign, _ := filepath.Glob(filepath.Join(dir, "*.safetensors"))
	from, err := loadMatrix(w, dir, INT8)
	if err != nil || !from.Fresh || from.Why != "" {
		t.Fatalf("the first load: %+v %v", from, err)
	}
	path, want := "", slices.Clone(values(w))
	all, _ := filepath.Glob(filepath.Join(dir, "*.safetensors"))
	for _, p := range all {
		if !slices.Contains(foreign, p) {
			path = p
		}
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(at int) []byte {
		b := slices.Clone(good)
		b[at] ^= 1
		return b
	}
	cases := map[string][]byte{"empty": {}, "one byte short": good[:len(good)-1], "half": good[:len(good)/2],
		"longer": append(slices.Clone(good), 0)}
	for _, at := range []int{0, 9, 100, len(good) / 3, len(good) / 2, len(good) - 200, len(good) - 1, len(good) - 40,
		len(good) - 79} {
		cases[fmt.Sprintf("bit flipped at byte %d of %d", at, len(good))] = flipped(at)
	}
	for _, p := range foreign {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		cases["that of "+filepath.Base(p)] = b
	}
	for what, b := range cases {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		from, err := loadMatrix(w, dir, INT8)
		if err != nil || !from.Fresh || !strings.Contains(from.Why, path) && !strings.Contains(from.Why, "truncated") &&
			!strings.Contains(from.Why, "header") {
			t.Errorf("%s: %+v %v, want it made again and said", what, from, err)
		}
		if !bytes.Equal(values(w), want) {
			t.Errorf("%s: other values are used", what)
		}
		if from, err := loadMatrix(w, dir, INT8); err != nil || from.Fresh || from.Why != "" {
			t.Errorf("after %s: %+v %v, want the new file", what, from, err)
		}
	}
	for what, spoil := range map[string]func() error{
		"a link":                func() error { return os.Symlink(foreign[0], path) },
		"a pipe":                func() error { return syscall.Mkfifo(path, 0o600) },
		"a file of everybody's": func() error { return os.WriteFile(path, good, 0o666) },
	} {
		os.Remove(path)
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if what == "a file of everybody's" {
			os.Chmod(path, 0o666)
		}
		if from, err := loadMatrix(w, dir, INT8); err != nil || !from.Fresh || from.Why == "" ||
			!bytes.Equal(values(w), want) {
			t.Errorf("%s: %+v %v, want it made again and said", what, from, err)
		}
	}
}

// Where nothing can be kept the weights lie in a folder of the process's own, and go with it.
func TestCacheThatCannotKeep(t *testing.T) {
	open, file, full := filepath.Join(t.TempDir(), "open"), filepath.Join(t.TempDir(), "file"), t.TempDir()
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	os.Chmod(open, 0o777)
	os.WriteFile(file, nil, 0o600)
	w := checkpoint(t, randomMatrix("m", 64, 32))
	name := quantizedName(w.quantizedSource([]string{"m.weight" + int8Suffix}))
	// the last step of writing fails, as on a full disk
	if err := os.MkdirAll(filepath.Join(full, name, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"": "no cache folder", open: open, file: file, full: "not kept"} {
		temp := t.TempDir()
		t.Setenv("TMPDIR", temp)
		from, err := loadMatrix(w, dir, INT8)
		if err != nil || !from.Fresh || !strings.Contains(from.Why, want) || filepath.Dir(from.Dir) != temp {
			t.Errorf("%q: %+v %v, want a folder of its own, and why: %s", dir, from, err, want)
		}
		if st, err := os.Stat(from.Dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%q: %v %v", dir, st, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(temp); len(left) > 0 {
			t.Errorf("%q: %v is left", dir, left)
		}
	}
	if left, _ := os.ReadDir(open); len(left) > 0 {
		t.Errorf("%v was written where everybody can", left)
	}
	if left, _ := filepath.Glob(filepath.Join(full, "*.tmp*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func TestCacheIsShared(t *testing.T) {
	dir := t.TempDir()
	m := randomMatrix("m", 64, 32)
	var group sync.WaitGroup
	var sums [8][sha256.Size]byte
	for i := range sums {
		w := checkpoint(t, m)
		group.Go(func() {
			if from, err := loadMatrix(w, dir, INT8); err != nil || from.Why != "" {
				t.Errorf("%+v %v", from, err)
				return
			}
			sums[i] = sha256.Sum256(values(w))
		})
	}
	group.Wait()
	for _, s := range sums {
		if s != sums[0] {
			t.Error("processes that share a folder got different weights")
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d files, want 1", len(left))
	}
}
