package hub

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// files shows a listing as a file system, whose files are fetched when they are opened. Folders are what comes before
// slashes in names.
type files struct {
	listing *listing
	open    func(name string) (fs.File, error)
}

var (
	_ fs.StatFS    = files{}
	_ fs.ReadDirFS = files{}
)

// Open fetches the file, if it is one.
func (f files) Open(name string) (fs.File, error) {
	st, err := f.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return &openFolder{st, f.entries(name)}, nil
	}
	file, err := f.open(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return file, nil
}

// Stat goes by the listing.
func (f files) Stat(name string) (fs.FileInfo, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrInvalid}
	}
	if l, ok := f.listing.files[name]; ok {
		return entry{name: path.Base(name), size: l.size}, nil
	}
	if name == "." || len(f.entries(name)) > 0 {
		return entry{name: path.Base(name), dir: true}, nil
	}
	return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
}

// ReadDir lists a folder by name.
func (f files) ReadDir(name string) ([]fs.DirEntry, error) {
	st, err := f.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fmt.Errorf("not a folder")}
	}
	return f.entries(name), nil
}

func (f files) entries(dir string) (list []fs.DirEntry) {
	prefix := dir + "/"
	if dir == "." {
		prefix = ""
	}
	last := ""
	for _, name := range f.listing.names() {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		first, _, isDir := strings.Cut(rest, "/")
		if first == last {
			continue
		}
		last = first
		e := entry{name: first, dir: isDir}
		if !isDir {
			e.size = f.listing.files[name].size
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list
}

// entry is what the listing says of a file or a folder.
type entry struct {
	name string
	size int64
	dir  bool
}

var (
	_ fs.FileInfo = entry{}
	_ fs.DirEntry = entry{}
)

func (e entry) Name() string               { return e.name }
func (e entry) Size() int64                { return max(e.size, 0) }
func (e entry) IsDir() bool                { return e.dir }
func (e entry) ModTime() time.Time         { return time.Time{} }
func (e entry) Sys() any                   { return nil }
func (e entry) Type() fs.FileMode          { return e.Mode().Type() }
func (e entry) Info() (fs.FileInfo, error) { return e, nil }

// Mode is a regular file's or a folder's.
func (e entry) Mode() fs.FileMode {
	if e.dir {
		return fs.ModeDir | 0o555
	}
	return 0o444
}

// openFolder is a folder that was opened.
type openFolder struct {
	info fs.FileInfo
	left []fs.DirEntry
}

var _ fs.ReadDirFile = (*openFolder)(nil)

func (d *openFolder) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openFolder) Close() error               { return nil }

// Read fails: a folder has no content.
func (d *openFolder) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.Name(), Err: fs.ErrInvalid}
}

// ReadDir gives the next n entries, or all that are left.
func (d *openFolder) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 || n >= len(d.left) {
		list := d.left
		d.left = nil
		if n > 0 && len(list) == 0 {
			return nil, io.EOF
		}
		return list, nil
	}
	list := d.left[:n]
	d.left = d.left[n:]
	return list, nil
}
