package vision

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sealed "github.com/mmserve/mmserve/internal/cache"
)

func openDisk(t *testing.T, dir string, budget int64) *DiskCache {
	t.Helper()
	d, err := OpenDiskCache(dir, budget)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// closeDisk waits until all is written.
func closeDisk(t *testing.T, d *DiskCache) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func diskKeyOf(tenant string, file, digest, model byte) diskKey {
	return diskKey{tenant: tenant, file: [32]byte{file}, digest: [32]byte{digest}, model: [32]byte{model}}
}

func diskFiles(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// What was put is there after a restart, for the same tenant, image and model alone.
func TestDiskCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	d := openDisk(t, dir, 1<<20)
	want := []float32{1, -2, 3.5, 0}
	key := diskKeyOf("a", 1, 2, 3)
	d.put(key, want)
	d.put(key, want) // under way, or there
	closeDisk(t, d)
	d.put(diskKeyOf("a", 9, 9, 9), want) // too late
	if files := diskFiles(t, dir); len(files) != 1 || strings.Contains(files[0], "a-") {
		t.Fatalf("files %v", files)
	}
	st, err := os.Stat(diskFiles(t, dir)[0])
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, mode %v", err, st.Mode())
	}
	d = openDisk(t, dir, 1<<20)
	defer closeDisk(t, d)
	if got := d.get(key); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	for _, other := range []diskKey{
		diskKeyOf("b", 1, 2, 3), diskKeyOf("", 1, 2, 3), diskKeyOf("a", 2, 2, 3), diskKeyOf("a", 1, 3, 3),
		diskKeyOf("a", 1, 2, 4),
	} {
		if d.get(other) != nil {
			t.Errorf("%+v is there", other)
		}
	}
	if s := d.Stats(); s.Hits != 1 || s.Misses != 5 || s.Failures != 0 || s.Entries != 1 || s.Bytes != st.Size() {
		t.Errorf("%+v", s)
	}
}

// The least recently used go, as those of an earlier process do; what is larger than all may be is not kept.
func TestDiskCacheIsBounded(t *testing.T) {
	dir := t.TempDir()
	size := int64(sealed.SealSize + 4)
	d := openDisk(t, dir, 3*size)
	at := func(i int) diskKey { return diskKeyOf("", byte(i), byte(i), 1) }
	for i := range 3 {
		d.put(at(i), []float32{float32(i)})
	}
	closeDisk(t, d)
	for i := range 3 { // used in the order of their numbers
		name := filepath.Join(dir, at(i).name().String())
		used := time.Now().Add(time.Duration(i-10) * time.Minute)
		if err := os.Chtimes(name, used, used); err != nil {
			t.Fatal(err)
		}
	}
	d = openDisk(t, dir, 3*size)
	if d.get(at(0)) == nil {
		t.Fatal("the first is gone")
	}
	d.put(at(3), []float32{3})
	d.put(at(4), make([]float32, 1000)) // too large
	closeDisk(t, d)
	d = openDisk(t, dir, 2*size) // less than before
	defer closeDisk(t, d)
	var there []int
	for i := range 5 {
		if d.get(at(i)) != nil {
			there = append(there, i)
		}
	}
	if !slices.Equal(there, []int{0, 3}) || len(diskFiles(t, dir)) != 2 || d.Stats().Bytes > 2*size {
		t.Errorf("%v are there, %d files, %+v", there, len(diskFiles(t, dir)), d.Stats())
	}
}

