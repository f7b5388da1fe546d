// Package reload keeps a value that is made of small files, such as certificates and keys, up to date with them.
package reload

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mmserve/mmserve/internal/folder"
)

// Interval is how often Run reads the files again. They are compared by content: what replaced them, a rename or the
// swap of a symbolic link, does not matter.
const Interval = 2 * time.Second

// maxBytes is the most that one file may have.
const maxBytes = 16 << 20

// Reloader is a value that can be made anew from its files.
type Reloader interface {
	// Reload reads the files now. The old value stays if they are broken.
	Reload() error
	// Run reads them every Interval until ctx is done.
	Run(ctx context.Context)
}

// Files is a value of type T that is made of files. Its methods may be called concurrently.
//
// grpc's pemfile provider, which does this for certificates, logs where no slog handler sees it and cannot be told to
// read now.
type Files[T any] struct {
	name  string
	paths []string
	parse func(contents [][]byte) (T, error)
	log   *slog.Logger
	value atomic.Pointer[T]

	mu   sync.Mutex
	last [][]byte // the newest contents, broken or not
	err  error    // what is wrong with them
}

// Open makes the value, which name stands for in log lines, from the files at paths. parse gets their contents in
// order. Its errors are logged: they may not quote secrets.
func Open[T any](name string, log *slog.Logger, parse func([][]byte) (T, error), paths ...string) (*Files[T], error) {
	f := &Files[T]{name: name, paths: paths, parse: parse, log: log}
	if _, err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// Value is the newest value whose files were well.
func (f *Files[T]) Value() T { return *f.value.Load() }

// Reload implements Reloader.
func (f *Files[T]) Reload() error {
	f.mu.Lock()
	known := f.err
	f.mu.Unlock()
	changed, err := f.load()
	switch {
	case err != nil && (known == nil || known.Error() != err.Error()):
		f.log.Error(f.name+": the new files are not taken, the old ones stay in use", "error", err)
	case err == nil && changed:
		f.log.Info(f.name + ": read again")
	}
	return err
}

// Run implements Reloader.
func (f *Files[T]) Run(ctx context.Context) {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = f.Reload() // it is logged
		case <-ctx.Done():
			return
		}
	}
}

// load makes the value anew where the contents are not those of before.
func (f *Files[T]) load() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	contents := make([][]byte, len(f.paths))
	for i, path := range f.paths {
		if contents[i], err = folder.ReadFile(path, maxBytes); err != nil {
			f.last, f.err = nil, err
			return false, err
		}
	}
	if f.last != nil && slices.EqualFunc(contents, f.last, bytes.Equal) {
		return false, f.err
	}
	f.last = contents
	value, err := f.parse(contents)
	if f.err = err; err != nil {
		return false, err
	}
	f.value.Store(&value)
	return true, nil
}
