package hub

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Cached is a model that the cache has, or a part of it.
type Cached struct {
	ID string
	// Bytes is what it takes of the disk, Incomplete what of that is of files that are not whole.
	Bytes, Incomplete int64
	Commits           []CachedCommit
}

// CachedCommit is a snapshot.
type CachedCommit struct {
	Commit string
	// Revisions are the branches and tags that named it last.
	Revisions []string
	Files     int
	// Bytes is the size of its files; other commits may share them.
	Bytes int64
	// Broken is how many of its links lead to no file.
	Broken int
}

// List tells of all models of a cache, by name. Folders of data sets and of other programs are passed over.
func List(cache string) (list []Cached, err error) {
	entries, err := os.ReadDir(cache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id, ok := fromFolder(e.Name())
		if !ok {
			continue
		}
		m, err := describe(&store{Repo{id, DefaultRevision}, cache, filepath.Join(cache, e.Name())})
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

func describe(s *store) (Cached, error) {
	m := Cached{ID: s.repo.ID}
	blobs, err := readDir(filepath.Join(s.dir, "blobs"))
	if err != nil {
		return m, err
	}
	for _, b := range blobs {
		st, err := b.Info()
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		m.Bytes += st.Size()
		if strings.HasSuffix(b.Name(), ".incomplete") {
			m.Incomplete += st.Size()
		}
	}
	refs, err := s.refs()
	if err != nil {
		return m, err
	}
	commits, err := readDir(filepath.Join(s.dir, "snapshots"))
	if err != nil {
		return m, err
	}
	for _, c := range commits {
		if !c.IsDir() || !commitTxt.MatchString(c.Name()) {
			continue
		}
		k := CachedCommit{Commit: c.Name(), Revisions: refs[c.Name()]}
		err := s.eachLink(c.Name(), func(path string) {
			st, err := os.Stat(path)
			if err != nil {
				k.Broken++
				return
			}
			k.Files++
			k.Bytes += st.Size()
		})
		if err != nil {
			return m, err
		}
		m.Commits = append(m.Commits, k)
	}
	return m, nil
}

// readDir lists a folder, or nothing if it is not there.
func readDir(dir string) ([]os.DirEntry, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return list, err
}

// refs are the revisions by the commit that they name.
func (s *store) refs() (map[string][]string, error) {
	by := map[string][]string{}
	root := filepath.Join(s.dir, "refs")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == root {
			return filepath.SkipAll
		}
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := readFile(path, 1<<10)
		if err != nil {
			return nil // none of ours
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		commit := strings.TrimSpace(string(raw))
		by[commit] = append(by[commit], filepath.ToSlash(name))
		return nil
	})
	return by, err
}

// eachLink calls do for what is a file in a snapshot, or a link.
func (s *store) eachLink(commit string, do func(path string)) error {
	return filepath.WalkDir(s.snapshot(commit), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			do(path)
		}
		return err
	})
}

// ErrBusy says that another process fetches what is to be removed.
var ErrBusy = errors.New("another process fetches it")

// Remove takes a model out of the cache: the commit that the revision names, and what no other commit has of it; all
// commits where the revision is empty. It gives the bytes that are free then. At each moment of it, what the cache
// names is there.
func (c *Client) Remove(r Repo) (freed int64, err error) {
	s := c.store(r)
	if st, err := os.Stat(s.dir); err != nil || !st.IsDir() {
		return 0, fmt.Errorf("%s is not in the cache %s, whose models `mmserve model list` names: %w", r.ID, c.options.Cache, ErrNotFound)
	}
	if err := s.idle(); err != nil {
		return 0, fmt.Errorf("%s: %w", r.ID, err)
	}
	m, err := describe(s)
	if err != nil {
		return 0, err
	}
	if r.Revision == "" {
		return m.Bytes, errors.Join(s.forget(m.Commits), os.RemoveAll(s.dir), os.RemoveAll(s.locks()))
	}
	i := slices.IndexFunc(m.Commits, func(k CachedCommit) bool {
		return k.Commit == r.Revision || slices.Contains(k.Revisions, r.Revision)
	})
	if i < 0 {
		return 0, fmt.Errorf("%s: the cache has no such revision: %w", r, ErrNotFound)
	}
	shared := map[string]bool{}
	for j, k := range m.Commits {
		if j != i {
			err = errors.Join(err, s.eachLink(k.Commit, func(path string) { shared[s.linked(path)] = true }))
		}
	}
	var alone []string
	err = errors.Join(err, s.eachLink(m.Commits[i].Commit, func(path string) {
		if to := s.linked(path); to != "" && !shared[to] && !slices.Contains(alone, to) {
			alone = append(alone, to)
		}
	}))
	if err == nil {
		err = s.forget(m.Commits[i : i+1])
	}
	if err != nil {
		return 0, err
	}
	for _, path := range alone {
		if st, err := os.Stat(path); err == nil {
			freed += st.Size()
		}
		err = errors.Join(err, os.Remove(path))
	}
	return freed, err
}

// linked is the blob of the model that a link of a snapshot leads to; empty if it leads elsewhere or is none.
func (s *store) linked(path string) string {
	to, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(path), to)
	}
	if to = filepath.Clean(to); filepath.Dir(to) != filepath.Join(s.dir, "blobs") {
		return ""
	}
	return to
}

// forget removes commits, names first.
func (s *store) forget(list []CachedCommit) error {
	for _, k := range list {
		for _, name := range k.Revisions {
			if err := os.Remove(s.ref(name)); err != nil {
				return err
			}
		}
		err := errors.Join(os.RemoveAll(s.tree(k.Commit)), os.RemoveAll(filepath.Join(s.dir, ".no_exist", k.Commit)),
			os.RemoveAll(s.snapshot(k.Commit)))
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *store) locks() string { return filepath.Join(s.cache, ".locks", s.repo.folder()) }

// idle fails if a file of the model is being fetched.
func (s *store) idle() error {
	list, err := readDir(s.locks())
	if err != nil {
		return err
	}
	for _, e := range list {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := tryLock(filepath.Join(s.locks(), e.Name()))
		if err != nil {
			return err
		}
		if f == nil {
			return ErrBusy
		}
		_ = f.Close()
	}
	return nil
}