// Whatever became of a file, it is a miss, taken away, and written again.
func TestDiskCacheSurvivesDamage(t *testing.T) {
	key := diskKeyOf("t", 1, 2, 3)
	for name, spoil := range map[string]func(file string) error{
		"a byte": func(file string) error {
			raw, err := os.ReadFile(file)
			raw[len(raw)-1] ^= 1
			return errors.Join(err, os.WriteFile(file, raw, 0o600))
		},
		"cut":         func(file string) error { return os.Truncate(file, 40) },
		"empty":       func(file string) error { return os.Truncate(file, 0) },
		"no values":   func(file string) error { return os.Truncate(file, int64(sealed.SealSize)) },
		"part of one": func(file string) error { return os.Truncate(file, int64(sealed.SealSize)+6) },
		"huge":        func(file string) error { return os.Truncate(file, 1<<40) },
		"gone":        os.Remove,
		"a link": func(file string) error {
			return errors.Join(os.Remove(file), os.Symlink("/dev/zero", file))
		},
		"others may write it": func(file string) error { return os.Chmod(file, 0o666) },
		"another's": func(file string) error {
			other := diskKeyOf("u", 1, 2, 3)
			return os.WriteFile(file, append(sealed.Seal(make([]byte, 8), other.source()), make([]byte, 8)...), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := openDisk(t, dir, 1<<20)
			d.put(key, []float32{1, 2})
			closeDisk(t, d)
			file := filepath.Join(dir, key.name().String())
			d = openDisk(t, dir, 1<<20)
			if err := spoil(file); err != nil {
				t.Fatal(err)
			}
			if got := d.get(key); got != nil {
				t.Errorf("%v was read", got)
			}
			if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
			d.put(key, []float32{3, 4})
			closeDisk(t, d)
			d = openDisk(t, dir, 1<<20)
			defer closeDisk(t, d)
			if got := d.get(key); !slices.Equal(got, []float32{3, 4}) {
				t.Errorf("written again: %v", got)
			}
		})
	}
}

// A folder with files of others is opened, and they stay; what a process left half written long ago goes.
func TestDiskCacheLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-2 * staleTemporary)
	name := diskKeyOf("", 1, 1, 1).name().String()
	for _, f := range []string{"notes.txt", "x" + diskSuffix, strings.ToUpper(name), name + ".tmp12", name + ".tmp34"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("1234"), 0o600); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(f, "12") {
			if err := os.Chtimes(filepath.Join(dir, f), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	d := openDisk(t, dir, 1)
	defer closeDisk(t, d)
	if s := d.Stats(); s.Entries != 0 || len(diskFiles(t, dir)) != 4 {
		t.Errorf("%+v, %v", s, diskFiles(t, dir))
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDiskCache(dir, 1); err == nil || !strings.Contains(err.Error(), "others may write it") {
		t.Errorf("a folder of everyone's: %v", err)
	}
}

// A disk that is full costs what would have been kept, and nothing else.
func TestDiskCacheThatCannotWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	d := openDisk(t, dir, 1<<20)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	tower := &countingTower{in: make([]float32, 4)}
	e := NewEncoder(tower, widen, 0)
	e.KeepOn(d, [32]byte{1})
	for range 2 {
		got, cached, err := e.Encode(t.Context(), imageOf(7))
		if err != nil || cached || !slices.Equal(got, []float32{7, -7}) {
			t.Errorf("%v %t %v", got, cached, err)
		}
	}
	e.Close()
	closeDisk(t, d)
	if s := d.Stats(); s.Failures == 0 || s.Entries != 0 {
		t.Errorf("%+v", s)
	}
}

// An image asked about again after a restart runs no tower; one that was forgotten does, and no file has anything of
// it.
func TestEncoderKeepsOnDisk(t *testing.T) {
	dir := t.TempDir()
	img, other := imageOf(3, 4), imageOf(5)
	img.Tenant, img.File, other.File = "t", [32]byte{1}, [32]byte{2}
	encode := func(model byte, forget bool, images ...*Image) (runs int) {
		t.Helper()
		d := openDisk(t, dir, 1<<20)
		tower := &countingTower{in: make([]float32, 4)}
		e := NewEncoder(tower, widen, 1<<20)
		e.KeepOn(d, [32]byte{model})
		for _, img := range images {
			if got, _, err := e.Encode(t.Context(), img); err != nil || !slices.Equal(got, patchesOf(img)) {
				t.Errorf("%v: %v %v", img.Pixels, got, err)
			}
			if forget {
				for _, p := range e.Forget(img.Tenant, img.File) {
					clear(p) // the writer may be at it: it has a copy
				}
				d.Forget(img.Tenant, img.File)
			}
		}
		e.Close()
		closeDisk(t, d)
		return len(tower.runs)
	}
	for i, c := range []struct {
		model  byte
		forget bool
		images []*Image
		runs   int
		files  int
	}{
		{1, false, []*Image{img, other}, 2, 2}, {1, false, []*Image{img, other}, 0, 2}, {2, false, []*Image{img}, 1, 3},
		{1, true, []*Image{img}, 0, 1}, {1, true, []*Image{img}, 1, 1}, {1, false, []*Image{other, img}, 1, 2},
	} {
		if runs := encode(c.model, c.forget, c.images...); runs != c.runs || len(diskFiles(t, dir)) != c.files {
			t.Errorf("%d: %d runs and %d files, want %d and %d", i, runs, len(diskFiles(t, dir)), c.runs, c.files)
		}
	}
}

// An image that was forgotten while it was encoded for a caller who left is not kept.
func TestForgottenImagesAreNotKept(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, 1<<20)
	tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
	e := NewEncoder(tower, widen, 1<<20)
	e.KeepOn(d, [32]byte{1})
	gone, left := imageOf(1), imageOf(2)
	gone.File, left.File = [32]byte{1}, [32]byte{2}
	ctx, leave := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { _, _, _ = e.Encode(ctx, gone) })
	tower.hold <- struct{}{} // the run began
	leave()
	work.Wait()
	e.Forget("", gone.File)
	d.Forget("", gone.File)
	close(tower.hold)
	if _, _, err := e.Encode(t.Context(), left); err != nil {
		t.Fatal(err)
	}
	e.Close()
	closeDisk(t, d)
	if n := len(diskFiles(t, dir)); n != 1 {
		t.Errorf("%d files, want that of the other image", n)
	}
}

