package hub

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A cache that does not take what is known of its files is used if it has them all.
func TestReadOnlyCache(t *testing.T) {
	x := start(t)
	first := x.mustPull(t)
	s := x.store(Repo{testID, "main"})
	for _, name := range []string{"trees", ".no_exist", "refs"} { // nobody can make a file below a file
		path := filepath.Join(s.dir, name)
		if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if again := x.mustPull(t); again.Dir != first.Dir || !strings.Contains(x.said.text(), "does not take what is known") {
		t.Errorf("%+v; %s", again, x.said.text())
	}
	x.hub.Lock()
	x.repo.Set("tokenizer.json", content(9, 8_000))
	x.hub.Unlock()
	if _, err := x.pull(t, "main"); err == nil {
		t.Error("a newer commit was put where nothing can be")
	}
}

// What lies in a cache in place of what belongs there is replaced or refused; nothing hangs, and nothing is written
// through a link.
func TestHostileCache(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) error {
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600))
	}
	for name, c := range map[string]struct {
		spoil func(x *tested, s *store, etag string) error
		want  string // in the error; empty: it is mended
	}{
		"a link in place of a part": {func(_ *tested, s *store, etag string) error {
			return os.Symlink(victim, s.incomplete(etag))
		}, "too many levels of symbolic links"},
		"a pipe in place of a part": {func(_ *tested, s *store, etag string) error {
			return syscall.Mkfifo(s.incomplete(etag), 0o600)
		}, "is not a regular file"},
		"a link in place of a lock": {func(_ *tested, s *store, etag string) error {
			return errors.Join(os.MkdirAll(s.locks(), 0o700), os.Symlink(victim, filepath.Join(s.locks(), etag+".lock")))
		}, "too many levels of symbolic links"},
		"a folder in place of a lock": {func(_ *tested, s *store, etag string) error {
			return os.MkdirAll(filepath.Join(s.locks(), etag+".lock"), 0o700)
		}, "is a directory"},
		"a pipe in place of a blob": {func(_ *tested, s *store, etag string) error {
			return syscall.Mkfifo(s.blob(etag), 0o600)
		}, ""},
		"a blob cut short": {func(_ *tested, s *store, etag string) error { return write(s.blob(etag), "short") }, ""},
		"a broken tree": {func(x *tested, s *store, _ string) error {
			return write(s.tree(x.repo.Commit), `{"format_version":1,"files":{"../x":{"size":1,"blob_id":"y"}}}`)
		}, ""},
		"a tree of another version": {func(x *tested, s *store, _ string) error {
			return write(s.tree(x.repo.Commit), `{"format_version":9,"files":{}}`)
		}, ""},
		"a revision that names no commit": {func(_ *tested, s *store, _ string) error {
			return write(s.ref("main"), "../../../etc")
		}, ""},
		"a file in place of a link": {func(x *tested, s *store, _ string) error {
			return write(s.pointer(x.repo.Commit, large), "short")
		}, ""},
		"a link that leads elsewhere": {func(x *tested, s *store, _ string) error {
			p := s.pointer(x.repo.Commit, large)
			return errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.Symlink(victim, p))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			x := start(t)
			s := x.store(Repo{testID, "main"})
			if err := errors.Join(s.make(), c.spoil(x, s, x.repo.ETag(large))); err != nil {
				t.Fatal(err)
			}
			snap, err := x.pull(t, "main")
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want == "":
				x.compare(t, snap)
			case err == nil || !strings.Contains(err.Error(), c.want):
				t.Errorf("error %v, want %q", err, c.want)
			}
			if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
				t.Errorf("the file behind the link has %q, %v", b, err)
			}
		})
	}
}
