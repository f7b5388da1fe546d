// Package folder reads files that a stranger wrote, those of a model folder above all: regular files only, each up to
// the size that its kind may have, so that a device, a pipe or a file without end cannot stall a start.
package folder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// Most bytes of a file that is read whole, by its kind. The largest tokenizer.json of a released model has 35 MB.
const (
	maxTokenizer = 256 << 20
	maxText      = 16 << 20
	maxIndex     = 64 << 20
	maxGold      = 256 << 20
)

// limit is the most bytes that the file of that name may have.
func limit(name string) int64 {
	switch {
	case path.Base(name) == "tokenizer.json":
		return maxTokenizer
	case strings.HasSuffix(name, ".index.json"):
		return maxIndex
	case strings.HasSuffix(name, ".json"), strings.HasSuffix(name, ".jinja"):
		return maxText
	}
	return maxGold
}

// Open opens a file for reading if it is a regular file, or a link to one. It never waits for a writer, as opening a
// pipe does otherwise.
func Open(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		err = regular(name, st.Mode())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ReadFile reads a regular file of at most so many bytes, or a link to one.
func ReadFile(name string, most int64) ([]byte, error) {
	f, err := Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, fmt.Errorf("%s: want at most %d bytes", name, most)
	}
	return b, err
}

// ErrNotRegular says that a name stands for something else than a regular file.
var ErrNotRegular = errors.New("not a regular file")

func regular(name string, mode fs.FileMode) error {
	if mode.IsRegular() {
		return nil
	}
	kind := "a device"
	switch {
	case mode.IsDir():
		kind = "a folder"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a pipe"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	}
	return fmt.Errorf("%s is %s, %w: put a plain file there", name, kind, ErrNotRegular)
}

// dir is os.DirFS, but opens folders and regular files only.
type dir string

// Dir is the tree at the folder name. Links are followed, also out of it, as the Hugging Face cache has them; names
// with ".." are not.
func Dir(name string) fs.FS { return dir(name) }

func (d dir) join(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return filepath.Join(string(d), filepath.FromSlash(name)), nil
}

// Open opens the file or folder of that name.
func (d dir) Open(name string) (fs.File, error) {
	full, err := d.join("open", name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(full, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, shorten(err, name)
	}
	st, err := f.Stat()
	if err == nil && !st.IsDir() {
		err = regular(name, st.Mode())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Stat tells what is there without opening it.
func (d dir) Stat(name string) (fs.FileInfo, error) {
	full, err := d.join("stat", name)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(full)
	return st, shorten(err, name)
}

// ReadDir lists a folder.
func (d dir) ReadDir(name string) ([]fs.DirEntry, error) {
	full, err := d.join("readdir", name)
	if err != nil {
		return nil, err
	}
	list, err := os.ReadDir(full)
	return list, shorten(err, name)
}

// shorten has an error name the file within the folder.
func shorten(err error, name string) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		p.Path = name
	}
	return err
}

// Read reads a whole file up to the size that its name allows. A Git LFS pointer and an empty file are errors that say
// so.
func Read(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := regular(name, st.Mode()); err != nil {
		return nil, err
	}
	most := limit(name)
	tooLarge := fmt.Errorf("%s has more than the %d bytes that such a file may have", name, most)
	if st.Size() > most {
		return nil, tooLarge
	}
	var b bytes.Buffer
	b.Grow(int(st.Size()) + bytes.MinRead)
	if _, err := b.ReadFrom(io.LimitReader(f, most+1)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(b.Len()) > most {
		return nil, tooLarge
	}
	if err := CheckContent(b.Bytes()); err != nil {
		return nil, fmt.Errorf("%s %w", name, err)
	}
	return b.Bytes(), nil
}

// Exists tells whether a regular file of that name is there.
func Exists(fsys fs.FS, name string) bool {
	st, err := fs.Stat(fsys, name)
	return err == nil && st.Mode().IsRegular()
}

// ErrLFS says that a file is a Git LFS pointer.
var ErrLFS = errors.New("is a Git LFS pointer, not the file itself: fetch it with \"git lfs pull\" or \"hf download\"")

// CheckContent refuses a Git LFS pointer, and the page that a failed download leaves. It looks at the first bytes only.
func CheckContent(data []byte) error {
	head := data[:min(len(data), 64)]
	text := strings.ToLower(strings.TrimSpace(string(head)))
	switch {
	case bytes.HasPrefix(head, []byte("version https://git-lfs.github.com/spec/")),
		bytes.HasPrefix(head, []byte("version https://hawser.github.com/spec/")):
		return ErrLFS
	case strings.HasPrefix(text, "<!doctype html"), strings.HasPrefix(text, "<html"):
		return errors.New("is a web page, not the file itself: download it again")
	case len(data) < 64 && (text == "entry not found" || text == "invalid username or password."):
		return fmt.Errorf("says %q, not what it should hold: download it again", text)
	}
	return nil
}
