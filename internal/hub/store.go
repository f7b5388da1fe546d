package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/mmserve/mmserve/internal/folder"
)

// store is a repository's folder in the cache:
//
//	models--ORG--NAME/refs/REVISION             the commit that a branch or a tag names
//	models--ORG--NAME/snapshots/COMMIT/FILE     a link to ../../blobs/DIGEST
//	models--ORG--NAME/blobs/DIGEST              content; DIGEST.incomplete while it is fetched
//	models--ORG--NAME/trees/COMMIT.json         what the commit has, by which a snapshot is known to be whole
//	models--ORG--NAME/.no_exist/COMMIT/FILE     an empty file for what the commit does not have
//	.locks/models--ORG--NAME/DIGEST.lock        held with flock by the process that fetches it
type store struct {
	repo  Repo
	cache string
	dir   string
}

func (c *Client) store(r Repo) *store {
	return &store{r, c.options.Cache, filepath.Join(c.options.Cache, r.folder())}
}

func (s *store) snapshot(commit string) string { return filepath.Join(s.dir, "snapshots", commit) }
func (s *store) blob(etag string) string       { return filepath.Join(s.dir, "blobs", etag) }
func (s *store) incomplete(etag string) string { return s.blob(etag) + ".incomplete" }
func (s *store) tree(commit string) string     { return filepath.Join(s.dir, "trees", commit+".json") }
func (s *store) ref(revision string) string {
	return filepath.Join(s.dir, "refs", filepath.FromSlash(revision))
}
func (s *store) pointer(commit, n string) string {
	return filepath.Join(s.snapshot(commit), filepath.FromSlash(n))
}

// cacheTag is what backup programs know a cache by. Reference: bford.info/cachedir.
const cacheTag = "Signature: 8a477f597d28d172789f06886806bc55\n" +
	"# This folder is a cache of model hubs. Its files can be fetched again.\n"

// make makes the folders.
func (s *store) make() error {
	for _, dir := range []string{"blobs", "refs", "snapshots"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o777); err != nil {
			return fmt.Errorf("the hub's cache: %w", err)
		}
	}
	tag, err := os.OpenFile(filepath.Join(s.cache, "CACHEDIR.TAG"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		_, err = tag.WriteString(cacheTag)
		err = errors.Join(err, tag.Close())
	}
	return err
}

// isFile says whether there is a regular file, or a link to one, of a size; of any size if that is not known.
func isFile(path string, size int64) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && (size < 0 || st.Size() == size)
}

// has says whether a snapshot has a file.
func (s *store) has(commit string, f file) bool { return isFile(s.pointer(commit, f.name), f.size) }

func (s *store) hasBlob(f file) bool { return isFile(s.blob(f.etag), f.size) }

// link has a snapshot show a blob under a file's name.
func (s *store) link(commit string, f file) error {
	to := s.pointer(commit, f.name)
	if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
		return fmt.Errorf("the hub's cache: %w", err)
	}
	target, err := filepath.Rel(filepath.Dir(to), s.blob(f.etag))
	if err != nil {
		return err
	}
	if now, err := os.Readlink(to); err == nil && now == target {
		return nil
	}
	temporary := filepath.Join(s.dir, ".link."+f.etag) // the lock's holder has it
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temporary); err != nil { // no links here: then the file itself, as clients of the hub do
		return os.Rename(s.blob(f.etag), to)
	}
	return os.Rename(temporary, to)
}

