// Package cache keeps derived files between starts, in a folder that only its user can write. What is in it is checked
// all the same: see Seal.
package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Dir is a folder for derived files. Several processes may share it.
type Dir struct {
	path string
	root *os.Root
}

// Open opens a folder, and makes it if it is not there. One that belongs to another user, or that others may write, is
// refused by name: who can write it decides what the model answers.
func Open(path string) (*Dir, error) {
	if path == "" {
		return nil, errors.New("no cache folder: there is no home folder and no --cache-dir")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	st, err := root.Stat(".")
	if err == nil {
		err = private(st)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cache folder %s: %w", path, err), root.Close())
	}
	return &Dir{path, root}, nil
}

// Close lets go of the folder.
func (d *Dir) Close() error { return d.root.Close() }

// Path is the absolute path of a file in the folder.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// File opens a file of the folder to read: a regular one, not a link, that others cannot write. Its name is its Path.
func (d *Dir) File(name string) (*os.File, error) {
	before, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", d.Path(name))
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !os.SameFile(before, st) {
		err = errors.New("it was replaced while it was opened")
	}
	if err == nil {
		err = private(st)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", d.Path(name), err), f.Close())
	}
	return f, nil
}

// Names calls do for the name of whatever is in the folder, in any order.
func (d *Dir) Names(do func(name string)) error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	for { // a part of it at a time: a folder may hold millions
		list, err := f.Readdirnames(1024)
		for _, name := range list {
			do(name)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Stat is what the folder says of a file; links are not followed.
func (d *Dir) Stat(name string) (os.FileInfo, error) { return d.root.Lstat(name) }

// Remove takes a file out of the folder.
func (d *Dir) Remove(name string) error { return d.root.Remove(name) }

// Touch makes a file the one that was used last.
func (d *Dir) Touch(name string) error {
	now := time.Now()
	return d.root.Chtimes(name, now, now)
}

// Overwrite puts zeros over a file's content. Where the file system writes elsewhere than before, what was there stays
// on the device until it is used again.
func (d *Dir) Overwrite(name string) error {
	before, err := d.root.Lstat(name)
	if err != nil {
		return err
	}
	if !before.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", d.Path(name))
	}
	f, err := d.root.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<16)
	for left := before.Size(); left > 0 && err == nil; left -= int64(len(zeros)) {
		_, err = f.Write(zeros[:min(left, int64(len(zeros)))])
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// Write makes a file appear whole or not at all: write fills another, which then takes the name.
func (d *Dir) Write(name string, write func(*os.File) error) error {
	made, err := os.CreateTemp(d.path, name+".tmp*")
	if err != nil {
		return err
	}
	temporary := filepath.Base(made.Name())
	if err = errors.Join(write(made), made.Sync(), made.Close()); err == nil {
		err = d.root.Rename(temporary, name)
	}
	if err != nil {
		if gone := d.root.Remove(temporary); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return err
	}
	return d.sync()
}

// sync has the new name outlive a loss of power, where the file system can do that for folders.
func (d *Dir) sync() error {
	if f, err := d.root.Open("."); err == nil {
		_ = f.Sync()
		return f.Close()
	}
	return nil
}
