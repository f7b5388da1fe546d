package hub

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The cache's models are told of, and go: a commit with what it has alone, or all.
func TestListAndRemove(t *testing.T) {
	x := start(t)
	first := x.mustPull(t)
	x.hub.Lock()
	x.repo.Branches = []string{"main", "v2"}
	x.repo.Set("tokenizer.json", content(9, 8_000))
	x.hub.Unlock()
	second := x.mustPull(t)
	if _, err := x.pull(t, "v2"); err != nil {
		t.Fatal(err)
	}
	s := x.store(Repo{testID, "main"})
	if err := os.WriteFile(s.incomplete("x"), make([]byte, 77), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"datasets--a--b", "models--..--evil", "models--", "version.txt"} {
		if err := os.MkdirAll(filepath.Join(x.Cache(), other, "blobs"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	list, err := List(x.Cache())
	if err != nil || len(list) != 1 || list[0].ID != testID || list[0].Incomplete != 77 || len(list[0].Commits) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, k := range list[0].Commits {
		want := map[string][]string{first.Commit: nil, second.Commit: {"main", "v2"}}[k.Commit]
		if slices.Sort(k.Revisions); !slices.Equal(k.Revisions, want) || k.Files != 6 || k.Bytes < 400_000 || k.Broken != 0 {
			t.Errorf("%+v, want revisions %v", k, want)
		}
	}
	if freed, err := x.Remove(Repo{testID, first.Commit}); err != nil || freed != 9_000 {
		t.Errorf("the first commit: %d bytes, %v", freed, err)
	}
	if err := os.Remove(s.incomplete("x")); err != nil {
		t.Fatal(err)
	}
	x.compare(t, second)
	if _, err := x.Remove(Repo{testID, "v9"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such revision: %v", err)
	}
	if freed, err := x.Remove(Repo{testID, "v2"}); err != nil || freed < 400_000 {
		t.Errorf("the second commit: %d bytes, %v", freed, err)
	}
	if refs, err := s.refs(); err != nil || len(refs) != 0 {
		t.Errorf("revisions name what is gone: %v, %v", refs, err)
	}
	x.mustPull(t)
	unlock, err := s.lock(t.Context(), "busy", x.log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Remove(Repo{testID, ""}); !errors.Is(err, ErrBusy) {
		t.Errorf("while it is fetched: %v", err)
	}
	unlock()
	if _, err := x.Remove(Repo{testID, ""}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there (%v)", s.dir, err)
	}
	if _, err := x.Remove(Repo{testID, ""}); !errors.Is(err, ErrNotFound) {
		t.Errorf("what is gone: %v", err)
	}
}

// What is removed of a model lies in its own folder, wherever a snapshot's links lead.
func TestRemoveForeignLinks(t *testing.T) {
	x := start(t)
	snap := x.mustPull(t)
	outside := filepath.Join(t.TempDir(), "blobs", "kept")
	other := filepath.Join(x.Cache(), "models--a--b", "blobs", "kept")
	for i, path := range []string{outside, other} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
		target := path
		if i == 1 {
			target = filepath.Join("..", "..", "..", "models--a--b", "blobs", "kept")
		}
		if err := os.Symlink(target, filepath.Join(snap.Dir, []string{"one", "two"}[i])); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.Remove(Repo{testID, snap.Commit}); err != nil {
		t.Error(err)
	}
	for _, path := range []string{outside, other} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("another folder's file is gone: %v", err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(x.store(Repo{testID, "main"}).dir, "blobs")); err != nil || len(left) != 0 {
		t.Errorf("blobs are left: %v %v", left, err)
	}
}