// writeFile has a small file appear whole or not at all.
func (s *store) writeFile(path string, content []byte) error {
	if now, err := readFile(path, maxTree); err == nil && string(now) == string(content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	temporary := filepath.Join(s.dir, fmt.Sprintf(".write.%d.%x", os.Getpid(), rand.Uint64()))
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder has the names of a folder outlive a loss of power, where the file system can do that.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = f.Sync()
	return f.Close()
}

// finish says of a commit whose wanted files are there what it has, and has the revision name it: not before, so that a
// revision names a whole snapshot whenever a pull ends.
func (s *store) finish(l *listing, absent []string) error {
	for _, name := range absent {
		mark := filepath.Join(s.dir, ".no_exist", l.commit, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(mark), 0o777); err != nil {
			return err
		}
		f, err := os.OpenFile(mark, os.O_WRONLY|os.O_CREATE, 0o666)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if err := syncFolder(s.snapshot(l.commit)); err != nil {
		return err
	}
	if s.repo.Revision == l.commit {
		return nil
	}
	return s.writeFile(s.ref(s.repo.Revision), []byte(l.commit))
}

// treeFile is trees/COMMIT.json, as the hub's own client writes it.
type treeFile struct {
	Version int                  `json:"format_version"`
	Files   map[string]treeEntry `json:"files"`
}

type treeEntry struct {
	Size      int64  `json:"size"`
	BlobID    string `json:"blob_id"`
	LFSSHA256 string `json:"lfs_sha256,omitempty"`
	LFSSize   int64  `json:"lfs_size,omitempty"`
	XetHash   string `json:"xet_hash,omitempty"`
}

const (
	treeVersion = 1
	maxTree     = 64 << 20
)

// readTree gives what a commit has, if the cache knows it.
func (s *store) readTree(commit string) *listing {
	raw, err := readFile(s.tree(commit), maxTree)
	if err != nil {
		return nil
	}
	var t treeFile
	if json.Unmarshal(raw, &t) != nil || t.Version != treeVersion {
		return nil
	}
	l := &listing{commit: commit, files: map[string]file{}}
	for name, e := range t.Files {
		if l.add(name, e) != nil {
			return nil
		}
	}
	return l
}

// writeTree keeps what a commit has.
func (s *store) writeTree(l *listing) error {
	t := treeFile{treeVersion, map[string]treeEntry{}}
	for name, f := range l.files {
		t.Files[name] = f.entry
	}
	raw, err := json.MarshalIndent(t, "", " ")
	if err != nil {
		return err
	}
	return s.writeFile(s.tree(l.commit), raw)
}

// cached gives the snapshot that a revision named last, if it has all that is wanted.
func (s *store) cached(want Want) (*Snapshot, error) {
	commit := s.repo.Revision
	if !s.repo.pinned() {
		raw, err := readFile(s.ref(commit), 1<<10)
		if err != nil {
			return nil, s.notCached()
		}
		if commit = strings.TrimSpace(string(raw)); !commitTxt.MatchString(commit) {
			return nil, fmt.Errorf("%s: want a commit in it", s.ref(s.repo.Revision))
		}
	}
	if st, err := os.Stat(s.snapshot(commit)); err != nil || !st.IsDir() {
		return nil, s.notCached()
	}
	l := s.readTree(commit)
	if l == nil { // an older client does not write it: what is there must do
		var err error
		if l, err = s.walk(commit); err != nil {
			return nil, err
		}
	}
	wanted, _, err := want(files{l, func(name string) (fs.File, error) {
		f, err := folder.Open(s.pointer(commit, name))
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("it is not in the cache: %w", ErrOffline)
		}
		return f, err
	}})
	if err != nil {
		return nil, fmt.Errorf("%s in the cache: %w", s.repo, err)
	}
	for _, name := range wanted {
		if f, ok := l.files[name]; !ok || !s.has(commit, f) {
			return nil, fmt.Errorf("%s: the cache has a part of it, and not %s: %w; mmserve model pull %[1]s fetches the rest",
				s.repo, name, ErrOffline)
		}
	}
	return &Snapshot{Repo: s.repo, Commit: commit, Dir: s.snapshot(commit)}, nil
}

func (s *store) notCached() error {
	return fmt.Errorf("%s is not in the cache %s: %w", s.repo, s.cache, ErrOffline)
}

// walk lists the files of a snapshot.
func (s *store) walk(commit string) (*listing, error) {
	l := &listing{commit: commit, files: map[string]file{}}
	root := s.snapshot(commit)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if checkFileName(name) != nil || !isFile(path, -1) {
			return nil
		}
		l.files[name] = file{name: name, size: -1}
		if len(l.files) > maxFiles {
			return fmt.Errorf("%s: %w: more than %d files", root, ErrTooLarge, maxFiles)
		}
		return nil
	})
	return l, err
}

func readFile(path string, most int64) ([]byte, error) { return folder.ReadFile(path, most) }
