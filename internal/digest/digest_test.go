package digest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A file is read once, and again after every change that its size or times do not show by themselves.
func TestRemembers(t *testing.T) {
	defer func(was time.Duration) { settled = was }(settled)
	settled = 0
	dir := t.TempDir()
	store, path := Store(filepath.Join(dir, "cache")), filepath.Join(dir, "weights")
	reads := 0
	sum := func(name string) []byte {
		got, err := store.Digest(name, []Stamp{stamp(t, path)}, func() ([]byte, error) {
			reads++
			data, err := os.ReadFile(path)
			s := sha256.Sum256(data)
			return s[:], err
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	want := func(content string, n int) {
		t.Helper()
		s := sha256.Sum256([]byte(content))
		if got := sum("a"); !bytes.Equal(got, s[:]) || reads != n {
			t.Errorf("got %x after %d reads, want %x after %d", got, reads, s, n)
		}
	}
	// put changes the file, as old as ever, until that shows: its times are no finer than the kernel's clock.
	put := func(content string) {
		before, old := stamp(t, path), time.Unix(1e9, 0)
		for stamp(t, path) == before {
			if err := errors.Join(os.WriteFile(path, []byte(content), 0o644), os.Chtimes(path, old, old)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("one")
	want("one", 1)
	want("one", 1)

	put("two") // as long
	want("two", 2)
	put("new") // and as old
	want("new", 3)

	sum("b")
	if reads != 4 {
		t.Error("two ways to compute shared a digest")
	}
	kept, _ := filepath.Glob(filepath.Join(string(store), "digest-a-*"))
	for _, broken := range []string{"", "zz", "00"} {
		for _, f := range kept {
			if err := os.WriteFile(f, []byte(broken), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		reads = 0
		want("new", 1)
	}
	// Neither a digest with one bit changed nor the entry of another file is taken.
	var whole []byte
	for _, f := range kept {
		if b, err := os.ReadFile(f); err == nil && len(b) > len(whole) {
			whole = b
		}
	}
	foreign, _ := filepath.Glob(filepath.Join(string(store), "digest-b-*"))
	swapped, err := os.ReadFile(foreign[0])
	if err != nil {
		t.Fatal(err)
	}
	whole[3] ^= 1
	for _, lie := range [][]byte{whole, swapped, append(swapped, '\n')} {
		for _, f := range kept {
			if err := os.WriteFile(f, lie, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		reads = 0
		want("new", 1)
	}
	if err := os.Chmod(string(store), 0o777); err != nil { // a folder that everybody may write remembers nothing
		t.Fatal(err)
	}
	reads = 0
	want("new", 1)
	want("new", 2)
	if err := os.Chmod(string(store), 0o700); err != nil {
		t.Fatal(err)
	}
	settled = time.Hour
	reads = 0
	want("new", 1)
	want("new", 2)
}

func stamp(t *testing.T, path string) Stamp {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return Of(f)
}

// Where nothing can be kept, digests are computed.
func TestForgets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		store  Store
		stamps []Stamp
	}{{"", []Stamp{"x"}}, {Store(t.TempDir()), nil}, {Store(t.TempDir()), []Stamp{"x", ""}}, {Store(file), []Stamp{"x"}}} {
		reads := 0
		for range 2 {
			if _, err := c.store.Digest("a", c.stamps, func() ([]byte, error) {
				reads++
				return make([]byte, sha256.Size),
					nil
			}); err != nil {
				t.Error(err)
			}
		}
		if reads != 2 {
			t.Errorf("%q %q: read %d times, want 2", c.store, c.stamps, reads)
		}
	}
}