// What is forgotten goes whoever wrote it, of that tenant alone, and what waits to be written is not.
func TestDiskCacheForgets(t *testing.T) {
	dir := t.TempDir()
	d, another := openDisk(t, dir, 1<<20), openDisk(t, dir, 1<<20)
	another.put(diskKeyOf("t", 1, 9, 9), []float32{1})
	closeDisk(t, another)
	for i := range 50 {
		d.put(diskKeyOf("t", 1, byte(i), 1), make([]float32, 10))
		d.put(diskKeyOf("u", 1, byte(i), 1), make([]float32, 10))
	}
	d.Forget("t", [32]byte{1})
	closeDisk(t, d)
	if n := len(diskFiles(t, dir)); n != 50 {
		t.Errorf("%d files are left, want 50", n)
	}
	d = openDisk(t, dir, 1<<20)
	defer closeDisk(t, d)
	for i := range 50 {
		mine := d.get(diskKeyOf("t", 1, byte(i), 1)) != nil
		theirs := d.get(diskKeyOf("u", 1, byte(i), 1)) != nil
		if mine || !theirs {
			t.Fatalf("image %d: %t, another tenant's %t", i, mine, theirs)
		}
	}
}

// BenchmarkDiskCache is what an image costs that is asked about again, beside its encoding: 64 patches of 576 values,
// and 1,024 of 2,048.
func BenchmarkDiskCache(b *testing.B) {
	for _, n := range []int{64 * 576, 1024 * 2048} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			d, err := OpenDiskCache(dir, 1<<30)
			if err != nil {
				b.Fatal(err)
			}
			key := diskKeyOf("", 1, 1, 1)
			d.put(key, make([]float32, n))
			if err := d.Close(); err != nil { // it is written
				b.Fatal(err)
			}
			if d, err = OpenDiskCache(dir, 1<<30); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(4 * n))
			for b.Loop() {
				if d.get(key) == nil {
					b.Fatal("a miss")
				}
			}
			if err := d.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
