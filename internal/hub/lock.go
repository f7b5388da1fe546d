package hub

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// lockEvery is how often a lock that another process holds is tried.
const lockEvery = 100 * time.Millisecond

// lock waits until no other process fetches the blob, nor a client of the hub in another language: all hold the same
// file with flock. The system frees it when a process ends, however that ends.
func (s *store) lock(ctx context.Context, etag string, log *slog.Logger) (unlock func(), err error) {
	path := filepath.Join(s.locks(), etag+".lock")
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return nil, fmt.Errorf("the hub's cache: %w", err)
	}
	waiting := false
	for {
		f, err := tryLock(path)
		if err != nil {
			return nil, fmt.Errorf("the hub's cache: %w", err)
		}
		if f != nil {
			return func() { _ = f.Close() }, nil
		}
		if !waiting {
			waiting = true
			log.Info("another process fetches the file; waiting for it", "lock", path)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockEvery):
		}
	}
}

// tryLock opens and locks a file; it gives nil if another process holds it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o664)
	if err != nil {
		return nil, err
	}
	held, err := lockFile(f)
	if err == nil && held { // a client that removes the file when it is through leaves us with another one
		now, statErr := os.Stat(path)
		ours, ourErr := f.Stat()
		if statErr == nil && ourErr == nil && os.SameFile(now, ours) {
			return f, nil
		}
	}
	_ = f.Close()
	return nil, err
}
